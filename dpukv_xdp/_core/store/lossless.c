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

struct kv_lossless *kv_lossless_create(const struct kv_store *store)
{
	struct kv_lossless *lossless = aligned_alloc(KV_STORE_APART, sizeof(*lossless));

	if (!lossless)
		return NULL;
	memset(lossless, 0, sizeof(*lossless));
	kv_allocator_reset(&lossless->allocator, store->log, store->log_bytes);
	lossless->fresh_bucket = store->buckets;
	return lossless;
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
		kv_save(kv_store_overflow(store, last), added, 1);
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
	kv_save(last_word, 0, 1);
	if (used == 1 && last != bucket) {
		kv_save(kv_store_overflow(store, before), 0, 1);
		give_bucket(store, last);
	}
}

uint64_t kv_lossless_empty(const struct kv_store *store, uint64_t bucket)
{
	uint64_t words = 0, before;

	for (;;) {
		uint64_t last = last_bucket(store, bucket, &before);
		uint32_t used = words_in_use(store, last);
		__u64 *last_word;

		if (used == 0)
			return words;
		last_word = kv_store_way(store, last, used - 1);
		kv_lossless_give(store, kv_load(last_word, 1) & KV_LOG_OFFSET_MASK);
		kv_lossless_remove_word(store, bucket, last_word);
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
