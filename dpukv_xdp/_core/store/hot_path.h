/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * hot_path.h - the store's layout in the native core, and its hot paths as inline functions.
 *
 * A store is MICA's: an index of buckets for a circular log (cache) or for an allocator's memory (lossless). One thread
 * owns it (EREW), without locks or versions, until kv_store_share() makes it a store that several threads use at the
 * same time (CREW, CRCW, see keep_apart.h). Index and log contain offsets, never pointers, so that their memory can be
 * mapped anywhere.
 *
 *   bucket (128 B)  15 item words of tag (16 bits) | offset (48 bits), then the number of its overflow bucket, or 0.
 *                   Words in use are a prefix of the chain, and a 0 word ends it: a lookup in a lightly filled bucket
 *                   reads one cache line. The first lines of all buckets come first in memory, then the second lines.
 *                   Overflow buckets, which only a lossless store has, follow the main ones. A bucket's number has no
 *                   tag, so that it is never mistaken for an item's word.
 *   item (>= 32 B)  struct kv_item, then the key and the value, each zero padded to 8 bytes. An item never wraps
 *                   around the log's end: a rest that is too short is skipped. An 8/8 item takes 32 bytes, so that
 *                   a log of 8/8 items never splits one across cache lines. In a lossless store it takes 8 bytes
 *                   more.
 *
 * The log may have any length. Its span is the next power of two: at the log's end the tail jumps to the next span, so
 * that offset % span is a position in the log. An item is alive if it is at most one span behind the tail. Items of the
 * current lap always are; an item of the previous lap is exactly if its position is not before the tail's, where the
 * current lap has not overwritten anything yet. The same rule holds for a lossless store, whose tail stays 0 and whose
 * span is 2^48.
 *
 * A lookup is: kv_store_prefetch_bucket(), other work, kv_store_prefetch_item(), other work, then kv_store_get8() or
 * kv_store_set8() for keys of 1 to 8 bytes, with the place found by prefetching, or kv_store_get() or kv_store_set()
 * for any key. All of them find each other's items. An inline store has kv_short_get8() and kv_short_set8() instead of
 * the first two, see short_items.h.
 */
#ifndef KV_HOT_PATH_H
#define KV_HOT_PATH_H

#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "abi/limits.h"
#include "abi/partitions.h"
#include "abi/queue_pair.h"
#include "abi/store_layout.h"
#include "abi/wire_mica2.h"
#include "store/operations.h"

struct kv_lossless;
struct kv_region;
struct kv_short_line;

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "keys and values are kept in little-endian words");

#define KV_STORE_HANDLES_MAX KV_ENGINES_MAX
#define KV_STORE_NOT_WRITING (~0ULL)
#define KV_STORE_APART 128 /* two cache lines: the adjacent-line prefetcher pairs them */
#define KV_LOG_BYTES_MIN 64
#define KV_MOVE_TO_HEAD_NEVER 65536	    /* value of kv_store_options.move_to_head */
#define KV_MOVE_DISTANCE_NEVER (1ULL << 62) /* longer than any distance */

/* Words of the largest item. */
#define KV_ITEM_WORDS_MAX ((sizeof(struct kv_item) + KV_ROUNDUP8(KV_KEY_MAX) + KV_ROUNDUP8(KV_VALUE_MAX)) / 8)

/* State of the log and its cleanup. */
struct kv_store_progress {
	__u64 tail;    /* offset of the next entry; position in the log = tail % span */
	__u64 cleaned; /* buckets ever visited by the cleanup; position = cleaned % buckets */
	__u64 items;   /* words in use in the index, and items in the lines of an inline store */
};

/* What one handle's thread is writing in the log; appends of others do not come round to it. */
struct kv_store_writer {
	_Alignas(KV_STORE_APART) __u64 offset; /* of the entry, as the tail counts; or KV_STORE_NOT_WRITING */
	uint32_t in_use;		       /* 1: a handle has this place */
};

/*
 * The old words of an item that one handle's thread overwrites in place, for the process that takes the store over if
 * this one is killed meanwhile: see region.h.
 */
struct kv_store_undo {
	_Alignas(KV_STORE_APART) __u64 armed; /* the item, see kv_undo_of_item() and kv_undo_of_line(); 0: none */
	__u64 lengths;			      /* the item's first word; or the lengths of a short item */
	__u64 value[KV_ITEM_WORDS_MAX];
};

/* State shared by all handles on one store. In exclusive mode only the tail is up to date. */
struct kv_store_common {
	_Alignas(KV_STORE_APART) struct kv_store_progress progress;
	_Alignas(KV_STORE_APART) uint32_t handles;
	uint32_t places; /* of `writers` that may be in use: none from here on is */
	struct kv_store_writer writers[KV_STORE_HANDLES_MAX];
};

/* A handle, used by one thread. */
struct kv_store {
	_Alignas(KV_STORE_APART) struct kv_line *lines; /* the buckets' first lines, then their second lines */
	uint8_t *log;					/* or the allocator's memory */
	uint64_t buckets;				/* main buckets, which hashes select */
	uint64_t span;					/* span of the log, a power of two */
	struct kv_store_progress progress;		/* in exclusive mode only: here without a further pointer */
	uint32_t *versions;	    /* version of each bucket, odd while it is being written; NULL in exclusive mode */
	uint64_t move_distance;	    /* GET moves an item that is farther from the tail, in bytes */
	uint32_t capacity_max;	    /* items with room for longer values are not overwritten by kv_store_set8() */
	uint32_t writer;	    /* this handle's place in common->writers, for shared mode */
	struct kv_store_undo *undo; /* of this handle; NULL if the memory ends with the process */
	uint64_t buckets_all;	    /* main and overflow buckets */
	uint64_t log_bytes;	    /* a multiple of KV_LOG_BYTES_MIN, at most `span` */
	uint32_t span_shift;
	uint32_t cleanup_shift;		   /* the cleanup visits one bucket per 2^this bytes of growth */
	uint64_t move_distance_full;	   /* move_distance of a handle that may move items */
	struct kv_lossless *lossless;	   /* NULL in a cache */
	struct kv_short_line *short_lines; /* table of an inline store, else NULL: see short_items.h */
	uint64_t short_line_count;
	struct kv_region *region; /* all of the memory but the versions */
	struct kv_store_common *common;
	uint64_t indexed; /* operations of an inline store on index and log */
	struct kv_store_stats stats;
};

/* Return whether the store is in shared mode. */
static inline int kv_store_is_shared(const struct kv_store *store)
{
	return store->versions != NULL;
}

/* ---- The hot paths: 1-8 byte keys ---- */

static inline uint64_t kv_store_bucket(const struct kv_store *store, uint64_t key_hash);
static inline __u64 *kv_store_line(const struct kv_store *store, uint64_t bucket, uint32_t line);
static inline struct kv_item *kv_store_item(const struct kv_store *store, uint64_t word);

/*
 * `shared` is kv_store_is_shared() and a constant wherever speed matters: both modes have one source, and the exclusive
 * one no instruction for the other. always_inline is needed, too: GCC 12 drops calls of a function that only
 * prefetches, because it seems to have no effect.
 */
#define KV_INLINED static inline __attribute__((always_inline))

KV_INLINED uint64_t kv_load(const __u64 *word, int shared);
KV_INLINED uint32_t kv_bucket_matches(const __u64 *line, uint64_t key_hash, int shared);
KV_INLINED struct kv_item *kv_store_find(const struct kv_store *store, uint64_t key_hash, uint32_t key_bytes,
					 uint64_t first_word, const uint8_t *rest, uint32_t rest_bytes, __u64 **word,
					 int shared);
KV_INLINED struct kv_item *kv_store_find8_at(const struct kv_store *store, uint64_t key_hash, uint32_t key_bytes,
					     uint64_t key_word, const __u64 *place);
KV_INLINED uint64_t kv_store_distance(const struct kv_store *store, uint64_t word, int shared);
int kv_store_get8_shared(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes,
			 __u64 *value_word, uint32_t *value_bytes);
/* Exclusive mode: move the item to the log's head if it is far enough from it. Return where it is then. */
const struct kv_item *kv_store_move_to_head(struct kv_store *store, __u64 *word);

/* Prefetch the bucket's first line. At the index's intended load a lookup rarely needs the second one. */
KV_INLINED void kv_store_prefetch_bucket(const struct kv_store *store, uint64_t key_hash, int shared)
{
	uint64_t bucket = kv_store_bucket(store, key_hash);

	__builtin_prefetch(kv_store_line(store, bucket, 0));
	if (shared)
		__builtin_prefetch(&store->versions[bucket]);
}

/*
 * Prefetch the item that the first matching tag of the (prefetched) bucket points to, and return the tag's place. There
 * is no branch, even if no tag matches and another item is fetched, so that a loop of these calls runs ahead of its
 * loads.
 */
KV_INLINED __u64 *kv_store_prefetch_item(const struct kv_store *store, uint64_t key_hash, int shared)
{
	__u64 *line = kv_store_line(store, kv_store_bucket(store, key_hash), 0);
	uint32_t last = 1u << (KV_LINE_WORDS - 1);
	uint32_t matches = shared ? kv_bucket_matches(line, key_hash, 1) : kv_bucket_matches(line, key_hash, 0);
	__u64 *place = &line[__builtin_ctz(matches | last)];

	__builtin_prefetch(kv_store_item(store, kv_load(place, 1)));
	return place;
}

/*
 * GET of a key of 1-8 bytes, given as a zero-padded word. Return KV_SUCCESS, or KV_NOT_FOUND with *value_bytes 0. A
 * value of at most 8 bytes is returned in *value_word, zero padded. For a longer one, *value_bytes is its length and
 * *long_value a pointer into the store, valid until the next operation; in shared mode it is NULL, because other
 * threads may change the value at any time: kv_store_get() must copy it, and may then find another length or nothing.
 * `likely` is the result of kv_store_prefetch_item() for this hash, however old, or NULL.
 */
KV_INLINED int kv_store_get8(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes,
			     __u64 *likely, __u64 *value_word, uint32_t *value_bytes, const uint8_t **long_value,
			     int shared)
{
	const struct kv_item *item;
	__u64 *word = likely;

	if (shared) {
		*long_value = NULL;
		return kv_store_get8_shared(store, key_hash, key_word, key_bytes, value_word, value_bytes);
	}
	item = kv_store_find8_at(store, key_hash, key_bytes, key_word, likely);
	if (__builtin_expect(!item, 0))
		item = kv_store_find(store, key_hash, key_bytes, key_word, NULL, 0, &word, 0);
	if (__builtin_expect(!item, 0)) {
		store->stats.get_notfound++;
		*value_bytes = 0;
		*value_word = 0;
		*long_value = NULL;
		return KV_NOT_FOUND;
	}
	if (__builtin_expect(kv_store_distance(store, *word, 0) > store->move_distance, 0))
		item = kv_store_move_to_head(store, word);
	*value_bytes = item->kv_length & KV_LENGTH_VALUE_MASK;
	store->stats.get_found += *value_bytes <= KV_INLINE_MAX; /* kv_store_get() counts a longer one */
	*value_word = item->words[1];
	*long_value = (const uint8_t *)&item->words[1];
	return KV_SUCCESS;
}

/* SET of a key of 1-8 bytes and a value of 0-8 bytes, each given as a zero-padded word. Return an enum kv_result. */
static inline int kv_store_set8(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes,
				__u64 *likely, uint64_t value_word, uint32_t value_bytes)
{
	uint32_t lengths = key_bytes << KV_LENGTH_KEY_SHIFT | value_bytes;
	struct kv_item *item = NULL;
	__u64 *word;

	if (__builtin_expect(!store->versions, 1)) {
		item = kv_store_find8_at(store, key_hash, key_bytes, key_word, likely);
		if (__builtin_expect(!item, 0))
			item = kv_store_find(store, key_hash, key_bytes, key_word, NULL, 0, &word, 0);
	}
	/* Only one word may change where the memory outlives the process. */
	if (__builtin_expect(!item || item->value_capacity > store->capacity_max ||
				     (store->undo && item->kv_length != lengths),
			     0))
		return kv_store_set(store, key_hash, (const uint8_t *)&key_word, key_bytes,
				    (const uint8_t *)&value_word, value_bytes);
	item->kv_length = lengths;
	item->words[1] = value_word; /* fits into every item: value_capacity >= 8 */
	store->stats.set_inplace++;
	return KV_SUCCESS;
}

/* ---- Used by fast and general paths ---- */

static inline uint64_t kv_store_bucket(const struct kv_store *store, uint64_t key_hash)
{
	return KV_STORE_BUCKET(key_hash, store->buckets);
}

static inline __u64 *kv_store_line(const struct kv_store *store, uint64_t bucket, uint32_t line)
{
	return store->lines[line * store->buckets_all + bucket].words;
}

/* Return the word of a bucket's way, 0 to KV_BUCKET_WAYS - 1. */
static inline __u64 *kv_store_way(const struct kv_store *store, uint64_t bucket, uint32_t way)
{
	return kv_store_line(store, bucket, way / KV_LINE_WORDS) + way % KV_LINE_WORDS;
}

/* Return the word with the number of a bucket's overflow bucket. */
static inline __u64 *kv_store_overflow(const struct kv_store *store, uint64_t bucket)
{
	return &kv_store_line(store, bucket, 1)[KV_LINE_WORDS - 1];
}

static inline struct kv_item *kv_store_item(const struct kv_store *store, uint64_t word)
{
	return (struct kv_item *)(store->log + (word & (store->span - 1)));
}

/*
 * Keep the compiler from moving stores across this point. A process that is killed leaves all that its threads have
 * stored by then, in the program's order; so the order is the one in which a store may be found: see region.h.
 */
KV_INLINED void kv_store_order(void)
{
	__asm__ volatile("" ::: "memory");
}

/* Return the bytes that an item takes, the room behind its value included. */
static inline uint64_t kv_item_bytes(const struct kv_item *item)
{
	return sizeof(*item) + KV_ROUNDUP8(item->kv_length >> KV_LENGTH_KEY_SHIFT) + (uint64_t)item->value_capacity;
}

/* A word that other threads may read or write at the same time. */
typedef __u64 __attribute__((may_alias)) kv_shared_word;

KV_INLINED uint64_t kv_load(const __u64 *word, int shared)
{
	return shared ? __atomic_load_n(word, __ATOMIC_RELAXED) : *word;
}

KV_INLINED void kv_save(__u64 *word, uint64_t value, int shared)
{
	if (shared)
		__atomic_store_n(word, value, __ATOMIC_RELAXED);
	else
		*word = value;
}

/* Return an item's kv_length. In shared mode the log is read and written in whole words only. */
KV_INLINED uint32_t kv_item_length(const struct kv_item *item, int shared)
{
	return shared ? (uint32_t)__atomic_load_n((const kv_shared_word *)item, __ATOMIC_RELAXED) : item->kv_length;
}

KV_INLINED uint64_t kv_store_tail(const struct kv_store *store, int shared)
{
	return shared ? kv_load(&store->common->progress.tail, 1) : store->progress.tail;
}

/* Return the bytes from an item's start to the tail. More than a span: the item is overwritten, at least in part. */
KV_INLINED uint64_t kv_store_distance(const struct kv_store *store, uint64_t word, int shared)
{
	return (kv_store_tail(store, shared) - word) & KV_LOG_OFFSET_MASK;
}

#ifdef __SSE2__
/*
 * Return words 2 * `pair` and the next one of a line. In shared mode inline assembly loads them: x86 reads each of the
 * two words atomically, but C has no expression for that, and two separate reads cost 2 ns per lookup.
 */
KV_INLINED __m128 kv_line_pair(const __u64 *line, uint32_t pair, int shared)
{
	const __m128 *words = &((const __m128 *)line)[pair];
	__m128 loaded;

	if (!shared)
		return *words;
	__asm__ volatile("movaps %1, %0" : "=x"(loaded) : "m"(*words));
	return loaded;
}
#endif

/*
 * Return a mask: bit i is set if word i of the line has the hash's tag. Without branches, which would be unpredictable:
 * a misprediction costs as much as the whole lookup.
 */
KV_INLINED uint32_t kv_bucket_matches(const __u64 *line, uint64_t key_hash, int shared)
{
	uint64_t tag = KV_STORE_TAG(key_hash);
#ifdef __SSE2__
	/* The high halves of four words at a time, then the high 16 bits of all eight. */
	__m128i low =
		_mm_castps_si128(_mm_shuffle_ps(kv_line_pair(line, 0, shared), kv_line_pair(line, 1, shared), 0xdd));
	__m128i high =
		_mm_castps_si128(_mm_shuffle_ps(kv_line_pair(line, 2, shared), kv_line_pair(line, 3, shared), 0xdd));
	__m128i tags = _mm_packs_epi32(_mm_srai_epi32(low, 16), _mm_srai_epi32(high, 16));
	__m128i equal = _mm_cmpeq_epi16(tags, _mm_set1_epi16((short)tag));

	return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128()));
#else
	uint32_t matches = 0;

	for (uint32_t i = 0; i < KV_LINE_WORDS; i++)
		matches |= (uint32_t)(kv_load(&line[i], shared) >> KV_LOG_OFFSET_BITS == tag) << i;
	return matches;
#endif
}

/* Return the first bytes of a text, at most 8, as a zero-padded word. */
static inline uint64_t kv_word_of(const uint8_t *bytes, uint32_t length)
{
	uint64_t word = 0;

	if (length >= 8)
		memcpy(&word, bytes, 8);
	else
		memcpy(&word, bytes, length);
	return word;
}

/* Return whether an item's words contain this text, zero padded. */
KV_INLINED int kv_words_equal(const __u64 *words, const uint8_t *bytes, uint32_t length, int shared)
{
	if (!shared)
		return memcmp(words, bytes, length) == 0;
	for (uint32_t i = 0; i < length; i += 8)
		if (kv_load(&words[i / 8], 1) != kv_word_of(bytes + i, length - i))
			return 0;
	return 1;
}

/* Return how many buckets the cleanup must have visited by the time the tail is here; each lap adds the same number. */
static inline uint64_t kv_store_cleanup_due(const struct kv_store *store, uint64_t tail)
{
	uint64_t unit = (1ULL << store->cleanup_shift) - 1;
	uint64_t buckets_a_lap = (store->log_bytes + unit) >> store->cleanup_shift;

	return (tail >> store->span_shift) * buckets_a_lap + ((tail & (store->span - 1)) >> store->cleanup_shift);
}

/*
 * Return whether the bytes are inside the log. In shared mode an item's length may have been overwritten by other data.
 */
KV_INLINED int kv_store_holds(const struct kv_store *store, const __u64 *words, uint32_t bytes, int shared)
{
	return !shared || (uint64_t)((const uint8_t *)words - store->log) + KV_ROUNDUP8(bytes) <= store->log_bytes;
}

/*
 * Return the live item with this hash and key, and in *word the bucket's word that points to it; NULL if there is none.
 * The key is its first 8 bytes as a zero-padded word, and the rest. In shared mode the result is a guess until the
 * bucket's version and the item's distance have been checked again, see look_up() in operations.c.
 */
KV_INLINED struct kv_item *kv_store_find(const struct kv_store *store, uint64_t key_hash, uint32_t key_bytes,
					 uint64_t first_word, const uint8_t *rest, uint32_t rest_bytes, __u64 **word,
					 int shared)
{
	uint64_t bucket = kv_store_bucket(store, key_hash);
	uint32_t half = 0;

	for (;;) {
		__u64 *line = kv_store_line(store, bucket, half);

		for (uint32_t matches = kv_bucket_matches(line, key_hash, shared); matches; matches &= matches - 1) {
			__u64 *candidate = &line[__builtin_ctz(matches)];
			uint64_t candidate_word = kv_load(candidate, shared);
			struct kv_item *item = kv_store_item(store, candidate_word);

			if (kv_store_distance(store, candidate_word, shared) <= store->span &&
			    kv_load(&item->key_hash, shared) == key_hash &&
			    kv_item_length(item, shared) >> KV_LENGTH_KEY_SHIFT == key_bytes &&
			    kv_load(&item->words[0], shared) == first_word &&
			    (rest_bytes == 0 || (kv_store_holds(store, &item->words[1], rest_bytes, shared) &&
						 kv_words_equal(&item->words[1], rest, rest_bytes, shared)))) {
				*word = candidate;
				return item;
			}
		}
		/* The last item word of the first line, or the number of the overflow bucket. */
		line += KV_LINE_WORDS - 1;
		if (!kv_load(line, shared))
			return NULL;
		if (half)
			bucket = kv_load(line, shared);
		half ^= 1;
	}
}

/*
 * Exclusive mode: return the live item with this hash and key if this place in its bucket points to it, else NULL. The
 * bucket may have changed since the place was found, so everything is checked again.
 */
KV_INLINED struct kv_item *kv_store_find8_at(const struct kv_store *store, uint64_t key_hash, uint32_t key_bytes,
					     uint64_t key_word, const __u64 *place)
{
	struct kv_item *item;

	if (!place || *place >> KV_LOG_OFFSET_BITS != KV_STORE_TAG(key_hash))
		return NULL;
	item = kv_store_item(store, *place);
	if (kv_store_distance(store, *place, 0) > store->span || item->key_hash != key_hash ||
	    item->kv_length >> KV_LENGTH_KEY_SHIFT != key_bytes || item->words[0] != key_word)
		return NULL;
	return item;
}

#endif
