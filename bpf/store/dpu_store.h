/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * dpu_store.h - stores in BPF maps, for engines that process inside XDP: MICA's lossy index and circular log, laid
 * out as the native core's (dpukv_xdp/_core/store/hot_path.h), whose terms are used here. Settings, passed with -D:
 *
 *	KV_DPU_STORES	1: all engines here use one store; KV_DPU_ENGINES: each has its own
 *	KV_DPU_BUCKETS	buckets of each store's index
 *	KV_DPU_SEGMENTS	segments of each store's log: a power of two, and 2 at least where there is one store
 *
 * The log is cut into segments, one map value each; an item never crosses from one into the next. Otherwise it differs
 * from the native store in what it may lose: a bucket keeps at most KV_TAG_TURNS items of one 16-bit tag, and of long
 * keys that agree in hash, length and first eight bytes only the one stored last; and dead words are cleaned up after
 * a batch, not after each append. No key is ever in a bucket twice: nothing stale can be found.
 *
 * One frame's requests have a store to themselves (kv_store_claim), whichever engine's they are: no locks below that.
 */
#ifndef KV_DPU_STORE_H
#define KV_DPU_STORE_H

#include "abi/store_layout.h"
#include "abi/wire_mica2.h"
#include "base/maps.h"

_Static_assert((KV_DPU_SEGMENTS & (KV_DPU_SEGMENTS - 1)) == 0, "segments are picked by a mask");
_Static_assert(KV_DPU_STORES == 1 || KV_DPU_STORES == KV_DPU_ENGINES, "one store, or one for each engine");
_Static_assert(KV_DPU_SEGMENTS > 1 || KV_DPU_STORES > 1, "of the only segment the verifier knows too much");

#define KV_LOG_BYTES ((__u64)KV_DPU_SEGMENTS * KV_SEGMENT_BYTES)
#define KV_SEGMENT_MASK (KV_SEGMENT_BYTES - 8u) /* offset of a word in its segment */
#define KV_WAY_MASK 15u
#define KV_TAG_TURNS 3 /* live items of one bucket and one tag */
#define KV_KEY_WORDS ((KV_KEY_MAX + 7) / 8)
#define KV_CLAIM_TURNS 512		/* looks at a store that another core works on */
#define KV_CLAIM_NS 20000		/* and how long at most */
#define KV_CLEANUP_BUCKETS 8		/* visited after a batch, at most */
#define KV_ROUND_BYTES_MAX (1ULL << 46) /* that the tail may be ahead in a round of the cleanup, for another RESET */
_Static_assert(KV_BUCKET_WAYS == KV_WAY_MASK, "the last word of a bucket is not an item's");

/* As in maps.h: bytes, because of bcc. */
enum {
	KV_LINE_BYTES = sizeof(struct kv_line),
	KV_SEGMENT_ROOM = KV_SEGMENT_BYTES + KV_SEGMENT_SLACK,
	KV_DPU_STORE_REST = sizeof(struct kv_dpu_store) - sizeof(__u32)
};
struct kv_line_bytes {
	__u8 bytes[KV_LINE_BYTES];
};
struct kv_segment_bytes {
	__u8 bytes[KV_SEGMENT_ROOM];
};
struct kv_dpu_store_bytes {
	struct bpf_spin_lock lock; /* the kernel looks for it by its type */
	__u8 rest[KV_DPU_STORE_REST];
};

/* struct kv_line: for each store the first lines of its buckets, then the second ones. Mmapable arrays start on a
 * page, so that a line is a cache line; others do not. */
BPF_F_TABLE("array", __u32, struct kv_line_bytes, kv_dpu_lines, KV_DPU_STORES * 2 * KV_DPU_BUCKETS, BPF_F_MMAPABLE);
/* Store 0's segments, then store 1's ... */
BPF_F_TABLE("array", __u32, struct kv_segment_bytes, kv_dpu_segments, KV_DPU_STORES *KV_DPU_SEGMENTS, BPF_F_MMAPABLE);
BPF_ARRAY(kv_dpu_stores, struct kv_dpu_store_bytes, KV_DPU_STORES); /* struct kv_dpu_store */

/*
 * An element of each table, and of kv_partitions. They are in kv_receive.c: bcc rewrites map calls in its main file
 * only ("unknown opcode 8d" elsewhere).
 */
static __always_inline void *kv_line_at(__u32 index);
static __always_inline void *kv_segment_at(__u32 index);
static __always_inline void *kv_store_at(__u32 store_index);
static __always_inline void *kv_partition_table_at(__u32 index);

/* A key as a request has it: up to eight bytes in a word, zero padded; of a longer one the packet's bytes. */
struct kv_key {
	__u64 hash;
	__u64 first_word;
	__u32 bytes;
	const __u8 *rest; /* from the ninth byte on, with room for KV_KEY_MAX */
};

/* A word of a bucket. */
struct kv_place {
	__u64 word; /* 0: none */
	__u32 way;
};

/* ---- A store, for one frame ---- */

static __always_inline int kv_try_to_own(struct kv_dpu_store_bytes *leaf);

/* Every core that receives a frame for the store runs this. 0: another core has used it for too long. */
static __always_inline int kv_store_claim(struct kv_dpu_store_bytes *leaf)
{
	__u64 deadline_ns;
	int turn;

	if (kv_try_to_own(leaf))
		return 1;
	deadline_ns = bpf_ktime_get_ns() + KV_CLAIM_NS;
	KV_KEEP_LOOP
	for (turn = 0; turn < KV_CLAIM_TURNS; turn++) {
		if (kv_try_to_own(leaf))
			return 1;
		if (bpf_ktime_get_ns() > deadline_ns)
			break;
	}
	return 0;
}

static __always_inline void kv_store_release(struct kv_dpu_store *store)
{
	KV_PUBLISH_BARRIER();
	KV_WRITE_ONCE(store->owner, 0);
}

/* The lock is held for three instructions: no helper may be called under it, so a frame cannot be processed there. */
static __always_inline int kv_try_to_own(struct kv_dpu_store_bytes *leaf)
{
	struct kv_dpu_store *store = (struct kv_dpu_store *)leaf;
	__u32 me = bpf_get_smp_processor_id() + 1;
	__u32 owner;

	if (KV_READ_ONCE(store->owner))
		return 0;
	bpf_spin_lock(&leaf->lock);
	owner = store->owner;
	if (!owner)
		store->owner = me;
	bpf_spin_unlock(&leaf->lock);
	return !owner;
}

/* ---- Index and log as arrays ---- */

/* Return KV_STORE_TAG() of a hash, without a branch. */
static __always_inline __u64 kv_tag_of(__u64 key_hash)
{
	__u64 low = key_hash & 0xffff;

	return low + kv_is_below(low, 1);
}

static __always_inline __u64 kv_bucket_of(__u64 key_hash)
{
	return KV_STORE_BUCKET(key_hash, (__u64)KV_DPU_BUCKETS);
}

/* The line that holds a way of a bucket; NULL never happens, but the verifier wants to see the question. */
static __always_inline struct kv_line *kv_line_of(__u32 store_index, __u32 bucket, __u32 way)
{
	__u32 index = store_index * 2 * KV_DPU_BUCKETS + bucket;

	if (way >= KV_LINE_WORDS)
		index += KV_DPU_BUCKETS;
	return kv_line_at(index);
}

static __always_inline __u64 *kv_way_of(__u32 store_index, __u32 bucket, __u32 way)
{
	struct kv_line *line = kv_line_of(store_index, bucket, way);

	way &= KV_LINE_WORDS - 1;
	return line ? &line->words[way] : 0;
}

/* The segment that a word of the index points into. */
static __always_inline __u8 *kv_segment_of(__u32 store_index, __u64 word)
{
	return kv_segment_at(store_index * KV_DPU_SEGMENTS + ((word / KV_SEGMENT_BYTES) & (KV_DPU_SEGMENTS - 1)));
}

/* The item there. Any word may be asked for: what is found must be compared. */
static __always_inline struct kv_item *kv_item_of(__u32 store_index, __u64 word)
{
	__u8 *segment = kv_segment_of(store_index, word);

	return segment ? (struct kv_item *)(segment + (word & KV_SEGMENT_MASK)) : 0;
}

static __always_inline __u64 kv_distance(const struct kv_dpu_store *store, __u64 word)
{
	return (store->tail - word) & KV_LOG_OFFSET_MASK;
}

/* ---- Finding: without branches where they could not be predicted, which saves the verifier from them, too ---- */

static __always_inline int kv_item_has_key(const struct kv_item *item, const struct kv_key *key);
static __always_inline void kv_match_line(const struct kv_line *line, __u32 first_way, __u32 ways_before, __u64 tag,
					  __u64 tail, struct kv_place *place);

/*
 * The live item of a key whose first eight bytes agree, as kv_item_has_key() sees it. What is found is left in the
 * store, for kv_place_*(). On the stack the verifier would follow each outcome by itself, and where clang writes a slot
 * on some ways only, also what another loop had left in it, once for each number of requests ("BPF program is too
 * large").
 */
static __always_inline void kv_find(__u32 store_index, struct kv_dpu_store *store, const struct kv_key *key)
{
	__u32 bucket = kv_bucket_of(key->hash);
	__u64 tag = kv_tag_of(key->hash);
	__u32 ways_before = KV_BUCKET_WAYS;
	int turn;

	KV_WRITE_ONCE(store->place_own, 0);
	KV_KEEP_LOOP
	for (turn = 0; turn < KV_TAG_TURNS; turn++) {
		const struct kv_line *line = kv_line_of(store_index, bucket, 0);
		struct kv_place place = {};
		const struct kv_item *item;

		if (!line)
			break;
		kv_match_line(line, 0, ways_before, tag, store->tail, &place);
		if (line->words[KV_LINE_WORDS - 1]) {
			line = kv_line_of(store_index, bucket, KV_LINE_WORDS);
			if (line)
				kv_match_line(line, KV_LINE_WORDS, ways_before, tag, store->tail, &place);
		}
		KV_WRITE_ONCE(store->place_word, place.word);
		if (place.word == 0)
			break;
		KV_WRITE_ONCE(store->place_way, place.way);
		ways_before = KV_READ_ONCE(store->place_way) & KV_WAY_MASK;
		item = kv_item_of(store_index, place.word);
		if (item && kv_item_has_key(item, key)) {
			KV_WRITE_ONCE(store->place_own, 1);
			break;
		}
	}
}

/* The word of the item that kv_find() found; 0 if there is none. */
static __always_inline __u64 kv_place_word(const struct kv_dpu_store *store)
{
	return KV_READ_ONCE(store->place_word);
}

/* The way of that word. */
static __always_inline __u32 kv_place_way(const struct kv_dpu_store *store)
{
	__u32 way = KV_READ_ONCE(store->place_way);

	KV_OPAQUE(way);
	return way & KV_WAY_MASK;
}

/* 1 if that item is the key's own; 0 if there is none, or another's, which must make room for the key. */
static __always_inline __u32 kv_place_is_own(const struct kv_dpu_store *store)
{
	return KV_READ_ONCE(store->place_own);
}

/* The last of a line's words, and of the bucket's first `ways_before`, that has the tag and is alive, if there is. */
static __always_inline void kv_match_line(const struct kv_line *line, __u32 first_way, __u32 ways_before, __u64 tag,
					  __u64 tail, struct kv_place *place)
{
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < KV_LINE_WORDS; i++) {
		__u64 word = line->words[i];
		__u64 dead = kv_is_below(KV_LOG_BYTES, (tail - word) & KV_LOG_OFFSET_MASK);
		__u64 late = kv_is_below(ways_before, first_way + i + 1);
		__u64 hit = -kv_is_below((word >> KV_LOG_OFFSET_BITS ^ tag) | dead | late, 1);

		KV_OPAQUE(hit);
		place->word ^= (place->word ^ word) & hit;
		place->way ^= (place->way ^ (first_way + i)) & hit;
	}
}

/* Up to the ninth byte: for a longer key kv_rest_is_equal() has the last word. */
static __always_inline int kv_item_has_key(const struct kv_item *item, const struct kv_key *key)
{
	return item->key_hash == key->hash && item->kv_length >> KV_LENGTH_KEY_SHIFT == key->bytes &&
	       item->words[0] == key->first_word;
}

/* Whether a long key agrees with an item's from the ninth byte on. Without branches, for the verifier's sake. */
static __always_inline int kv_rest_is_equal(const struct kv_item *item, const struct kv_key *key)
{
	__u32 whole_words = key->bytes / 8;
	__u32 last_bytes = key->bytes % 8;
	__u32 last_offset = key->bytes & ~7u & KV_KEY_MAX;
	__u64 different = *(const __u64 *)((const __u8 *)item->words + last_offset) ^
			  *(const __u64 *)(key->rest - 8 + last_offset);
	int i;

	different = different << (56 - 8 * last_bytes) << 8; /* not what follows the key, nor all of it at once */
#pragma clang loop unroll(full)
	for (i = 1; i < KV_KEY_WORDS - 1; i++)
		different |=
			(item->words[i] ^ *(const __u64 *)(key->rest + (i - 1) * 8)) & -kv_is_below(i, whole_words);
	return different == 0;
}

/* The last of a line's words that has the tag, dead or alive, or 0: what kv_match_line() finds most often, for less. */
static __always_inline __u64 kv_guess_word(const struct kv_line *line, __u64 tag)
{
	__u64 guess = 0;
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < KV_LINE_WORDS; i++) {
		__u64 hit = -kv_is_below(line->words[i] >> KV_LOG_OFFSET_BITS ^ tag, 1);

		KV_OPAQUE(hit);
		guess ^= (guess ^ line->words[i]) & hit;
	}
	return guess;
}

/* ---- Appending ---- */

/* Make room at the tail; the entry's 48-bit offset. From here on what it overwrites counts as gone. */
static __always_inline __u64 kv_append(struct kv_dpu_store *store, __u32 entry_bytes)
{
	__u64 tail = store->tail;

	if ((tail & (KV_SEGMENT_BYTES - 1)) + entry_bytes > KV_SEGMENT_BYTES)
		tail = (tail | (KV_SEGMENT_BYTES - 1)) + 1;
	store->tail = tail + entry_bytes;
	store->appended++;
	return tail & KV_LOG_OFFSET_MASK;
}

/* The way for a new key's word: where a dead item's is, else a free one, else where the oldest item's is. */
static __always_inline __u32 kv_way_for_new(__u32 store_index, struct kv_dpu_store *store, __u64 key_hash)
{
	__u32 bucket = kv_bucket_of(key_hash);
	__u64 oldest_distance = 0, oldest = 0, used = 0;
	int way;

	KV_KEEP_LOOP
	for (way = 0; way < KV_BUCKET_WAYS; way++) {
		const __u64 *words = kv_way_of(store_index, bucket, way);
		__u64 word = words ? *words : 0;
		__u64 is_used = kv_is_below(0, word >> 1);
		__u64 distance = (store->tail - word) & KV_LOG_OFFSET_MASK & -is_used;
		__u64 older = -kv_is_below(oldest_distance, distance);

		KV_OPAQUE(older);
		oldest_distance ^= (oldest_distance ^ distance) & older;
		oldest ^= (oldest ^ way) & older;
		used += is_used;
	}
	oldest_distance = KV_UNKNOWN(store, oldest_distance);
	oldest = KV_UNKNOWN(store, oldest);
	used = KV_UNKNOWN(store, used);
	if (oldest_distance > KV_LOG_BYTES) {
		store->cleanup++;
		store->set_new++;
		return oldest;
	}
	if (used < KV_BUCKET_WAYS) {
		store->set_new++;
		return used;
	}
	store->set_evicted++;
	return oldest;
}

/* ---- Removing ---- */

/* Clear the word that kv_find() found. The bucket's last one takes its place: words in use stay a prefix of it. */
static __always_inline void kv_remove_word(__u32 store_index, const struct kv_dpu_store *store, __u64 key_hash)
{
	__u32 bucket = kv_bucket_of(key_hash);
	const struct kv_line *first = kv_line_of(store_index, bucket, 0);
	const struct kv_line *second = kv_line_of(store_index, bucket, KV_LINE_WORDS);
	__u64 *last, *hole;
	__u32 last_way = KV_WAY_MASK; /* -1 in four bits */
	int i;

	if (!first || !second)
		return;
#pragma clang loop unroll(full)
	for (i = 0; i < KV_LINE_WORDS; i++)
		last_way += kv_is_below(0, first->words[i] >> 1) + kv_is_below(0, second->words[i] >> 1);
	KV_OPAQUE(last_way);
	last = kv_way_of(store_index, bucket, last_way & KV_WAY_MASK);
	hole = kv_way_of(store_index, bucket, kv_place_way(store));
	if (!last || !hole)
		return;
	*hole = *last;
	*last = 0;
}

/*
 * Forget all items at once: a tail so far ahead leaves no word alive. 0: not before the cleanup has gone on, see
 * kv_cleanup().
 */
static __always_inline int kv_forget_all(struct kv_dpu_store *store)
{
	if (store->tail - store->round_tail > KV_ROUND_BYTES_MAX)
		return 0;
	store->tail = (store->tail | (KV_SEGMENT_BYTES - 1)) + 1 + KV_LOG_BYTES;
	return 1;
}

/* ---- Cleanup ---- */

static __always_inline void kv_clean_bucket(__u32 store_index, struct kv_dpu_store *store,
					    const struct kv_dpu_queue *queue);

/*
 * Drop the words of dead items: a bucket for each item appended by this batch, up to KV_CLEANUP_BUCKETS. It must find
 * each before the tail is 2^48 bytes past the item, where a dead word would look like a new one. In a round through the
 * index, which is of 2^26 buckets at most, the tail moves by
 *   - less than 2^42 bytes of items: for each bucket, KV_BATCH_MAX / KV_CLEANUP_BUCKETS of them are appended at most,
 *     of less than 2^13 bytes with what they skip;
 *   - less than 2^46 + 2^43 bytes in all: RESET, which moves it by less than 2^32, is refused once the round has moved
 *     it by more than KV_ROUND_BYTES_MAX, and items follow. Refused or not, RESET drives the cleanup as well.
 * A word dies when the tail is at most 2^32 bytes past it, or by a RESET, and is dropped within one round from then on,
 * which touches two of these: less than 2^47 + 2^45 bytes past it.
 */
static __always_inline void kv_cleanup(__u32 store_index, struct kv_dpu_store *store, __u64 appended,
				       const struct kv_dpu_queue *queue)
{
	__u64 due = appended;
	int i;

	KV_KEEP_LOOP
	for (i = 0; i < KV_CLEANUP_BUCKETS; i++) {
		if (due == 0)
			break;
		due--;
		kv_clean_bucket(store_index, store, queue);
	}
}

/* Live words move to the front; the places behind them become 0. */
static __always_inline void kv_clean_bucket(__u32 store_index, struct kv_dpu_store *store,
					    const struct kv_dpu_queue *queue)
{
	__u32 bucket = store->cleaned++ % KV_DPU_BUCKETS;
	__u32 kept = KV_UNKNOWN_ZERO(queue);
	__u64 begins_round = -kv_is_below(bucket, 1);
	int turn;

	store->round_tail ^= (store->round_tail ^ store->tail) & begins_round;
	KV_KEEP_LOOP
	for (turn = 0; turn < KV_BUCKET_WAYS; turn++) {
		__u64 *words = kv_way_of(store_index, bucket, turn);
		__u64 word;

		if (!words)
			break;
		word = *words;
		if (word == 0)
			break;
		*words = 0;
		if (kv_distance(store, word) > KV_LOG_BYTES) {
			store->cleanup++;
			continue;
		}
		KV_OPAQUE(kept);
		kept &= KV_WAY_MASK;
		words = kv_way_of(store_index, bucket, kept);
		if (words)
			*words = word;
		kept++;
	}
}

#endif
