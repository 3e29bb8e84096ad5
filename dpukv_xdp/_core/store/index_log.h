/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * index_log.h - parts of the store's operations: the circular log, items, the index.
 */
#ifndef KV_INDEX_LOG_H
#define KV_INDEX_LOG_H

#include "store/hot_path.h"
#include "store/keep_apart.h"

KV_INLINED uint32_t words_in_use(const struct kv_store *store, uint64_t bucket);
KV_INLINED void cleanup_bucket(struct kv_store *store, uint64_t bucket, int shared);
static inline uint32_t value_capacity(uint32_t value_bytes);

/* ---- The circular log ---- */

/* Reserve room at the tail. Return the entry's 48-bit offset. Items that it overlaps are dead from here on. */
KV_INLINED uint64_t append(struct kv_store *store, uint32_t entry_bytes, int shared)
{
	uint64_t tail, offset;

	do {
		tail = kv_store_tail(store, shared);
		offset = tail;
		if ((tail & (store->span - 1)) + entry_bytes > store->log_bytes)
			offset = (tail | (store->span - 1)) + 1;
		if (shared)
			__atomic_store_n(&store->common->writers[store->writer].offset, offset, __ATOMIC_RELAXED);
	} while (!move_on(&progress(store, shared)->tail, tail, offset + entry_bytes, shared));
	if (shared)
		wait_for_writers(store, offset + entry_bytes);
	else
		store->common->progress.tail = offset + entry_bytes; /* for a process that takes the store over */
	kv_store_order();
	return offset & KV_LOG_OFFSET_MASK;
}

/* ---- Items ---- */

/* Copy an item's value, if it fits into `room`, and its length. Return an enum kv_result. */
KV_INLINED int read_value(const struct kv_store *store, const struct kv_item *item, uint32_t key_bytes, uint8_t *value,
			  uint32_t room, uint32_t *value_bytes, int shared)
{
	const __u64 *words = &item->words[KV_ROUNDUP8(key_bytes) / 8];
	uint32_t left = kv_item_length(item, shared) & KV_LENGTH_VALUE_MASK;

	*value_bytes = left;
	if (left > room || !kv_store_holds(store, words, left, shared))
		return KV_INSUFFICIENT_SPACE;
	if (!shared && left)
		memcpy(value, words, left);
	for (; shared && left; words++, value += 8) {
		uint64_t word = kv_load(words, 1);

		if (left < 8) {
			memcpy(value, &word, left);
			break;
		}
		memcpy(value, &word, 8);
		left -= 8;
	}
	return KV_SUCCESS;
}

KV_INLINED __u64 *value_words(struct kv_item *item, uint32_t key_bytes)
{
	return &item->words[KV_ROUNDUP8(key_bytes) / 8];
}

KV_INLINED uint32_t capacity_of(const struct kv_item *item, int shared)
{
	return shared ? (uint32_t)(__atomic_load_n((const kv_shared_word *)item, __ATOMIC_RELAXED) >> 32)
		      : item->value_capacity;
}

KV_INLINED void write_lengths(struct kv_item *item, uint32_t key_bytes, uint32_t value_bytes, uint32_t capacity_bytes,
			      int shared)
{
	uint32_t length = key_bytes << KV_LENGTH_KEY_SHIFT | value_bytes;

	if (shared) {
		__atomic_store_n((kv_shared_word *)item, (uint64_t)capacity_bytes << 32 | length, __ATOMIC_RELAXED);
		return;
	}
	item->kv_length = length;
	item->value_capacity = capacity_bytes;
}

/* Write a key or value and its zero padding; even an empty value has one word. */
KV_INLINED void write_padded(__u64 *words, const uint8_t *bytes, uint32_t length, int shared)
{
	if (length <= 8) { /* in one store, so that it is never half there: see region.h */
		kv_save(words, length ? kv_word_of(bytes, length) : 0, shared);
		return;
	}
	if (!shared) {
		words[value_capacity(length) / 8 - 1] = 0;
		memcpy(words, bytes, length);
		return;
	}
	for (uint32_t i = 0; i < length; i += 8)
		kv_save(&words[i / 8], kv_word_of(bytes + i, length - i), 1);
}

/* ---- The index ---- */

/*
 * Store a new key's word in the place of a dead item, else in a free place, else in that of the oldest item, which is
 * the farthest from the tail and the next that the log would overwrite.
 */
KV_INLINED void put_word(struct kv_store *store, uint64_t bucket, uint64_t new_word, int shared)
{
	uint64_t tail = kv_store_tail(store, shared), oldest_distance = 0;
	uint32_t oldest = 0, used;

	for (used = 0; used < KV_BUCKET_WAYS && *kv_store_way(store, bucket, used); used++) {
		uint64_t distance = (tail - *kv_store_way(store, bucket, used)) & KV_LOG_OFFSET_MASK;

		if (distance > oldest_distance) {
			oldest_distance = distance;
			oldest = used;
		}
	}
	if (oldest_distance > store->span) {
		kv_save(kv_store_way(store, bucket, oldest), new_word, shared);
		store->stats.cleanup++;
		store->stats.set_new++;
	} else if (used < KV_BUCKET_WAYS) {
		kv_save(kv_store_way(store, bucket, used), new_word, shared);
		add(&progress(store, shared)->items, 1, shared);
		store->stats.set_new++;
	} else {
		kv_save(kv_store_way(store, bucket, oldest), new_word, shared);
		store->stats.set_evicted++;
	}
}

/* Remove a word; the bucket's last one takes its place. */
KV_INLINED void remove_word(struct kv_store *store, uint64_t bucket, __u64 *word, int shared)
{
	__u64 *last = kv_store_way(store, bucket, words_in_use(store, bucket) - 1);

	kv_save(word, *last, shared);
	kv_store_order();
	kv_save(last, 0, shared);
}

/* Remove all words of a cache's bucket in shared mode. Return how many there were. */
KV_INLINED uint64_t empty_bucket(struct kv_store *store, uint64_t bucket)
{
	uint32_t used = words_in_use(store, bucket);

	for (uint32_t way = used; way-- > 0;)
		kv_save(kv_store_way(store, bucket, way), 0, 1);
	return used;
}

KV_INLINED uint32_t words_in_use(const struct kv_store *store, uint64_t bucket)
{
	uint32_t used = 0;

	while (used < KV_BUCKET_WAYS && *kv_store_way(store, bucket, used))
		used++;
	return used;
}

/*
 * Drop the words of dead items in some buckets per append, in proportion to the bytes appended: a round through the
 * index takes one or two laps of the log (or, with more buckets than words in the log, as many laps as it takes at one
 * bucket per word). A dead word therefore leaves the index long before the tail is 2^48 past it, where it would look
 * alive.
 */
KV_INLINED void cleanup(struct kv_store *store, int shared)
{
	uint64_t due = kv_store_cleanup_due(store, kv_store_tail(store, shared));
	__u64 *cleaned = &progress(store, shared)->cleaned;
	uint64_t turn;

	while ((turn = kv_load(cleaned, shared)) < due) {
		if (!move_on(cleaned, turn, turn + 1, shared))
			continue;
		if (shared)
			take_bucket(store, turn % store->buckets);
		cleanup_bucket(store, turn % store->buckets, shared);
		if (shared)
			release_bucket(store, turn % store->buckets);
	}
}

KV_INLINED void cleanup_bucket(struct kv_store *store, uint64_t bucket, int shared)
{
	uint32_t used = words_in_use(store, bucket);

	/* Backwards: the last word, which fills a gap, has been checked already. */
	for (uint32_t way = used; way-- > 0;) {
		if (kv_store_distance(store, *kv_store_way(store, bucket, way), shared) <= store->span)
			continue;
		kv_save(kv_store_way(store, bucket, way), *kv_store_way(store, bucket, --used), shared);
		kv_store_order();
		kv_save(kv_store_way(store, bucket, used), 0, shared);
		store->stats.cleanup++;
		add(&progress(store, shared)->items, -1, shared);
	}
}

/* ---- Small helpers ---- */

/* Return the bytes reserved for a new value: whole words, and one even for an empty value. */
static inline uint32_t value_capacity(uint32_t value_bytes)
{
	return value_bytes < KV_VALUE_CAPACITY_MIN ? KV_VALUE_CAPACITY_MIN : KV_ROUNDUP8(value_bytes);
}

#endif
