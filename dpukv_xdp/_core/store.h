/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store.h - one partition as the native core sees it: memory layout, and the hot paths as inline functions.
 *
 * A store is MICA's: a lossy index of buckets in front of a circular log. One thread owns it (EREW): there are no
 * locks and no versions. Index and log hold offsets only, never pointers, so their memory can be mapped anywhere.
 *
 *   bucket (128 B)  15 item words of tag (16 bits) | offset (48 bits), then a spare word that stays 0. Words in use
 *                   are a prefix, and a 0 word ends it: a lookup in a lightly filled bucket reads one cache line.
 *                   All buckets' first lines stand together, then all second ones.
 *   item (>= 32 B)  struct kv_item, then the key and the value, each zero padded to 8 bytes. Items never wrap: where
 *                   the rest of the log is too short, it is skipped.
 *
 * An 8/8 item takes exactly 32 bytes, and as 32 divides a cache line, a log of 8/8 items never splits one.
 *
 * A lookup is: kv_store_prefetch_bucket(), some other work, kv_store_prefetch_item(), some other work, then
 * kv_store_get8() / kv_store_set8() for keys of 1 to 8 bytes, kv_store_get() / kv_store_set() for any. All of them
 * find each other's items.
 */
#ifndef KV_STORE_H
#define KV_STORE_H

#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "kv_core.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "keys and values are kept in little-endian words");

struct kv_store {
	struct kv_line *lines; /* the buckets' first lines, then their second lines */
	uint8_t *log;
	uint64_t buckets;
	uint64_t log_bytes;	/* a power of two */
	uint64_t tail;		/* bytes ever appended; position in the log = tail % log_bytes */
	uint64_t cleaned;	/* buckets ever visited by the cleanup; position = cleaned % buckets */
	uint32_t cleanup_shift; /* the cleanup visits one bucket for each 2^this bytes of growth */
	uint32_t padding;
	struct kv_store_stats stats;
};

/* ---- The hot paths: 1-8 byte keys ---- */

static inline uint64_t kv_store_bucket(const struct kv_store *store, uint64_t key_hash);
static inline __u64 *kv_store_line(const struct kv_store *store, uint64_t bucket, uint32_t line);
static inline struct kv_item *kv_store_item(const struct kv_store *store, uint64_t word);
static inline uint32_t kv_bucket_matches(const __u64 *line, uint64_t key_hash);
static inline struct kv_item *kv_store_find(const struct kv_store *store, uint64_t key_hash, uint32_t key_bytes,
					    uint64_t first_word, const uint8_t *rest, uint32_t rest_bytes,
					    __u64 **word);

/* always_inline: GCC 12 takes a function that only prefetches for one without effect, and drops its calls. */
#define KV_PREFETCHING static inline __attribute__((always_inline))

/* Ask for the bucket's first line. With the index at its intended load a lookup rarely needs the second one. */
KV_PREFETCHING void kv_store_prefetch_bucket(const struct kv_store *store, uint64_t key_hash)
{
	__builtin_prefetch(kv_store_line(store, kv_store_bucket(store, key_hash), 0));
}

/*
 * Ask for the item that the first matching tag of the (prefetched) bucket points to. Without a branch, even where no
 * tag matches and some other item is fetched, so that a loop of these runs ahead of its loads.
 */
KV_PREFETCHING void kv_store_prefetch_item(const struct kv_store *store, uint64_t key_hash)
{
	const __u64 *line = kv_store_line(store, kv_store_bucket(store, key_hash), 0);
	uint32_t last = 1u << (KV_LINE_WORDS - 1);
	uint32_t way = (uint32_t)__builtin_ctz(kv_bucket_matches(line, key_hash) | last);

	__builtin_prefetch(kv_store_item(store, line[way]));
}

/*
 * GET of a key of 1-8 bytes held in a word, zero padded: KV_SUCCESS or KV_NOT_FOUND (with *value_bytes 0). A value of
 * at most 8 bytes comes back in *value_word, zero padded; a longer one as *long_value, a pointer into the log that is
 * good until the next SET.
 */
static inline int kv_store_get8(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes,
				__u64 *value_word, uint32_t *value_bytes, const uint8_t **long_value)
{
	__u64 *word;
	const struct kv_item *item = kv_store_find(store, key_hash, key_bytes, key_word, NULL, 0, &word);

	if (__builtin_expect(!item, 0)) {
		store->stats.get_not_found++;
		*value_bytes = 0;
		*value_word = 0;
		*long_value = NULL;
		return KV_NOT_FOUND;
	}
	store->stats.get_found++;
	*value_bytes = item->kv_length & KV_LENGTH_VALUE_MASK;
	*value_word = item->words[1];
	*long_value = (const uint8_t *)&item->words[1];
	return KV_SUCCESS;
}

/* SET of a key of 1-8 bytes and a value of 0-8 bytes, each held in a word, zero padded: enum kv_result. */
static inline int kv_store_set8(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes,
				uint64_t value_word, uint32_t value_bytes)
{
	__u64 *word;
	struct kv_item *item = kv_store_find(store, key_hash, key_bytes, key_word, NULL, 0, &word);

	if (__builtin_expect(!item, 0))
		return kv_store_set(store, key_hash, (const uint8_t *)&key_word, key_bytes,
				    (const uint8_t *)&value_word, value_bytes);
	item->kv_length = key_bytes << KV_LENGTH_KEY_SHIFT | value_bytes;
	item->words[1] = value_word; /* every item has room for it: value_capacity >= 8 */
	store->stats.set_in_place++;
	return KV_SUCCESS;
}

/* ---- What fast and general paths share ---- */

static inline uint64_t kv_store_bucket(const struct kv_store *store, uint64_t key_hash)
{
	return KV_STORE_BUCKET(key_hash, store->buckets);
}

static inline __u64 *kv_store_line(const struct kv_store *store, uint64_t bucket, uint32_t line)
{
	return store->lines[line * store->buckets + bucket].words;
}

/* The word of one way of a bucket, 0 to KV_BUCKET_WAYS - 1. */
static inline __u64 *kv_store_way(const struct kv_store *store, uint64_t bucket, uint32_t way)
{
	return kv_store_line(store, bucket, way / KV_LINE_WORDS) + way % KV_LINE_WORDS;
}

static inline struct kv_item *kv_store_item(const struct kv_store *store, uint64_t word)
{
	return (struct kv_item *)(store->log + (word & (store->log_bytes - 1)));
}

/* Bytes from an item's start to the tail. More than log_bytes: the item is (partly) overwritten. */
static inline uint64_t kv_store_distance(const struct kv_store *store, uint64_t word)
{
	return (store->tail - word) & KV_LOG_OFFSET_MASK;
}

/* Bit i is set if word i of a bucket's line has the hash's tag. Without branches: which word it is cannot be
 * predicted, and a miss costs as much as the whole lookup. */
static inline uint32_t kv_bucket_matches(const __u64 *line, uint64_t key_hash)
{
	uint64_t tag = KV_STORE_TAG(key_hash);
#ifdef __SSE2__
	const __m128 *pairs = (const __m128 *)line;
	/* High halves of the words, four at a time; then their high 16 bits, all eight. */
	__m128i low = _mm_castps_si128(_mm_shuffle_ps(pairs[0], pairs[1], 0xdd));
	__m128i high = _mm_castps_si128(_mm_shuffle_ps(pairs[2], pairs[3], 0xdd));
	__m128i tags = _mm_packs_epi32(_mm_srai_epi32(low, 16), _mm_srai_epi32(high, 16));
	__m128i equal = _mm_cmpeq_epi16(tags, _mm_set1_epi16((short)tag));

	return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128()));
#else
	uint32_t matches = 0;

	for (uint32_t i = 0; i < KV_LINE_WORDS; i++)
		matches |= (uint32_t)(line[i] >> KV_LOG_OFFSET_BITS == tag) << i;
	return matches;
#endif
}

/*
 * The live item with this hash and key, and the bucket's word that points to it; NULL if there is none. The key is
 * its first 8 bytes as a word, zero padded, and the rest.
 */
static inline struct kv_item *kv_store_find(const struct kv_store *store, uint64_t key_hash, uint32_t key_bytes,
					    uint64_t first_word, const uint8_t *rest, uint32_t rest_bytes, __u64 **word)
{
	uint64_t bucket = kv_store_bucket(store, key_hash);

	for (uint32_t half = 0; half < 2; half++) {
		__u64 *line = kv_store_line(store, bucket, half);

		for (uint32_t matches = kv_bucket_matches(line, key_hash); matches; matches &= matches - 1) {
			__u64 *candidate = &line[__builtin_ctz(matches)];
			struct kv_item *item = kv_store_item(store, *candidate);

			if (kv_store_distance(store, *candidate) <= store->log_bytes && item->key_hash == key_hash &&
			    item->kv_length >> KV_LENGTH_KEY_SHIFT == key_bytes && item->words[0] == first_word &&
			    (rest_bytes == 0 || memcmp(&item->words[1], rest, rest_bytes) == 0)) {
				*word = candidate;
				return item;
			}
		}
		if (half == 0 && !line[KV_LINE_WORDS - 1])
			break;
	}
	return NULL;
}

#endif
