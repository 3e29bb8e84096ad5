/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store.h - one partition in BPF maps, for engines that process inside XDP: MICA's lossy index and circular log, laid
 * out as the native core's (dpukv_xdp/_core/store.h), whose terms are used here. Settings, passed with -D:
 *
 *	KV_DPU_BUCKETS	buckets of each engine's index
 *	KV_DPU_SEGMENTS	segments of each engine's log: a power of two, and 2 at least where there is one engine
 *
 * The log is cut into segments, one map value each; an item never crosses from one into the next. Otherwise it differs
 * from the native store in what it may lose: a bucket keeps at most KV_TAG_TURNS items of one 16-bit tag, and of long
 * keys that agree in hash, length and first eight bytes only the one stored last; and dead words are cleaned up after
 * a batch, not after each append. No key is ever in a bucket twice: nothing stale can be found.
 *
 * One frame's requests have a partition to themselves (kv_store_claim): no locks below that.
 */
#ifndef KV_STORE_H
#define KV_STORE_H

#include "maps.h"

_Static_assert((KV_DPU_SEGMENTS & (KV_DPU_SEGMENTS - 1)) == 0, "segments are picked by a mask");
_Static_assert(KV_DPU_SEGMENTS > 1 || KV_DPU_ENGINES > 1, "of the only segment the verifier knows too much");

#define KV_LOG_BYTES ((__u64)KV_DPU_SEGMENTS * KV_SEGMENT_BYTES)
#define KV_SEGMENT_MASK (KV_SEGMENT_BYTES - 8u) /* offset of a word in its segment */
#define KV_WAY_MASK 15u
#define KV_TAG_TURNS 3 /* live items of one bucket and one tag */
#define KV_KEY_WORDS ((KV_KEY_MAX + 7) / 8)
#define KV_CLAIM_TURNS 512   /* looks at a partition that another core works on */
#define KV_CLAIM_NS 20000    /* and how long at most */
#define KV_CLEANUP_BUCKETS 8 /* visited after a batch, at most */
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

/* struct kv_line: for each engine the first lines of its buckets, then the second ones. Mmapable arrays start on a
 * page, so that a line is a cache line; others do not. */
BPF_F_TABLE("array", __u32, struct kv_line_bytes, kv_dpu_lines, KV_DPU_ENGINES * 2 * KV_DPU_BUCKETS, BPF_F_MMAPABLE);
/* Engine 0's segments, then engine 1's ... */
BPF_F_TABLE("array", __u32, struct kv_segment_bytes, kv_dpu_segments, KV_DPU_ENGINES *KV_DPU_SEGMENTS, BPF_F_MMAPABLE);
/* struct kv_dpu_store, one for each engine. */
BPF_ARRAY(kv_dpu_stores, struct kv_dpu_store_bytes, KV_DPU_ENGINES);

/*
 * An element of each table, and of kv_partitions. They are in kv_receive.c: bcc rewrites map calls in its main file
 * only ("unknown opcode 8d" elsewhere).
 */
static __always_inline void *kv_line_at(__u32 index);
static __always_inline void *kv_segment_at(__u32 index);
static __always_inline void *kv_store_at(__u32 engine);
static __always_inline void *kv_partition_table_at(__u32 index);

/* A key as a request has it: up to eight bytes in a word, zero padded; of a longer one the packet's bytes. */
struct kv_key {
	__u64 hash;
	__u64 first_word;
	__u32 bytes;
	const __u8 *rest; /* from the ninth byte on, with room for KV_KEY_MAX */
};

/* Where a key is in the index. */
struct kv_place {
	__u64 word; /* of an item, 0 if there is none */
	__u32 way;  /* of that word */
	__u32 own;  /* 1 if the item is the key's own; 0 if another's, which must make room for the key */
};

/* ---- A partition, for one frame ---- */

static __always_inline int kv_try_to_own(struct kv_dpu_store_bytes *leaf);

/* Every core that receives an engine's frames runs this. 0: another core has used the partition for too long. */
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

/* Whether a < b, as 1 or 0, for numbers below 2^63: a subtraction, where clang would rather have a branch. */
static __always_inline __u64 kv_is_below(__u64 a, __u64 b)
{
	__u64 difference = a - b;

	KV_OPAQUE(difference);
	return difference >> 63;
}

/* KV_STORE_TAG(), likewise. */
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
static __always_inline struct kv_line *kv_line_of(__u32 engine, __u32 bucket, __u32 way)
{
	__u32 index = engine * 2 * KV_DPU_BUCKETS + bucket;

	if (way >= KV_LINE_WORDS)
		index += KV_DPU_BUCKETS;
	return kv_line_at(index);
}

static __always_inline __u64 *kv_way_of(__u32 engine, __u32 bucket, __u32 way)
{
	struct kv_line *line = kv_line_of(engine, bucket, way);

	way &= KV_LINE_WORDS - 1;
	return line ? &line->words[way] : 0;
}

/* The segment that a word of the index points into. */
static __always_inline __u8 *kv_segment_of(__u32 engine, __u64 word)
{
	return kv_segment_at(engine * KV_DPU_SEGMENTS + ((word / KV_SEGMENT_BYTES) & (KV_DPU_SEGMENTS - 1)));
}

/* The item there. Any word may be asked for: what is found must be compared. */
static __always_inline struct kv_item *kv_item_of(__u32 engine, __u64 word)
{
	__u8 *segment = kv_segment_of(engine, word);

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

/* The live item of a key whose first eight bytes agree, as kv_item_has_key() sees it. */
static __always_inline void kv_find(__u32 engine, struct kv_dpu_store *store, const struct kv_key *key,
				    struct kv_place *place)
{
	__u32 bucket = kv_bucket_of(key->hash);
	__u64 tag = kv_tag_of(key->hash);
	__u32 ways_before = KV_BUCKET_WAYS;
	int turn;

	place->own = 0;
	KV_KEEP_LOOP
	for (turn = 0; turn < KV_TAG_TURNS; turn++) {
		const struct kv_line *line = kv_line_of(engine, bucket, 0);
		const struct kv_item *item;

		place->word = 0;
		place->way = 0;
		if (!line)
			break;
		kv_match_line(line, 0, ways_before, tag, store->tail, place);
		if (line->words[KV_LINE_WORDS - 1]) {
			line = kv_line_of(engine, bucket, KV_LINE_WORDS);
			if (line)
				kv_match_line(line, KV_LINE_WORDS, ways_before, tag, store->tail, place);
		}
		if (place->word == 0)
			break;
		place->way = KV_UNKNOWN(store, place->way) & KV_WAY_MASK;
		item = kv_item_of(engine, place->word);
		if (item && kv_item_has_key(item, key)) {
			place->own = 1;
			break;
		}
		ways_before = place->way;
	}
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
static __always_inline __u32 kv_way_for_new(__u32 engine, struct kv_dpu_store *store, __u64 key_hash)
{
	__u32 bucket = kv_bucket_of(key_hash);
	__u64 oldest_distance = 0, oldest = 0, used = 0;
	int way;

	KV_KEEP_LOOP
	for (way = 0; way < KV_BUCKET_WAYS; way++) {
		const __u64 *words = kv_way_of(engine, bucket, way);
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

/* ---- Cleanup ---- */

static __always_inline void kv_clean_bucket(__u32 engine, struct kv_dpu_store *store, const struct kv_dpu_queue *queue);

/*
 * Drop the words of dead items: a bucket for each item appended by this batch, up to KV_CLEANUP_BUCKETS. A batch
 * appends KV_BATCH_MAX items at most, of two times KV_FRAME_MAX bytes at most with what they skip, so a round through
 * the index ends long before the tail is 2^48 bytes farther, where a dead word would look like a new one.
 */
static __always_inline void kv_cleanup(__u32 engine, struct kv_dpu_store *store, __u64 appended,
				       const struct kv_dpu_queue *queue)
{
	__u64 due = appended;
	int i;

	KV_KEEP_LOOP
	for (i = 0; i < KV_CLEANUP_BUCKETS; i++) {
		if (due == 0)
			break;
		due--;
		kv_clean_bucket(engine, store, queue);
	}
}

/* Live words move to the front; the places behind them become 0. */
static __always_inline void kv_clean_bucket(__u32 engine, struct kv_dpu_store *store, const struct kv_dpu_queue *queue)
{
	__u32 bucket = store->cleaned++ % KV_DPU_BUCKETS;
	__u32 kept = KV_UNKNOWN_ZERO(queue);
	int turn;

	KV_KEEP_LOOP
	for (turn = 0; turn < KV_BUCKET_WAYS; turn++) {
		__u64 *words = kv_way_of(engine, bucket, turn);
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
		words = kv_way_of(engine, bucket, kept);
		if (words)
			*words = word;
		kept++;
	}
}

#endif
