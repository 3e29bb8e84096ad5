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
#include "store/region.h"
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
static uint64_t log_bytes_of(const struct kv_store_options *options);
static struct kv_store *make_handle(const struct kv_store_options *options);
static struct parts parts_of(const struct kv_store *store);
static int place_parts(struct kv_store *store, void *memory, int pages);
static void begin_region(struct kv_store *store, const struct kv_store_options *options);
static int take_over(struct kv_store *store, const struct kv_store_options *options, struct kv_store_repair *repair);
static struct kv_store *or_nothing(struct kv_store *store, int status);
static int enter_shared_mode(struct kv_store *store);
static int add_writer(struct kv_store *handle);
static void *zeroed(size_t bytes);
static uint64_t next_power_of_two(uint64_t at_least);

/* Where the parts of a region begin, and its length. */
struct parts {
	uint64_t lines, short_lines, log, bytes;
};

struct kv_store *kv_store_create(const struct kv_store_options *options)
{
	struct kv_store *store = make_handle(options);
	int pages = KV_PAGES_SMALL;
	void *memory;

	if (!store)
		return NULL;
	memory = kv_memory_map(parts_of(store).bytes, options->want_huge != 0, &pages);
	if (place_parts(store, memory, pages))
		return or_nothing(store, -1);
	begin_region(store, options);
	return store;
}

int kv_store_region(const struct kv_store_options *options)
{
	struct kv_store *store = make_handle(options);
	int fd;

	if (!store)
		return -1;
	fd = kv_memory_file("dpukv-store", parts_of(store).bytes, options->want_huge != 0);
	or_nothing(store, -1);
	return fd;
}

struct kv_store *kv_store_open(const struct kv_store_options *options, int region_fd, struct kv_store_repair *repair)
{
	struct kv_store *store = make_handle(options);
	int pages = KV_PAGES_SMALL;
	void *memory;

	*repair = (struct kv_store_repair){ 0 };
	if (!store)
		return NULL;
	memory = kv_memory_map_file(region_fd, parts_of(store).bytes, options->want_huge != 0, &pages);
	if (place_parts(store, memory, pages))
		return or_nothing(store, -1);
	store->undo = store->region->undo;
	if (store->region->mark == 0) {
		begin_region(store, options);
		return store;
	}
	return or_nothing(store, take_over(store, options, repair));
}

uint64_t kv_store_memory_bytes(const struct kv_store_options *options)
{
	uint64_t buckets_all;

	if (!is_sound(options))
		return 0;
	buckets_of(options, &buckets_all);
	return 2 * buckets_all * sizeof(struct kv_line) + line_count(options) * sizeof(struct kv_short_line) +
	       log_bytes_of(options);
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

/* Return a handle without a region; NULL and errno on failure: EINVAL for options that make no store. */
static struct kv_store *make_handle(const struct kv_store_options *options)
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
	store->log_bytes = log_bytes_of(options);
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
	if (options->kind == KV_STORE_LOSSLESS && !(store->lossless = kv_lossless_create()))
		return or_nothing(store, -1);
	return store;
}

static uint64_t log_bytes_of(const struct kv_store_options *options)
{
	return (options->log_bytes + KV_LOG_BYTES_MIN - 1) & ~(KV_LOG_BYTES_MIN - 1ULL);
}

static uint64_t whole_pages(uint64_t bytes)
{
	return (bytes + KV_REGION_PAGE_BYTES - 1) & ~(KV_REGION_PAGE_BYTES - 1ULL);
}

static struct parts parts_of(const struct kv_store *store)
{
	struct parts parts = { .lines = whole_pages(sizeof(struct kv_region)) };

	parts.short_lines = parts.lines + whole_pages(2 * store->buckets_all * sizeof(struct kv_line));
	parts.log = parts.short_lines + whole_pages(store->short_line_count * sizeof(struct kv_short_line));
	parts.bytes = parts.log + whole_pages(store->log_bytes);
	return parts;
}

/* Let the handle refer to the parts of its region, mapped at `memory`, or to nothing: then return -1. */
static int place_parts(struct kv_store *store, void *memory, int pages)
{
	struct parts parts = parts_of(store);
	uint8_t *start = memory;

	if (!memory)
		return -1;
	store->region = memory;
	store->common = &store->region->common;
	store->lines = (struct kv_line *)(start + parts.lines);
	store->short_lines = store->short_line_count ? (struct kv_short_line *)(start + parts.short_lines) : NULL;
	store->log = start + parts.log;
	store->stats.index_bytes = 2 * store->buckets_all * sizeof(struct kv_line) +
				   store->short_line_count * sizeof(struct kv_short_line);
	store->stats.log_bytes = store->log_bytes;
	store->stats.pages = (uint64_t)pages;
	return 0;
}

/* Make a zeroed region an empty store. */
static void begin_region(struct kv_store *store, const struct kv_store_options *options)
{
	struct kv_region *region = store->region;

	if (store->lossless)
		kv_lossless_reset(store);
	region->layout = KV_REGION_LAYOUT;
	region->header_bytes = sizeof(*region);
	region->bytes = parts_of(store).bytes;
	region->options = *options;
	add_writer(store);
	kv_store_order();
	region->mark = KV_REGION_MARK;
}

/* Go on with the store that another process has left in a region. */
static int take_over(struct kv_store *store, const struct kv_store_options *options, struct kv_store_repair *repair)
{
	struct kv_region *region = store->region;
	uint64_t tail = region->common.progress.tail;

	if (region->mark != KV_REGION_MARK || region->layout != KV_REGION_LAYOUT ||
	    region->header_bytes != sizeof(*region) || region->bytes != parts_of(store).bytes ||
	    memcmp(&region->options, options, sizeof(*options)) != 0) {
		store->common = NULL; /* it is not ours to write */
		errno = EINVAL;
		return -1;
	}
	if (store->span_shift < KV_LOG_OFFSET_BITS ? (tail & (store->span - 1)) > store->log_bytes : tail != 0) {
		store->common = NULL;
		errno = EUCLEAN;
		return -1;
	}
	/* All but the tail, without which every item would be dead if this process was killed here. */
	region->common.handles = 0;
	region->common.places = 0;
	for (uint32_t i = 0; i < KV_STORE_HANDLES_MAX; i++)
		region->common.writers[i].in_use = 0;
	store->progress.tail = tail;
	store->progress.cleaned = kv_store_cleanup_due(store, tail); /* the repair leaves no dead word */
	add_writer(store);
	return kv_store_repair(store, repair);
}

/* Return the handle, or destroy it and return NULL, with errno as it is, if `status` is not 0. */
static struct kv_store *or_nothing(struct kv_store *store, int status)
{
	int cause = errno;

	if (status == 0)
		return store;
	kv_store_destroy(store);
	errno = cause;
	return NULL;
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
	struct kv_store_common *common;

	if (!store)
		return;
	common = store->common;
	if (common && common->handles) {
		common->writers[store->writer].in_use = 0;
		common->handles--;
	}
	if (!common || common->handles == 0) {
		kv_lossless_destroy(store->lossless);
		kv_memory_unmap(store->region, parts_of(store).bytes);
		kv_memory_unmap(store->versions, store->buckets * sizeof(*store->versions));
	}
	free(store);
}

/* Turn the only handle of a store into the first one of several. */
static int enter_shared_mode(struct kv_store *store)
{
	size_t versions_bytes = store->buckets * sizeof(*store->versions);
	int pages;

	store->versions = kv_memory_map(versions_bytes, store->stats.pages != KV_PAGES_SMALL, &pages);
	if (!store->versions)
		return -1;
	store->common->progress = store->progress;
	return 0;
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
	if (handle->undo)
		handle->undo = &handle->region->undo[writer];
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
	stats->count = store->versions ? kv_load(&store->common->progress.items, 1) : store->progress.items;
	if (store->lossless)
		stats->overflow_buckets = kv_lossless_overflowing(store->lossless);
	else if (!store->short_lines && stats->get_found > not_skipped)
		stats->move_to_head_skipped = stats->get_found - not_skipped;
}

static uint64_t next_power_of_two(uint64_t at_least)
{
	return at_least <= 1 ? 1 : 1ULL << (64 - __builtin_clzll(at_least - 1));
}
