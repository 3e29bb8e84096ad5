/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * dpu_store.h - stores in BPF maps, for engines that process inside XDP: MICA's lossy index and circular log. Layout
 * and terms are those of the native core (dpukv_xdp/_core/store/hot_path.h). Settings, filled in at
 * load except the first one:
 *
 *	KV_DPU_SHARED		1: all engines in XDP share one store; 0: each has its own
 *	KV_DPU_BUCKETS		buckets of each store's index
 *	KV_DPU_LINES		lines of each store's index: two for each bucket
 *	KV_DPU_SEGMENTS		segments of each store's log: a power of two, and at least 2, because the verifier knows
 *				too much of a single one
 *	KV_DPU_SEGMENT_MASK	KV_DPU_SEGMENTS - 1
 *	KV_DPU_LOG_BYTES	bytes of each store's log
 *	KV_DPU_SHORT_LINES	lines of each inline store (dpu_short_items.h), 0 for a cache; filled in, so that the
 *				verifier walks a cache's program without them
 *
 * The log is cut into segments, one map value each; no item crosses a segment's end. This store may lose more than the
 * native one: a bucket keeps at most KV_TAG_TURNS items of one 16-bit tag, and of several long keys with the same hash,
 * length and first eight bytes only the one stored last. Dead words are cleaned up after a batch, not after each
 * append. No key is ever in a bucket twice, so that no stale item can be found.
 *
 * While a frame's requests are processed, their core has the store to itself (kv_store_claim()): nothing else locks.
 */
#ifndef KV_DPU_STORE_H
#define KV_DPU_STORE_H

#include "abi/store_layout.h"
#include "abi/wire_mica2.h"
#include "base/maps.h"

#define KV_SEGMENT_MASK (KV_SEGMENT_BYTES - 8u) /* mask of the offset of a word in its segment */
#define KV_WAY_MASK 15u
#define KV_TAG_TURNS 3 /* most live items of one tag in a bucket */
#define KV_KEY_WORDS ((KV_KEY_MAX + 7) / 8)
#define KV_CLAIM_TURNS 512   /* attempts to claim a store that another core works on */
#define KV_CLAIM_NS 20000    /* longest time for these attempts, in ns */
#define KV_CLEANUP_BUCKETS 8 /* most buckets cleaned up after a batch */
#define KV_ROUND_BYTES_MAX \
	(1ULL << 46) /* bytes that the tail may move in a round of the cleanup before RESET is refused */
_Static_assert(KV_BUCKET_WAYS == KV_WAY_MASK, "the last word of a bucket is not an item's");

/* Bytes instead of structures because of bcc, see maps.h. */
enum {
	KV_LINE_BYTES = sizeof(struct kv_line),
	KV_SHORT_LINE_BYTES = sizeof(struct kv_short_line),
	KV_SEGMENT_ROOM = KV_SEGMENT_BYTES + KV_SEGMENT_SLACK,
	KV_DPU_STORE_REST = sizeof(struct kv_dpu_store) - sizeof(__u32)
};
struct kv_line_bytes {
	__u8 bytes[KV_LINE_BYTES];
};
struct kv_short_line_bytes {
	__u8 bytes[KV_SHORT_LINE_BYTES];
};
struct kv_segment_bytes {
	__u8 bytes[KV_SEGMENT_ROOM];
};
struct kv_dpu_store_bytes {
	struct bpf_spin_lock lock; /* the kernel looks for it by its type */
	__u8 rest[KV_DPU_STORE_REST];
};

/* struct kv_line: for each store the first lines of its buckets, then the second ones. BPF_F_MMAPABLE aligns the array
 * to a page, so that a line is a cache line. */
BPF_F_TABLE("array", __u32, struct kv_line_bytes, kv_dpu_lines, KV_ENTRIES_AT_LOAD, BPF_F_MMAPABLE);
/* Store 0's segments, then store 1's ... */
BPF_F_TABLE("array", __u32, struct kv_segment_bytes, kv_dpu_segments, KV_ENTRIES_AT_LOAD, BPF_F_MMAPABLE);
/* struct kv_short_line: store 0's lines, then store 1's ...; a cache has one entry that nothing uses. */
BPF_F_TABLE("array", __u32, struct kv_short_line_bytes, kv_dpu_short_lines, KV_ENTRIES_AT_LOAD, BPF_F_MMAPABLE);
BPF_ARRAY(kv_dpu_stores, struct kv_dpu_store_bytes, KV_ENTRIES_AT_LOAD); /* struct kv_dpu_store */

/*
 * Return an element of each table and of kv_partitions. Defined in kv_receive.c: bcc rewrites map calls in its main
 * file only ("unknown opcode 8d" elsewhere).
 */
static __always_inline void *kv_line_at(__u32 index);
static __always_inline void *kv_segment_at(__u32 index);
static __always_inline void *kv_short_line_at(__u32 number);
static __always_inline void *kv_store_at(__u32 number);
static __always_inline void *kv_partition_table_at(__u32 index);

/* A request's key: its first eight bytes in a zero-padded word; a long one lies in the packet's body. */
struct kv_key {
	__u64 hash;
	__u64 first_word;
	__u32 bytes;
};

/* An item's word in the index, and its way in the bucket. */
struct kv_place {
	__u64 word; /* 0: none */
	__u32 way;
};

/* ---- A store, for one frame ---- */

static __always_inline int kv_try_to_own(struct kv_dpu_store_bytes *leaf);

/* Claim the store for the current core. Return 0 if another core has held it for too long. */
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

/* Give the store up again. */
static __always_inline void kv_store_release(struct kv_dpu_store *store)
{
	KV_PUBLISH_BARRIER();
	KV_WRITE_ONCE(store->owner, 0);
}

/*
 * Return whether the store is claimed now. The lock protects the owner only: no helper may be called while it is held.
 */
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
	return KV_WITH_SETTING(KV_STORE_BUCKET_HASH(key_hash), "*=", KV_DPU_BUCKETS) >> 32;
}

/* Return the line with a way of a bucket. It is never NULL, but the verifier demands a check. */
static __always_inline struct kv_line *kv_line_of(const struct kv_dpu_store *store, __u32 bucket, __u32 way)
{
	__u32 index = bucket;

	if (!KV_DPU_SHARED)
		index += KV_WITH_SETTING(store->number, "*=", KV_DPU_LINES);
	if (way >= KV_LINE_WORDS)
		index = KV_WITH_SETTING(index, "+=", KV_DPU_BUCKETS);
	return kv_line_at(index);
}

static __always_inline __u64 *kv_way_of(const struct kv_dpu_store *store, __u32 bucket, __u32 way)
{
	struct kv_line *line = kv_line_of(store, bucket, way);

	way &= KV_LINE_WORDS - 1;
	return line ? &line->words[way] : 0;
}

/* Return the segment that a word of the index points into. */
static __always_inline __u8 *kv_segment_of(const struct kv_dpu_store *store, __u64 word)
{
	__u32 index = KV_WITH_SETTING(word / KV_SEGMENT_BYTES, "&=", KV_DPU_SEGMENT_MASK);

	if (!KV_DPU_SHARED)
		index += KV_WITH_SETTING(store->number, "*=", KV_DPU_SEGMENTS);
	return kv_segment_at(index);
}

/* Return the item that a word of the index points to. Any word is allowed, so the caller must compare hash and key. */
static __always_inline struct kv_item *kv_item_of(const struct kv_dpu_store *store, __u64 word)
{
	__u8 *segment = kv_segment_of(store, word);

	return segment ? (struct kv_item *)(segment + (word & KV_SEGMENT_MASK)) : 0;
}

static __always_inline __u64 kv_distance(const struct kv_dpu_store *store, __u64 word)
{
	return (store->tail - word) & KV_LOG_OFFSET_MASK;
}

/* ---- Finding: without unpredictable branches, which also saves verifier states ---- */

static __always_inline int kv_item_has_key(const struct kv_item *item, const struct kv_key *key);
static __always_inline void kv_match_line(const struct kv_line *line, __u32 first_way, __u32 ways_before, __u64 tag,
					  __u64 tail, struct kv_place *place);

/*
 * Find the live item of a key as kv_item_has_key() compares it, and store the result for the kv_place_*() functions.
 * The result is in the map because the verifier tracks the stack: it would walk each outcome separately, and also the
 * values that an earlier loop left in stack slots that clang writes on some paths only ("BPF program is too large").
 */
static __always_inline void kv_find(struct kv_dpu_store *store, const struct kv_key *key)
{
	__u32 bucket = kv_bucket_of(key->hash);
	__u64 tag = kv_tag_of(key->hash);
	__u32 ways_before = KV_BUCKET_WAYS;
	int turn;

	KV_WRITE_ONCE(store->place_own, 0);
	KV_WRITE_ONCE(store->place_word, 0);
	KV_KEEP_LOOP
	for (turn = 0; turn < KV_TAG_TURNS; turn++) {
		const struct kv_line *line = kv_line_of(store, bucket, 0);
		struct kv_place place = {};
		const struct kv_item *item;

		if (!line || (KV_DPU_SHORT_LINES && !KV_READ_ONCE(store->had_long)))
			break;
		kv_match_line(line, 0, ways_before, tag, store->tail, &place);
		if (line->words[KV_LINE_WORDS - 1]) {
			line = kv_line_of(store, bucket, KV_LINE_WORDS);
			if (line)
				kv_match_line(line, KV_LINE_WORDS, ways_before, tag, store->tail, &place);
		}
		KV_WRITE_ONCE(store->place_word, place.word);
		if (place.word == 0)
			break;
		KV_WRITE_ONCE(store->place_way, place.way);
		ways_before = KV_READ_ONCE(store->place_way) & KV_WAY_MASK;
		item = kv_item_of(store, place.word);
		if (item && kv_item_has_key(item, key)) {
			KV_WRITE_ONCE(store->place_own, 1);
			break;
		}
	}
}

/* Return the word of the item that kv_find() found, or 0. */
static __always_inline __u64 kv_place_word(const struct kv_dpu_store *store)
{
	return KV_READ_ONCE(store->place_word);
}

/* Return the way of that word. */
static __always_inline __u32 kv_place_way(const struct kv_dpu_store *store)
{
	__u32 way = KV_READ_ONCE(store->place_way);

	KV_OPAQUE(way);
	return way & KV_WAY_MASK;
}

/* Return 1 if that item has the key; 0 if there is none, or one of another key, which a new item must replace. */
static __always_inline __u32 kv_place_is_own(const struct kv_dpu_store *store)
{
	return KV_READ_ONCE(store->place_own);
}

/* Find the last live word with the tag in a line, among the bucket's first `ways_before` ways. */
static __always_inline void kv_match_line(const struct kv_line *line, __u32 first_way, __u32 ways_before, __u64 tag,
					  __u64 tail, struct kv_place *place)
{
	__u64 log_bytes = KV_DPU_LOG_BYTES;
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < KV_LINE_WORDS; i++) {
		__u64 word = line->words[i];
		__u64 dead = kv_is_below(log_bytes, (tail - word) & KV_LOG_OFFSET_MASK);
		__u64 late = kv_is_below(ways_before, first_way + i + 1);
		__u64 is_hit = kv_is_below((word >> KV_LOG_OFFSET_BITS ^ tag) | dead | late, 1);

		KV_OPAQUE(is_hit);
		place->word ^= (place->word ^ word) * is_hit;
		place->way ^= (place->way ^ (first_way + i)) * is_hit;
	}
}

/* Compare hash, length and first eight bytes; kv_rest_is_equal() compares the rest of a longer key. */
static __always_inline int kv_item_has_key(const struct kv_item *item, const struct kv_key *key)
{
	return item->key_hash == key->hash && item->kv_length >> KV_LENGTH_KEY_SHIFT == key->bytes &&
	       item->words[0] == key->first_word;
}

/*
 * Return whether a long key equals the item's from the ninth byte on. `text` is the whole key, in memory with room for
 * KV_KEY_MAX bytes. Without branches, which would cost verifier states.
 */
static __always_inline int kv_rest_is_equal(const struct kv_item *item, const __u8 *text, __u32 key_bytes)
{
	__u32 whole_words = key_bytes / 8;
	__u32 last_bytes = key_bytes % 8;
	__u32 last_offset = key_bytes & ~7u & KV_KEY_MAX;
	__u64 different =
		*(const __u64 *)((const __u8 *)item->words + last_offset) ^ *(const __u64 *)(text + last_offset);
	int i;

	different = different << (56 - 8 * last_bytes)
			      << 8; /* drop the bytes behind the key; a single shift by 64 would be undefined */
#pragma clang loop unroll(full)
	for (i = 1; i < KV_KEY_WORDS - 1; i++)
		different |= (item->words[i] ^ *(const __u64 *)(text + i * 8)) & -kv_is_below(i, whole_words);
	return different == 0;
}

/* Return the last word with the tag in a line, dead or alive, or 0: a cheap guess at the result of kv_match_line(). */
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

/* Reserve room at the tail. Return the entry's 48-bit offset. Items that it overlaps are dead from here on. */
static __always_inline __u64 kv_append(struct kv_dpu_store *store, __u32 entry_bytes)
{
	__u64 tail = store->tail;

	if ((tail & (KV_SEGMENT_BYTES - 1)) + entry_bytes > KV_SEGMENT_BYTES)
		tail = (tail | (KV_SEGMENT_BYTES - 1)) + 1;
	store->tail = tail + entry_bytes;
	store->appended++;
	return tail & KV_LOG_OFFSET_MASK;
}

/* The choice among a bucket's ways for a new key's word. */
struct kv_way_choice {
	__u64 oldest_distance; /* from the tail to the oldest item in use */
	__u64 oldest;	       /* its way */
	__u64 used;	       /* ways in use, a prefix of the bucket */
};

static __always_inline void kv_look_for_oldest(const struct kv_line *line, __u32 first_way, __u64 tail,
					       struct kv_way_choice *choice);

/* Return the way for a new key's word: that of a dead item, else a free one, else that of the oldest item. */
static __always_inline __u32 kv_way_for_new(struct kv_dpu_store *store, __u64 key_hash)
{
	__u32 bucket = kv_bucket_of(key_hash);
	const struct kv_line *first = kv_line_of(store, bucket, 0);
	const struct kv_line *second = kv_line_of(store, bucket, KV_LINE_WORDS);
	struct kv_way_choice choice = {};

	if (!first || !second)
		return 0;
	kv_look_for_oldest(first, 0, store->tail, &choice);
	kv_look_for_oldest(second, KV_LINE_WORDS, store->tail, &choice);
	choice.oldest_distance = KV_UNKNOWN(store, choice.oldest_distance);
	choice.oldest = KV_UNKNOWN(store, choice.oldest);
	choice.used = KV_UNKNOWN(store, choice.used);
	if (choice.oldest_distance > KV_DPU_LOG_BYTES) {
		store->cleanup++;
		store->set_new++;
		return choice.oldest;
	}
	if (choice.used < KV_BUCKET_WAYS) {
		store->set_new++;
		return choice.used;
	}
	store->set_evicted++;
	return choice.oldest;
}

/* Look at the ways of one line, without a branch: a loop over ways cost the verifier a third of dpu-only. */
static __always_inline void kv_look_for_oldest(const struct kv_line *line, __u32 first_way, __u64 tail,
					       struct kv_way_choice *choice)
{
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < KV_LINE_WORDS; i++) {
		__u64 word = line->words[i];
		__u64 is_used = kv_is_below(0, word >> 1) & kv_is_below(first_way + i, KV_BUCKET_WAYS);
		__u64 distance, is_older;

		KV_OPAQUE(is_used);
		distance = ((tail - word) & KV_LOG_OFFSET_MASK) * is_used;
		is_older = kv_is_below(choice->oldest_distance, distance);
		KV_OPAQUE(is_older);
		choice->oldest_distance ^= (choice->oldest_distance ^ distance) * is_older;
		choice->oldest ^= (choice->oldest ^ (first_way + i)) * is_older;
		choice->used += is_used;
	}
}

/* ---- Removing ---- */

/* Clear the word that kv_find() found. The bucket's last word takes its place, so that words in use stay a prefix. */
static __always_inline void kv_remove_word(const struct kv_dpu_store *store, __u64 key_hash)
{
	__u32 bucket = kv_bucket_of(key_hash);
	const struct kv_line *first = kv_line_of(store, bucket, 0);
	const struct kv_line *second = kv_line_of(store, bucket, KV_LINE_WORDS);
	__u64 *last, *hole;
	__u32 last_way = KV_WAY_MASK; /* -1 in four bits */
	int i;

	if (!first || !second)
		return;
#pragma clang loop unroll(full)
	for (i = 0; i < KV_LINE_WORDS; i++)
		last_way += kv_is_below(0, first->words[i] >> 1) + kv_is_below(0, second->words[i] >> 1);
	KV_OPAQUE(last_way);
	last = kv_way_of(store, bucket, last_way & KV_WAY_MASK);
	hole = kv_way_of(store, bucket, kv_place_way(store));
	if (!last || !hole)
		return;
	*hole = *last;
	*last = 0;
}

/*
 * Forget all items by moving the tail so far ahead that no word is alive, and raising the lines' epoch. Return 0 if the
 * cleanup must go on first, see kv_cleanup().
 */
static __always_inline int kv_forget_all(struct kv_dpu_store *store)
{
	if (store->tail - store->round_tail > KV_ROUND_BYTES_MAX)
		return 0;
	store->tail = (store->tail | (KV_SEGMENT_BYTES - 1)) + 1 + KV_DPU_LOG_BYTES;
	store->epoch++;
	return 1;
}

/* ---- Cleanup ---- */

static __always_inline void kv_clean_bucket(struct kv_dpu_store *store, const struct kv_dpu_queue *queue);
static __always_inline void kv_clean_short_line(struct kv_dpu_store *store);

/*
 * Drop the words of dead items: one bucket for each item that this batch appended, up to KV_CLEANUP_BUCKETS. Each dead
 * word must be dropped before the tail is 2^48 bytes past its item, where it would look alive again. In a round through
 * the index, which has at most 2^26 buckets, the tail moves by
 *   - less than 2^42 bytes of items: for each bucket, KV_BATCH_MAX / KV_CLEANUP_BUCKETS of them are appended at most,
 *     each of less than 2^13 bytes including the skipped rest of a segment;
 *   - less than 2^46 + 2^43 bytes in all: RESET, which moves it by less than 2^32, is refused once the round has moved
 *     it by more than KV_ROUND_BYTES_MAX, and items follow. Refused or not, RESET drives the cleanup as well.
 * A word dies when the tail is at most 2^32 bytes past it, or by a RESET, and is dropped within one round from then on,
 * which touches two of these: less than 2^47 + 2^45 bytes past it.
 */
static __always_inline void kv_cleanup(struct kv_dpu_store *store, __u64 appended, const struct kv_dpu_queue *queue)
{
	__u64 due = appended;
	int i;

	KV_KEEP_LOOP
	for (i = 0; i < KV_CLEANUP_BUCKETS; i++) {
		if (due == 0)
			break;
		due--;
		kv_clean_bucket(store, queue);
		if (KV_DPU_SHORT_LINES)
			kv_clean_short_line(store);
	}
}

/* Move the live words of the next bucket to its front and clear the others. */
static __always_inline void kv_clean_bucket(struct kv_dpu_store *store, const struct kv_dpu_queue *queue)
{
	__u32 bucket = store->cleaned++ % KV_DPU_BUCKETS;
	__u32 kept = KV_UNKNOWN_ZERO(queue);
	__u64 begins_round = -kv_is_below(bucket, 1);
	int turn;

	store->round_tail ^= (store->round_tail ^ store->tail) & begins_round;
	KV_KEEP_LOOP
	for (turn = 0; turn < KV_BUCKET_WAYS; turn++) {
		__u64 *words = kv_way_of(store, bucket, turn);
		__u64 word;

		if (!words)
			break;
		word = *words;
		if (word == 0)
			break;
		*words = 0;
		if (kv_distance(store, word) > KV_DPU_LOG_BYTES) {
			store->cleanup++;
			continue;
		}
		KV_OPAQUE(kept);
		kept &= KV_WAY_MASK;
		words = kv_way_of(store, bucket, kept);
		if (words)
			*words = word;
		kept++;
	}
}

#endif
