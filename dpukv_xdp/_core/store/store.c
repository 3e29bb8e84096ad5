// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * store.c - create, share and destroy a store: its memory and its handles.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/memory.h"
#include "store/allocator.h"
#include "store/hot_path.h"
#include "store/lossless.h"
#include "store/short_items.h"

/*
 * Why KV_ITEMS_PER_BUCKET is 3: with uniform hashes a bucket's load is Poisson distributed, and the expected number of
 * items that find all 15 words of their bucket in use is, for 1 Mi items: 1900 at 8 per bucket, 1.7 at 4, 0.05 at 3 and
 * 0.0003 at 2. MICA's 15 / 1.1 would lose items before the log has wrapped. With 3, a store that is loaded with
 * item_count keys nearly always keeps them all, and the first lines, which are all that most lookups read, take 22 MiB
 * for 1 Mi items: how much of them the processor's caches hold decides the engine's speed.
 */

/* Most buckets, and lines of an inline store: the 32 hash bits 16-47 select one, the bits above the partition. */
#define BUCKETS_MAX (1ULL << 32)

/* Largest log: neither a lap nor a round of the cleanup may come near 2^48, where offsets repeat. */
#define LOG_BYTES_MAX (1ULL << 46)
#define CLEANUP_SHIFT_MIN 3

static uint64_t span_of(const struct kv_store_options *options);
static uint64_t buckets_of(const struct kv_store_options *options, uint64_t *buckets_all);
static int is_sound(const struct kv_store_options *options);
static uint64_t line_count(const struct kv_store_options *options);
static int map_memory(struct kv_store *store, int want_huge);
static int enter_shared_mode(struct kv_store *store);
static int add_writer(struct kv_store *handle);
static void *zeroed(size_t bytes);
static uint64_t next_power_of_two(uint64_t at_least);

struct kv_store *kv_store_create(const struct kv_store_options *options)
{
	struct kv_store *store;

	if (!is_sound(options)) {
		errno = EINVAL;
		return NULL;
	}
	store = zeroed(sizeof(*store));
	if (!store)
		return NULL;
	store->buckets = buckets_of(options, &store->buckets_all);
	store->log_bytes = (options->log_bytes + KV_LOG_BYTES_MIN - 1) & ~(KV_LOG_BYTES_MIN - 1ULL);
	store->span = span_of(options);
	store->span_shift = (uint32_t)__builtin_ctzll(store->span);
	store->cleanup_shift = CLEANUP_SHIFT_MIN;
	while (store->buckets << store->cleanup_shift < store->log_bytes)
		store->cleanup_shift++;
	store->move_distance = KV_MOVE_DISTANCE_NEVER;
	if (options->kind != KV_STORE_LOSSLESS && options->move_to_head != KV_MOVE_TO_HEAD_NEVER)
		/* The product of log and share has fewer than 64 bits. */
		store->move_distance = store->log_bytes * options->move_to_head >> 16;
	store->move_distance_full = store->move_distance;
	store->capacity_max = options->kind == KV_STORE_LOSSLESS ? KV_ALLOCATOR_BLOCK_MIN : ~0u;
	store->short_line_count = line_count(options);
	if (map_memory(store, options->want_huge != 0) == 0 && options->kind == KV_STORE_LOSSLESS)
		store->lossless = kv_lossless_create(store);
	if (!store->log || (options->kind == KV_STORE_LOSSLESS && !store->lossless)) {
		int cause = errno;

		kv_store_destroy(store);
		errno = cause;
		return NULL;
	}
	return store;
}

uint64_t kv_store_memory_bytes(const struct kv_store_options *options)
{
	uint64_t buckets_all;

	if (!is_sound(options))
		return 0;
	buckets_of(options, &buckets_all);
	return 2 * buckets_all * sizeof(struct kv_line) + line_count(options) * sizeof(struct kv_short_line) +
	       ((options->log_bytes + KV_LOG_BYTES_MIN - 1) & ~(KV_LOG_BYTES_MIN - 1ULL));
}

uint64_t kv_store_version_bytes(const struct kv_store_options *options)
{
	uint64_t buckets_all;

	return is_sound(options) ? buckets_of(options, &buckets_all) * sizeof(uint32_t) : 0;
}

static int is_sound(const struct kv_store_options *options)
{
	uint64_t buckets_all;

	if (options->item_count == 0 || options->item_count > BUCKETS_MAX * KV_ITEMS_PER_BUCKET ||
	    options->log_bytes == 0 || options->log_bytes > LOG_BYTES_MAX || options->kind >= KV_STORE_KINDS ||
	    options->move_to_head > KV_MOVE_TO_HEAD_NEVER)
		return 0;
	return buckets_of(options, &buckets_all) <= BUCKETS_MAX && line_count(options) <= BUCKETS_MAX;
}

/* Return the lines of an inline store's table. */
static uint64_t line_count(const struct kv_store_options *options)
{
	return options->kind == KV_STORE_INLINE ? kv_short_lines_for(options->item_count) : 0;
}

/* Set a span so large that every item of a lossless store is alive. */
static uint64_t span_of(const struct kv_store_options *options)
{
	if (options->kind == KV_STORE_LOSSLESS)
		return KV_LOG_OFFSET_MASK + 1;
	return next_power_of_two(options->log_bytes < KV_LOG_BYTES_MIN ? KV_LOG_BYTES_MIN : options->log_bytes);
}

static uint64_t buckets_of(const struct kv_store_options *options, uint64_t *buckets_all)
{
	uint64_t in_log = options->log_bytes / KV_SHORT_LOG_BYTES_PER_ITEM + 1;
	int is_inline = options->kind == KV_STORE_INLINE;
	uint64_t items = is_inline && in_log < options->item_count ? in_log : options->item_count;
	uint64_t buckets = (items + KV_ITEMS_PER_BUCKET - 1) / KV_ITEMS_PER_BUCKET;

	*buckets_all = buckets;
	if (options->kind == KV_STORE_LOSSLESS)
		*buckets_all += kv_lossless_overflow_buckets(buckets);
	return buckets;
}

static int map_memory(struct kv_store *store, int want_huge)
{
	size_t index_bytes = 2 * store->buckets_all * sizeof(struct kv_line);
	int index_pages, log_pages, short_pages = KV_PAGES_SMALL;

	store->lines = kv_memory_map(index_bytes, want_huge, &index_pages);
	if (!store->lines)
		return -1;
	if (store->short_line_count) {
		size_t short_bytes = store->short_line_count * sizeof(struct kv_short_line);

		store->short_lines = kv_memory_map(short_bytes, want_huge, &short_pages);
		if (!store->short_lines)
			return -1;
		store->stats.index_bytes = short_bytes;
	}
	store->log = kv_memory_map(store->log_bytes, want_huge, &log_pages);
	if (!store->log)
		return -1;
	store->stats.index_bytes += index_bytes;
	store->stats.log_bytes = store->log_bytes;
	store->stats.pages = (uint64_t)(store->short_lines ? short_pages : log_pages);
	return 0;
}

struct kv_store *kv_store_share(struct kv_store *store)
{
	struct kv_store *handle = zeroed(sizeof(*handle));

	if (!handle)
		return NULL;
	if (!store->versions && enter_shared_mode(store)) {
		free(handle);
		return NULL;
	}
	*handle = *store;
	handle->stats = (struct kv_store_stats){ .index_bytes = store->stats.index_bytes,
						 .log_bytes = store->stats.log_bytes,
						 .pages = store->stats.pages };
	if (add_writer(handle)) {
		free(handle);
		errno = ENOSPC;
		return NULL;
	}
	return handle;
}

void kv_store_destroy(struct kv_store *store)
{
	if (!store)
		return;
	if (store->common) {
		store->common->writers[store->writer].in_use = 0;
		store->common->handles--;
	}
	if (!store->common || store->common->handles == 0) {
		kv_lossless_destroy(store->lossless);
		kv_memory_unmap(store->lines, 2 * store->buckets_all * sizeof(struct kv_line));
		kv_memory_unmap(store->short_lines, store->short_line_count * sizeof(struct kv_short_line));
		kv_memory_unmap(store->log, store->log_bytes);
		kv_memory_unmap(store->versions, store->buckets * sizeof(*store->versions));
		free(store->common);
	}
	free(store);
}

/* Turn the only handle of a store into the first one of several. */
static int enter_shared_mode(struct kv_store *store)
{
	size_t versions_bytes = store->buckets * sizeof(*store->versions);
	struct kv_store_common *common = zeroed(sizeof(*common));
	int pages;

	if (!common)
		return -1;
	store->versions = kv_memory_map(versions_bytes, store->stats.pages != KV_PAGES_SMALL, &pages);
	if (!store->versions) {
		int cause = errno;

		free(common);
		errno = cause;
		return -1;
	}
	common->progress = store->progress;
	store->common = common;
	return add_writer(store);
}

/* Give a handle a place among the writers. Return -1 if all are taken. */
static int add_writer(struct kv_store *handle)
{
	struct kv_store_common *common = handle->common;
	uint32_t writer = 0;

	while (writer < KV_STORE_HANDLES_MAX && common->writers[writer].in_use)
		writer++;
	if (writer == KV_STORE_HANDLES_MAX)
		return -1;
	if (common->places <= writer)
		common->places = writer + 1;
	common->writers[writer].in_use = 1;
	common->writers[writer].offset = KV_STORE_NOT_WRITING;
	common->handles++;
	handle->writer = writer;
	return 0;
}

/* Return zeroed memory that shares no cache line with other data. */
static void *zeroed(size_t bytes)
{
	void *memory = aligned_alloc(KV_STORE_APART, bytes);

	return memory ? memset(memory, 0, bytes) : NULL;
}

void kv_store_set_reader(struct kv_store *handle, int is_reader)
{
	handle->move_distance = is_reader ? KV_MOVE_DISTANCE_NEVER : handle->move_distance_full;
}

void kv_store_get_stats(const struct kv_store *store, struct kv_store_stats *stats)
{
	uint64_t not_skipped = store->stats.move_to_head_performed + store->stats.move_to_head_failed;

	*stats = store->stats;
	stats->count = store->common ? kv_load(&store->common->progress.items, 1) : store->progress.items;
	if (store->lossless)
		stats->overflow_buckets = kv_lossless_overflowing(store->lossless);
	else if (!store->short_lines && stats->get_found > not_skipped)
		stats->move_to_head_skipped = stats->get_found - not_skipped;
}

static uint64_t next_power_of_two(uint64_t at_least)
{
	return at_least <= 1 ? 1 : 1ULL << (64 - __builtin_clzll(at_least - 1));
}
