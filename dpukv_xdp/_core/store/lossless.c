/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * lossless.c - a lossless store's memory for items, and its overflow buckets.
 *
 * An item takes 8 bytes more than in a log, for the allocator's header: an 8/8 item takes 40. As in a log in shared
 * mode, words are written whole: a reader may still read an item whose memory has been given back and taken again. It
 * reads mapped memory only, and the version of the item's bucket makes it discard the data.
 *
 * Free overflow buckets are those that were never used, and a list of those that were. The list is linked by their
 * first words, which have no tag; all other words are zero, so that a reader that still follows a chain into a free
 * bucket finds no item and no further bucket.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/wait.h"
#include "store/allocator.h"
#include "store/lossless.h"

_Static_assert(sizeof(struct kv_item) + KV_ROUNDUP8(KV_KEY_MAX) + KV_ROUNDUP8(KV_VALUE_MAX) <= KV_ALLOCATOR_TAKE_MAX,
	       "any item is one block");

/*
 * Main buckets per overflow bucket, and a minimum. At KV_ITEMS_PER_BUCKET hardly any overflow bucket is ever used; with
 * 12 items per bucket of 15, one per 6 main buckets is.
 */
#define BUCKETS_PER_OVERFLOW 10
#define OVERFLOW_MIN 16

/* As in keep_apart.h: left out to test the tests. */
#define CHECK_LOCK 8
#ifndef KV_STORE_UNCHECKED
#define KV_STORE_UNCHECKED 0
#endif

struct kv_lossless {
	_Alignas(KV_STORE_APART) uint32_t lock; /* in shared mode: protects all fields below */
	uint64_t free_bucket;			/* first bucket of the free list; 0: none */
	uint64_t fresh_bucket;			/* buckets from here on were never used */
	uint64_t overflowing;
	struct kv_allocator allocator;
};

static int lay_blocks(const struct kv_store *store, const uint64_t *starts);
static int lay_item(const struct kv_store *store, uint64_t offset, uint64_t *end, uint64_t next);
static void link_free_buckets(const struct kv_store *store, const uint64_t *chained);
static uint64_t next_start(const uint64_t *starts, uint64_t from, uint64_t words);
static void take_lock(const struct kv_store *store);
static void release_lock(const struct kv_store *store);
static uint64_t take_bucket(const struct kv_store *store);
static void give_bucket(const struct kv_store *store, uint64_t bucket);
static uint64_t last_bucket(const struct kv_store *store, uint64_t bucket, uint64_t *before);
static uint32_t words_in_use(const struct kv_store *store, uint64_t bucket);

uint64_t kv_lossless_overflow_buckets(uint64_t buckets)
{
	return buckets / BUCKETS_PER_OVERFLOW + OVERFLOW_MIN;
}

struct kv_lossless *kv_lossless_create(void)
{
	struct kv_lossless *lossless = aligned_alloc(KV_STORE_APART, sizeof(*lossless));

	return lossless ? memset(lossless, 0, sizeof(*lossless)) : NULL;
}

void kv_lossless_destroy(struct kv_lossless *lossless)
{
	free(lossless);
}

void kv_lossless_reset(const struct kv_store *store)
{
	struct kv_lossless *lossless = store->lossless;

	kv_allocator_reset(&lossless->allocator, store->log, store->log_bytes);
	lossless->free_bucket = 0;
	lossless->fresh_bucket = store->buckets;
	lossless->overflowing = 0;
}

uint64_t kv_lossless_overflowing(const struct kv_lossless *lossless)
{
	return __atomic_load_n(&lossless->overflowing, __ATOMIC_RELAXED);
}

/* ---- After another process ---- */

int kv_lossless_rebuild(const struct kv_store *store, const uint64_t *starts, const uint64_t *chained)
{
	link_free_buckets(store, chained);
	if (lay_blocks(store, starts)) {
		errno = EUCLEAN;
		return -1;
	}
	return 0;
}

/* Lay a block for each item, and free ones between them. */
static int lay_blocks(const struct kv_store *store, const uint64_t *starts)
{
	struct kv_allocator *allocator = &store->lossless->allocator;
	uint64_t words = store->log_bytes / 8 - 1, end = 0, start = next_start(starts, 0, words);

	kv_allocator_clear(allocator, store->log, store->log_bytes);
	/* Every block begins behind whole blocks. */
	if (start != words && start != 1 && 8 * (start - 1) < KV_ALLOCATOR_BLOCK_MIN)
		return -1;
	while (start < words) {
		uint64_t next = next_start(starts, start + 1, words);
		uint64_t behind = next < words ? 8 * (next - 1) : 8 * words;

		if (8 * (start - 1) > end)
			kv_allocator_lay_free(allocator, end, 8 * (start - 1) - end);
		if (lay_item(store, 8 * start, &end, behind))
			return -1;
		start = next;
	}
	if (end < 8 * words)
		kv_allocator_lay_free(allocator, end, 8 * words - end);
	return 0;
}

/*
 * Lay the block of an item at `offset`; the next item's block begins at `next`. If what is between them is too small
 * for a block it becomes the item's. *end becomes the block's end. Return -1 if the items overlap.
 */
static int lay_item(const struct kv_store *store, uint64_t offset, uint64_t *end, uint64_t next)
{
	struct kv_item *item = kv_store_item(store, offset);
	uint64_t block = offset - KV_ALLOCATOR_HEADER_BYTES, rest;

	*end = offset + kv_item_bytes(item);
	if (*end > next)
		return -1;
	rest = next - *end;
	if (rest < KV_ALLOCATOR_BLOCK_MIN) {
		item->value_capacity += (uint32_t)rest;
		*end = next;
	}
	kv_allocator_lay_used(&store->lossless->allocator, block, *end - block);
	return 0;
}

/* Empty the overflow buckets that are in no chain, and link those that have others in use behind them. */
static void link_free_buckets(const struct kv_store *store, const uint64_t *chained)
{
	struct kv_lossless *lossless = store->lossless;

	lossless->free_bucket = 0;
	lossless->fresh_bucket = store->buckets;
	lossless->overflowing = 0;
	for (uint64_t bucket = store->buckets_all; bucket-- > store->buckets;) {
		uint64_t i = bucket - store->buckets;

		if (chained[i / 64] >> i % 64 & 1) {
			lossless->overflowing++;
			if (lossless->fresh_bucket == store->buckets)
				lossless->fresh_bucket = bucket + 1;
			continue;
		}
		memset(kv_store_line(store, bucket, 0), 0, sizeof(struct kv_line));
		memset(kv_store_line(store, bucket, 1), 0, sizeof(struct kv_line));
		if (lossless->fresh_bucket > store->buckets) {
			*kv_store_way(store, bucket, 0) = lossless->free_bucket;
			lossless->free_bucket = bucket;
		}
	}
}

/* Return the first item's start from a word on, or `words` if there is none. */
static uint64_t next_start(const uint64_t *starts, uint64_t from, uint64_t words)
{
	uint64_t bits;

	if (from >= words)
		return words;
	bits = starts[from / 64] & (~0ULL << from % 64);
	for (uint64_t i = from / 64; i <= (words - 1) / 64; bits = starts[++i])
		if (bits)
			return 64 * i + (uint64_t)__builtin_ctzll(bits);
	return words;
}

/* ---- Memory for items ---- */

uint64_t kv_lossless_take(const struct kv_store *store, uint32_t entry_bytes, uint64_t *taken_bytes)
{
	uint64_t offset;

	take_lock(store);
	offset = kv_allocator_take(&store->lossless->allocator, entry_bytes, taken_bytes);
	release_lock(store);
	return offset;
}

void kv_lossless_give(const struct kv_store *store, uint64_t offset)
{
	kv_store_order(); /* no word refers to the item any more */
	take_lock(store);
	kv_allocator_give(&store->lossless->allocator, offset);
	release_lock(store);
}

uint64_t kv_lossless_shrink(const struct kv_store *store, uint64_t offset, uint32_t entry_bytes)
{
	uint64_t left_bytes;

	take_lock(store);
	left_bytes = kv_allocator_shrink(&store->lossless->allocator, offset, entry_bytes);
	release_lock(store);
	return left_bytes;
}

/* ---- Chains of buckets ---- */

int kv_lossless_put_word(const struct kv_store *store, uint64_t bucket, uint64_t word)
{
	uint64_t before, last = last_bucket(store, bucket, &before);
	uint32_t used = words_in_use(store, last);

	if (used == KV_BUCKET_WAYS) {
		uint64_t added = take_bucket(store);

		if (!added)
			return 0;
		kv_store_order(); /* its words are 0 before it is in the chain */
		kv_save(kv_store_overflow(store, last), added, 1);
		kv_store_order();
		last = added;
		used = 0;
	}
	kv_save(kv_store_way(store, last, used), word, 1);
	return 1;
}

void kv_lossless_remove_word(const struct kv_store *store, uint64_t bucket, __u64 *word)
{
	uint64_t before, last = last_bucket(store, bucket, &before);
	uint32_t used = words_in_use(store, last);
	__u64 *last_word = kv_store_way(store, last, used - 1);

	kv_save(word, kv_load(last_word, 1), 1);
	kv_store_order();
	kv_save(last_word, 0, 1);
	kv_store_order();
	if (used == 1 && last != bucket) {
		kv_save(kv_store_overflow(store, before), 0, 1);
		kv_store_order();
		give_bucket(store, last);
	}
}

uint64_t kv_lossless_empty(const struct kv_store *store, uint64_t bucket)
{
	uint64_t words = 0, before, word;

	for (;;) {
		uint64_t last = last_bucket(store, bucket, &before);
		uint32_t used = words_in_use(store, last);
		__u64 *last_word;

		if (used == 0)
			return words;
		last_word = kv_store_way(store, last, used - 1);
		word = kv_load(last_word, 1);
		kv_lossless_remove_word(store, bucket, last_word);
		kv_lossless_give(store, word & KV_LOG_OFFSET_MASK);
		words++;
	}
}

/* Return the last bucket of a chain and, in *before, the one before it. */
static uint64_t last_bucket(const struct kv_store *store, uint64_t bucket, uint64_t *before)
{
	uint64_t next;

	*before = bucket;
	while ((next = kv_load(kv_store_overflow(store, bucket), 1))) {
		*before = bucket;
		bucket = next;
	}
	return bucket;
}

static uint32_t words_in_use(const struct kv_store *store, uint64_t bucket)
{
	uint32_t used = 0;

	while (used < KV_BUCKET_WAYS && kv_load(kv_store_way(store, bucket, used), 1))
		used++;
	return used;
}

/* ---- Overflow buckets ---- */

/* Take an empty overflow bucket. Return its number, or 0 if there is none. */
static uint64_t take_bucket(const struct kv_store *store)
{
	struct kv_lossless *lossless = store->lossless;
	uint64_t bucket = 0;

	take_lock(store);
	if (lossless->free_bucket) {
		__u64 *link = kv_store_way(store, lossless->free_bucket, 0);

		bucket = lossless->free_bucket;
		lossless->free_bucket = kv_load(link, 1);
		kv_save(link, 0, 1);
	} else if (lossless->fresh_bucket < store->buckets_all) {
		bucket = lossless->fresh_bucket++;
	}
	if (bucket)
		__atomic_store_n(&lossless->overflowing, lossless->overflowing + 1, __ATOMIC_RELAXED);
	release_lock(store);
	return bucket;
}

/* Give an overflow bucket back whose words are all 0. */
static void give_bucket(const struct kv_store *store, uint64_t bucket)
{
	struct kv_lossless *lossless = store->lossless;

	take_lock(store);
	kv_save(kv_store_way(store, bucket, 0), lossless->free_bucket, 1);
	lossless->free_bucket = bucket;
	__atomic_store_n(&lossless->overflowing, lossless->overflowing - 1, __ATOMIC_RELAXED);
	release_lock(store);
}

/* ---- The lock ---- */

static void take_lock(const struct kv_store *store)
{
	uint32_t turns = 0;

	if (!store->versions || (KV_STORE_UNCHECKED & CHECK_LOCK))
		return;
	while (__atomic_exchange_n(&store->lossless->lock, 1, __ATOMIC_ACQUIRE))
		kv_wait_a_turn(&turns);
	/* A reader of anything written into this memory from now on sees all stores before it was given back, above all
	 * the new version of the bucket whose item was there. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

static void release_lock(const struct kv_store *store)
{
	if (store->versions)
		__atomic_store_n(&store->lossless->lock, 0, __ATOMIC_RELEASE);
}
