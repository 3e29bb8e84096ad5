// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * repair.c - make a store complete that a killed process has left: docs/REGIONS.md has the cases.
 *
 * The repair may be killed as well: each item stays in its bucket, at one place at least, and each step may be done
 * again.
 */
#include <errno.h>
#include <stdlib.h>

#include "store/allocator.h"
#include "store/lossless.h"
#include "store/region.h"
#include "store/short_items.h"

#define LINES_AHEAD 16 /* buckets whose lines are prefetched before their items are */
#define ITEMS_AHEAD 8

/* A visit of the whole index. The bitmaps are a lossless store's. */
struct visit {
	struct kv_store *store;
	struct kv_store_repair *repair;
	uint64_t *starts;  /* bit i: an item begins at byte 8 * i */
	uint64_t *chained; /* bit i: overflow bucket `buckets + i` is in a chain */
};

/* A place in a chain of buckets. */
struct place {
	uint64_t bucket;
	uint32_t way;
};

static int undo_writes(struct kv_store *store, struct kv_store_repair *repair);
static int repair_index(struct visit *visit);
static void repair_lines(struct kv_store *store, struct kv_store_repair *repair);

int kv_store_repair(struct kv_store *store, struct kv_store_repair *repair)
{
	struct visit visit = { store, repair, NULL, NULL };
	int status;

	*repair = (struct kv_store_repair){ 0 };
	if (undo_writes(store, repair))
		return -1;
	if (store->short_lines)
		repair_lines(store, repair);
	if (store->lossless) {
		visit.starts = calloc(store->log_bytes / 8 / 64 + 2, sizeof(uint64_t));
		visit.chained = calloc((store->buckets_all - store->buckets) / 64 + 1, sizeof(uint64_t));
	}
	if (store->lossless && (!visit.starts || !visit.chained)) {
		errno = ENOMEM;
		status = -1;
	} else {
		status = repair_index(&visit);
	}
	if (status == 0 && store->lossless)
		status = kv_lossless_rebuild(store, visit.starts, visit.chained);
	free(visit.starts);
	free(visit.chained);
	store->progress.items = repair->items;
	return status;
}

/* ---- Writes under way ---- */

static int undo_item(struct kv_store *store, const struct kv_store_undo *undo);
static int undo_line(struct kv_store *store, const struct kv_store_undo *undo);

static int undo_writes(struct kv_store *store, struct kv_store_repair *repair)
{
	for (uint32_t i = 0; i < KV_STORE_HANDLES_MAX; i++) {
		struct kv_store_undo *undo = &store->region->undo[i];

		if (!undo->armed)
			continue;
		if (undo->armed & KV_UNDO_LINE ? undo_line(store, undo) : undo_item(store, undo)) {
			errno = EUCLEAN;
			return -1;
		}
		kv_store_order();
		undo->armed = 0;
		repair->undone++;
	}
	return 0;
}

static int undo_item(struct kv_store *store, const struct kv_store_undo *undo)
{
	uint64_t position = undo->armed - 1;
	uint32_t key_bytes = (uint32_t)undo->lengths >> KV_LENGTH_KEY_SHIFT;
	uint32_t value_bytes = (uint32_t)undo->lengths & KV_LENGTH_VALUE_MASK;
	struct kv_item *item = (struct kv_item *)(store->log + position);

	if (position % 8 || key_bytes == 0 || value_bytes > KV_VALUE_MAX || position > store->log_bytes ||
	    store->log_bytes - position < kv_store_entry_bytes(key_bytes, value_bytes))
		return -1;
	memcpy(value_words(item, key_bytes), undo->value, value_capacity(value_bytes));
	kv_save((__u64 *)item, undo->lengths, 1);
	return 0;
}

static int undo_line(struct kv_store *store, const struct kv_store_undo *undo)
{
	uint64_t number = (undo->armed & ~KV_UNDO_LINE) >> 2;
	uint32_t way = undo->armed & 3;

	if (number >= store->short_line_count || way >= KV_SHORT_ITEMS)
		return -1;
	store->short_lines[number].items[way].value = undo->value[0];
	store->short_lines[number].lengths[way] = (uint16_t)undo->lengths;
	return 0;
}

/* ---- The lines of an inline store ---- */

static int is_short_item(uint32_t lengths);

static void repair_lines(struct kv_store *store, struct kv_store_repair *repair)
{
	struct kv_short_line *lines = store->short_lines;

	for (uint64_t number = 0; number < store->short_line_count; number++) {
		struct kv_short_line *line = &lines[number];

		line->version = 0;
		line->is_taken = 0;
		line->other_lines = 0;
		line->next_victim %= KV_SHORT_ITEMS;
	}
	for (uint64_t number = 0; number < store->short_line_count; number++) {
		for (uint32_t way = 0; way < KV_SHORT_ITEMS; way++) {
			uint32_t lengths = lines[number].lengths[way], distance = KV_SHORT_DISTANCE(lengths);

			if (lengths && !is_short_item(lengths)) {
				lines[number].lengths[way] = 0;
				repair->damaged++;
			} else if (lengths) {
				if (distance)
					lines[number ^ distance].other_lines |= (uint8_t)(1u << distance);
				repair->items++;
			}
		}
	}
}

static int is_short_item(uint32_t lengths)
{
	uint32_t key_bytes = lengths & 0xf;

	return key_bytes >= 1 && key_bytes <= KV_INLINE_MAX && KV_SHORT_VALUE_BYTES(lengths) <= KV_INLINE_MAX &&
	       KV_SHORT_DISTANCE(lengths) < KV_SHORT_GROUP;
}

/* ---- The index ---- */

static int repair_chain(struct visit *visit, uint64_t bucket);
static void prefetch_items(const struct kv_store *store, uint64_t bucket);
static int is_to_stay(struct visit *visit, uint64_t bucket, uint64_t word);
static int is_whole_item(const struct kv_store *store, uint64_t bucket, uint64_t word);
static int is_doubled(struct visit *visit, uint64_t bucket, struct place end, uint64_t word);
static int follow(struct visit *visit, uint64_t *bucket);
static void step(const struct kv_store *store, struct place *place);
static void cut(struct visit *visit, struct place end);
static void save_if_new(__u64 *word, uint64_t value);
static int test_and_set(uint64_t *bits, uint64_t bit);

static int repair_index(struct visit *visit)
{
	struct kv_store *store = visit->store;

	for (uint64_t bucket = 0; bucket < store->buckets; bucket++) {
		if (bucket + LINES_AHEAD < store->buckets)
			__builtin_prefetch(kv_store_line(store, bucket + LINES_AHEAD, 0));
		if (bucket + ITEMS_AHEAD < store->buckets)
			prefetch_items(store, bucket + ITEMS_AHEAD);
		if (repair_chain(visit, bucket)) {
			errno = EUCLEAN;
			return -1;
		}
	}
	return 0;
}

static void prefetch_items(const struct kv_store *store, uint64_t bucket)
{
	const __u64 *line = kv_store_line(store, bucket, 0);

	for (uint32_t i = 0; i < KV_LINE_WORDS && line[i]; i++)
		__builtin_prefetch(kv_store_item(store, line[i]));
}

/*
 * Keep the words of a bucket's chain that are to stay, moved up to its front. A word is emptied only when it is at its
 * new place. Return -1 for a chain that no process can have made.
 */
static int repair_chain(struct visit *visit, uint64_t bucket)
{
	struct kv_store *store = visit->store;
	struct place end = { bucket, 0 };
	uint64_t from = bucket;
	int has_more = 1;

	while (has_more > 0) { /* follow() visits no bucket twice */
		for (uint32_t way = 0; way < KV_BUCKET_WAYS; way++) {
			uint64_t word = *kv_store_way(store, from, way);

			if (!word || !is_to_stay(visit, bucket, word))
				continue;
			if (is_doubled(visit, bucket, end, word)) {
				visit->repair->doubled++;
				continue;
			}
			if (end.way == KV_BUCKET_WAYS)
				step(store, &end);
			save_if_new(kv_store_way(store, end.bucket, end.way++), word);
			visit->repair->items++;
		}
		has_more = follow(visit, &from);
	}
	if (has_more < 0)
		return -1;
	kv_store_order();
	cut(visit, end);
	return 0;
}

/* Go to a chain's next bucket. Return 1, 0 if there is none, or -1 if it cannot be. */
static int follow(struct visit *visit, uint64_t *bucket)
{
	const struct kv_store *store = visit->store;
	uint64_t next = *kv_store_overflow(store, *bucket);

	if (!next)
		return 0;
	if (next < store->buckets || next >= store->buckets_all || test_and_set(visit->chained, next - store->buckets))
		return -1;
	*bucket = next;
	return 1;
}

static void step(const struct kv_store *store, struct place *place)
{
	place->bucket = *kv_store_overflow(store, place->bucket);
	place->way = 0;
}

/* Empty a chain from `end` on. kv_lossless_rebuild() empties the buckets behind it, which are in no chain then. */
static void cut(struct visit *visit, struct place end)
{
	struct kv_store *store = visit->store;

	for (uint64_t next = end.bucket; (next = *kv_store_overflow(store, next));)
		visit->chained[(next - store->buckets) / 64] &= ~(1ULL << (next - store->buckets) % 64);
	save_if_new(kv_store_overflow(store, end.bucket), 0);
	kv_store_order();
	for (uint32_t way = KV_BUCKET_WAYS; way-- > end.way;)
		save_if_new(kv_store_way(store, end.bucket, way), 0);
}

/* Return whether a word is that of a live item, and count it if not. */
static int is_to_stay(struct visit *visit, uint64_t bucket, uint64_t word)
{
	struct kv_store *store = visit->store;
	const struct kv_item *item = kv_store_item(store, word);
	uint32_t key_bytes;

	if (kv_store_distance(store, word, 0) > store->span) {
		visit->repair->stale++;
		return 0;
	}
	if (!is_whole_item(store, bucket, word)) {
		visit->repair->damaged++;
		return 0;
	}
	key_bytes = item->kv_length >> KV_LENGTH_KEY_SHIFT;
	if (!kv_short_has_key(store, key_bytes))
		return 1;
	store->short_lines[kv_short_home(store, item->key_hash)].had_long = 1;
	if (!kv_short_is_in_line(store, item->key_hash, item->words[0], key_bytes) ||
	    (KV_STORE_UNCHECKED & CHECK_DOUBLED))
		return 1;
	visit->repair->doubled++;
	return 0;
}

static int is_whole_item(const struct kv_store *store, uint64_t bucket, uint64_t word)
{
	uint64_t position = word & KV_LOG_OFFSET_MASK & (store->span - 1), entry_bytes, log_bytes = store->log_bytes;
	const struct kv_item *item = kv_store_item(store, word);
	uint32_t key_bytes, value_bytes;

	if (store->lossless)
		log_bytes -= KV_ALLOCATOR_HEADER_BYTES; /* the last word is the allocator's */
	if (position % 8 || position > log_bytes || log_bytes - position < sizeof(*item) ||
	    (store->lossless && position < KV_ALLOCATOR_HEADER_BYTES))
		return 0;
	key_bytes = item->kv_length >> KV_LENGTH_KEY_SHIFT;
	value_bytes = item->kv_length & KV_LENGTH_VALUE_MASK;
	entry_bytes = kv_item_bytes(item);
	return key_bytes > 0 && item->value_capacity % 8 == 0 && item->value_capacity >= KV_VALUE_CAPACITY_MIN &&
	       value_bytes <= item->value_capacity && value_bytes <= KV_VALUE_MAX &&
	       entry_bytes <= log_bytes - position &&
	       (store->lossless || entry_bytes <= kv_store_distance(store, word, 0)) &&
	       KV_STORE_TAG(item->key_hash) == word >> KV_LOG_OFFSET_BITS &&
	       kv_store_bucket(store, item->key_hash) == bucket;
}

/* Return whether a word is among those of its bucket that stay, up to `end`. */
static int is_doubled(struct visit *visit, uint64_t bucket, struct place end, uint64_t word)
{
	if (visit->store->lossless)
		return test_and_set(visit->starts, (word & KV_LOG_OFFSET_MASK) / 8) &&
		       !(KV_STORE_UNCHECKED & CHECK_DOUBLED);
	for (uint32_t way = 0; way < end.way && !(KV_STORE_UNCHECKED & CHECK_DOUBLED); way++)
		if (*kv_store_way(visit->store, bucket, way) == word)
			return 1;
	return 0;
}

static void save_if_new(__u64 *word, uint64_t value)
{
	if (*word != value)
		*word = value;
}

static int test_and_set(uint64_t *bits, uint64_t bit)
{
	uint64_t mask = 1ULL << bit % 64;
	int was_set = (bits[bit / 64] & mask) != 0;

	bits[bit / 64] |= mask;
	return was_set;
}
