/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store.c - one partition: MICA's lossy index and circular log, for keys and values of any legal length.
 *
 * store.h has the layout and the paths that a batch of small items takes; everything else is here. The terms are those
 * of MICA (Lim et al., NSDI 2014).
 */
#include <errno.h>
#include <stdlib.h>

#include "store.h"

/*
 * Intended items per bucket. Hashed uniformly, a bucket's load is Poisson distributed, and the expected number of
 * items that find all 15 words of their bucket taken is, for 1 Mi items: 1900 at 8 per bucket, 1.7 at 4, 0.05 at 3 and
 * 0.0003 at 2. MICA's 15 / 1.1 would make this lossy before the log has wrapped. With 3 a store that is loaded with
 * item_count keys nearly always has them all, and the first lines, which are all that most lookups read, take 22 MiB
 * for 1 Mi items: what fits into the processor's caches decides how fast the engine is.
 */

/* Hash bits 16-47 select the bucket; the ones above select the partition. */
#define BUCKETS_MAX (1ULL << 32)

/* So that neither a lap of the log nor a round of the cleanup gets near the 2^48 at which offsets repeat. */
#define LOG_BYTES_MIN 64
#define LOG_BYTES_MAX (1ULL << 46)
#define CLEANUP_SHIFT_MIN 3

static uint64_t next_power_of_two(uint64_t at_least);
static uint32_t value_capacity(uint32_t value_bytes);
static uint64_t first_word(const uint8_t *key, uint32_t key_bytes);
static struct kv_item *find(const struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
			    __u64 **word);
static int refuse(struct kv_store *store, int result);
static uint64_t append(struct kv_store *store, uint32_t entry_bytes);
static void write_value(struct kv_item *item, uint32_t key_bytes, const uint8_t *value, uint32_t value_bytes);
static void put_word(struct kv_store *store, uint64_t key_hash, uint64_t new_word);
static void cleanup(struct kv_store *store);

/* ---- Create, destroy ---- */

struct kv_store *kv_store_create(uint64_t item_count, uint64_t log_bytes, int want_huge)
{
	struct kv_store *store;
	uint64_t buckets;
	int index_pages, log_pages;

	if (item_count == 0 || item_count > BUCKETS_MAX * KV_ITEMS_PER_BUCKET || log_bytes == 0 ||
	    log_bytes > LOG_BYTES_MAX) {
		errno = EINVAL;
		return NULL;
	}
	buckets = (item_count + KV_ITEMS_PER_BUCKET - 1) / KV_ITEMS_PER_BUCKET;
	log_bytes = next_power_of_two(log_bytes < LOG_BYTES_MIN ? LOG_BYTES_MIN : log_bytes);
	store = calloc(1, sizeof(*store));
	if (!store)
		return NULL;
	store->buckets = buckets;
	store->log_bytes = log_bytes;
	store->cleanup_shift = CLEANUP_SHIFT_MIN;
	while (buckets << store->cleanup_shift < log_bytes)
		store->cleanup_shift++;
	store->lines = kv_memory_map(2 * buckets * sizeof(struct kv_line), want_huge, &index_pages);
	if (store->lines)
		store->log = kv_memory_map(log_bytes, want_huge, &log_pages);
	if (!store->log) {
		int cause = errno;

		kv_store_destroy(store);
		errno = cause;
		return NULL;
	}
	store->stats.index_bytes = 2 * buckets * sizeof(struct kv_line);
	store->stats.log_bytes = log_bytes;
	store->stats.pages = (uint64_t)log_pages;
	return store;
}

void kv_store_destroy(struct kv_store *store)
{
	if (!store)
		return;
	kv_memory_unmap(store->lines, 2 * store->buckets * sizeof(struct kv_line));
	kv_memory_unmap(store->log, store->log_bytes);
	free(store);
}

void kv_store_get_stats(const struct kv_store *store, struct kv_store_stats *stats)
{
	*stats = store->stats;
}

uint32_t kv_store_entry_bytes(uint32_t key_bytes, uint32_t value_bytes)
{
	return (uint32_t)sizeof(struct kv_item) + KV_ROUNDUP8(key_bytes) + value_capacity(value_bytes);
}

/* ---- GET, SET ---- */

int kv_store_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		 uint32_t room, uint32_t *value_bytes)
{
	const struct kv_item *item;
	__u64 *word;

	*value_bytes = 0;
	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return KV_ERROR;
	item = find(store, key_hash, key, key_bytes, &word);
	if (!item) {
		store->stats.get_not_found++;
		return KV_NOT_FOUND;
	}
	store->stats.get_found++;
	*value_bytes = item->kv_length & KV_LENGTH_VALUE_MASK;
	if (*value_bytes > room)
		return KV_INSUFFICIENT_SPACE;
	if (*value_bytes)
		memcpy(value, &item->words[KV_ROUNDUP8(key_bytes) / 8], *value_bytes);
	return KV_SUCCESS;
}

int kv_store_set(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes)
{
	struct kv_item *item;
	uint32_t entry_bytes;
	uint64_t new_word;
	__u64 *word;

	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return refuse(store, KV_ERROR);
	if (value_bytes > KV_VALUE_MAX)
		return refuse(store, KV_INSUFFICIENT_SPACE);
	item = find(store, key_hash, key, key_bytes, &word);
	if (item && value_bytes <= item->value_capacity) {
		write_value(item, key_bytes, value, value_bytes);
		store->stats.set_in_place++;
		return KV_SUCCESS;
	}
	entry_bytes = kv_store_entry_bytes(key_bytes, value_bytes);
	if (entry_bytes > store->log_bytes)
		return refuse(store, KV_INSUFFICIENT_SPACE);

	new_word = KV_STORE_TAG(key_hash) << KV_LOG_OFFSET_BITS | append(store, entry_bytes);
	if (item) {
		*word = new_word;
		store->stats.set_moved++;
	} else {
		put_word(store, key_hash, new_word);
	}
	item = kv_store_item(store, new_word);
	item->value_capacity = value_capacity(value_bytes);
	item->key_hash = key_hash;
	item->words[KV_ROUNDUP8(key_bytes) / 8 - 1] = 0;
	memcpy(item->words, key, key_bytes);
	write_value(item, key_bytes, value, value_bytes);
	cleanup(store);
	return KV_SUCCESS;
}

/* ---- The circular log ---- */

/* Make room at the tail; the entry's 48-bit offset. From here on what it overwrites counts as gone. */
static uint64_t append(struct kv_store *store, uint32_t entry_bytes)
{
	uint64_t position = store->tail & (store->log_bytes - 1);
	uint64_t offset;

	if (position + entry_bytes > store->log_bytes)
		store->tail += store->log_bytes - position;
	offset = store->tail & KV_LOG_OFFSET_MASK;
	store->tail += entry_bytes;
	return offset;
}

static void write_value(struct kv_item *item, uint32_t key_bytes, const uint8_t *value, uint32_t value_bytes)
{
	__u64 *words = &item->words[KV_ROUNDUP8(key_bytes) / 8];

	item->kv_length = key_bytes << KV_LENGTH_KEY_SHIFT | value_bytes;
	words[value_capacity(value_bytes) / 8 - 1] = 0; /* the padding behind the value */
	if (value_bytes)
		memcpy(words, value, value_bytes);
}

/* ---- The index ---- */

/* Put a new key's word where a dead item's is, else in a free place, else where the oldest item's is: the one farthest
 * from the tail, which the log would overwrite first anyway. */
static void put_word(struct kv_store *store, uint64_t key_hash, uint64_t new_word)
{
	uint64_t bucket = kv_store_bucket(store, key_hash);
	uint64_t oldest_distance = 0;
	uint32_t oldest = 0, used;

	for (used = 0; used < KV_BUCKET_WAYS && *kv_store_way(store, bucket, used); used++) {
		uint64_t distance = kv_store_distance(store, *kv_store_way(store, bucket, used));

		if (distance > oldest_distance) {
			oldest_distance = distance;
			oldest = used;
		}
	}
	if (oldest_distance > store->log_bytes) {
		*kv_store_way(store, bucket, oldest) = new_word;
		store->stats.cleanup++;
		store->stats.set_new++;
	} else if (used < KV_BUCKET_WAYS) {
		*kv_store_way(store, bucket, used) = new_word;
		store->stats.items_estimate++;
		store->stats.set_new++;
	} else {
		*kv_store_way(store, bucket, oldest) = new_word;
		store->stats.set_evicted++;
	}
}

/*
 * Drop the words of dead items, some buckets for each append: a round through the index takes one lap of the log (or,
 * if there are more buckets than the log has words, as many laps as give a bucket each word). A word therefore leaves
 * the index long before the tail is 2^48 bytes past it, where its offset would look like a new one.
 */
static void cleanup(struct kv_store *store)
{
	for (uint64_t due = store->tail >> store->cleanup_shift; store->cleaned < due; store->cleaned++) {
		uint64_t bucket = store->cleaned % store->buckets;
		uint32_t used = 0;

		while (used < KV_BUCKET_WAYS && *kv_store_way(store, bucket, used))
			used++;
		/* Backwards: the last word, which fills the gap, has been looked at. */
		for (uint32_t way = used; way-- > 0;) {
			if (kv_store_distance(store, *kv_store_way(store, bucket, way)) <= store->log_bytes)
				continue;
			*kv_store_way(store, bucket, way) = *kv_store_way(store, bucket, --used);
			*kv_store_way(store, bucket, used) = 0;
			store->stats.cleanup++;
			store->stats.items_estimate--;
		}
	}
}

/* ---- Small helpers ---- */

static struct kv_item *find(const struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
			    __u64 **word)
{
	uint32_t rest_bytes = key_bytes > 8 ? key_bytes - 8 : 0;

	return kv_store_find(store, key_hash, key_bytes, first_word(key, key_bytes), rest_bytes ? key + 8 : NULL,
			     rest_bytes, word);
}

static uint64_t first_word(const uint8_t *key, uint32_t key_bytes)
{
	uint64_t word = 0;

	memcpy(&word, key, key_bytes < 8 ? key_bytes : 8);
	return word;
}

static int refuse(struct kv_store *store, int result)
{
	store->stats.set_refused++;
	return result;
}

/* A value can grow in place up to the end of its last word; even an empty one has a word of its own. */
static uint32_t value_capacity(uint32_t value_bytes)
{
	return value_bytes < KV_VALUE_CAPACITY_MIN ? KV_VALUE_CAPACITY_MIN : KV_ROUNDUP8(value_bytes);
}

static uint64_t next_power_of_two(uint64_t at_least)
{
	return at_least <= 1 ? 1 : 1ULL << (64 - __builtin_clzll(at_least - 1));
}
