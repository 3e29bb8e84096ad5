/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store.c - one partition: MICA's index and log, or its lossless sibling, for keys and values of any legal length.
 *
 * store.h has the layout and the paths that a batch of small items takes; lossless.c what is a lossless store's own;
 * everything else is here. The terms are those of MICA (Lim et al., NSDI 2014).
 *
 * In shared mode (CREW, CRCW) each thread has a handle, and every word that two threads may touch is read and written
 * atomically. Whatever they do, for each key all operations happen as if one after the other: a GET returns a whole
 * value, no older than the last one stored before it began; of several ADDs of a key one succeeds; no INCREMENT is
 * lost. A RESET is no single moment: it empties one bucket after the other, and what others store meanwhile may stay.
 * Four things keep the threads apart:
 *
 *   buckets    A writer takes a bucket by making its version odd. Nobody holds two. A reader takes nothing: it looks at
 *              the version, finds the item, copies the value, and starts again if the version has changed since. An
 *              overflow bucket belongs to the main bucket that its chain starts from.
 *   tail       (cache) Room in the log is reserved by moving the tail before anything is written there. A reader that
 *              finds its item within the last span after it has copied the value has copied that item and nothing else.
 *   writers    (cache) Each handle shows the offset that it is about to write at, in place or behind the tail. Who has
 *              moved the tail by a lap past that waits until it is done: a thread may lose its core between any two
 *              instructions, and would else write over what has been stored there in the meantime.
 *   allocator  (lossless) An item's memory is taken and given back under a lock, while its bucket is held. A reader may
 *              still look at it then, and even at the next item there; but the bucket's version has changed by then, so
 *              it starts again.
 *
 * A cache may lose any item to the log or to a full bucket, at any time; a lossless store loses none.
 *
 * Nobody waits in a circle: who waits for a bucket holds nothing, and who holds one waits for the allocator, whose
 * holder waits for nobody, for writes in place, which wait for nobody either, and for earlier appends, which can only
 * wait for still earlier ones. A GET that moves an item to the log's head does not wait for a bucket at all.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "allocator.h"
#include "lossless.h"
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
#define LOG_BYTES_MAX (1ULL << 46)
#define CLEANUP_SHIFT_MIN 3

/* An item's words, if it is as large as an item may be. */
#define ITEM_WORDS_MAX ((sizeof(struct kv_item) + KV_ROUNDUP8(KV_KEY_MAX) + KV_ROUNDUP8(KV_VALUE_MAX)) / 8)

/* Turns of waiting before a thread gives up its core, perhaps to the one it waits for. */
#define TURNS_TO_YIELD 256

/* The test of the tests: which of these checks a build leaves out, see tests/model/test_store_threads.py. */
#define CHECK_VERSION 1
#define CHECK_OVERTAKEN 2
#define CHECK_WRITERS 4
#define CHECK_TAKEN 16 /* 8 is in lossless.c */
#ifndef KV_STORE_UNCHECKED
#define KV_STORE_UNCHECKED 0
#endif

/* What a lookup needs to know of a key. */
struct lookup {
	uint64_t hash;
	uint64_t bucket;
	uint64_t first_word;
	const uint8_t *rest; /* behind the first 8 bytes */
	uint32_t bytes;
	uint32_t rest_bytes;
};

/* Where it has found its item: the bucket's word, what was in it, and the bucket's version then. */
struct found {
	struct kv_item *item; /* NULL: nowhere */
	__u64 *place;
	uint64_t word;
	uint32_t version;
};

static uint64_t span_of(const struct kv_store_options *options);
static uint64_t buckets_of(const struct kv_store_options *options, uint64_t *buckets_all);
static int is_sound(const struct kv_store_options *options);
static int map_memory(struct kv_store *store, int want_huge);
static int enter_shared_mode(struct kv_store *store);
static int add_writer(struct kv_store *handle);
static void *zeroed(size_t bytes);
static uint64_t next_power_of_two(uint64_t at_least);
static uint32_t value_capacity(uint32_t value_bytes);
static struct lookup lookup_of(const struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);
KV_INLINED int read_value(const struct kv_store *store, const struct kv_item *item, uint32_t key_bytes, uint8_t *value,
			  uint32_t room, uint32_t *value_bytes, int shared);
KV_INLINED __u64 *value_words(struct kv_item *item, uint32_t key_bytes);
KV_INLINED uint32_t capacity_of(const struct kv_item *item, int shared);
KV_INLINED void write_lengths(struct kv_item *item, uint32_t key_bytes, uint32_t value_bytes, uint32_t capacity_bytes,
			      int shared);
KV_INLINED void write_padded(__u64 *words, const uint8_t *bytes, uint32_t length, int shared);
KV_INLINED uint64_t append(struct kv_store *store, uint32_t entry_bytes, int shared);
KV_INLINED void put_word(struct kv_store *store, uint64_t bucket, uint64_t new_word, int shared);
KV_INLINED void remove_word(struct kv_store *store, uint64_t bucket, __u64 *word, int shared);
KV_INLINED uint64_t empty_bucket(struct kv_store *store, uint64_t bucket);
KV_INLINED void cleanup(struct kv_store *store, int shared);
KV_INLINED void cleanup_bucket(struct kv_store *store, uint64_t bucket, int shared);
KV_INLINED uint32_t words_in_use(const struct kv_store *store, uint64_t bucket);
static uint32_t version_when_free(const struct kv_store *store, uint64_t bucket, uint32_t *turns);
static int is_unchanged(const struct kv_store *store, uint64_t bucket, uint32_t version, uint64_t word);
static int is_still_alive(const struct kv_store *store, uint64_t word);
static void take_bucket(struct kv_store *store, uint64_t bucket);
static int try_to_take_bucket(struct kv_store *store, uint64_t bucket, uint32_t version);
static void release_bucket(struct kv_store *store, uint64_t bucket);
static int start_in_place(struct kv_store *store, uint64_t word);
static void wait_for_writers(const struct kv_store *store, uint64_t tail);
static void stop_writing(struct kv_store *store);
KV_INLINED struct kv_store_progress *progress(struct kv_store *store, int shared);
KV_INLINED int move_on(__u64 *counter, uint64_t from, uint64_t to, int shared);
KV_INLINED void add(__u64 *counter, int64_t change, int shared);

/* ---- Create, destroy ---- */

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
	if (options->kind == KV_STORE_CACHE && options->move_to_head != KV_MOVE_TO_HEAD_NEVER)
		/* Log and share have fewer than 64 bits together. */
		store->move_distance = store->log_bytes * options->move_to_head >> 16;
	store->move_distance_full = store->move_distance;
	store->capacity_max = options->kind == KV_STORE_CACHE ? ~0u : KV_ALLOCATOR_BLOCK_MIN;
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
	return 2 * buckets_all * sizeof(struct kv_line) +
	       ((options->log_bytes + KV_LOG_BYTES_MIN - 1) & ~(KV_LOG_BYTES_MIN - 1ULL));
}

static int is_sound(const struct kv_store_options *options)
{
	return options->item_count != 0 && options->item_count <= BUCKETS_MAX * KV_ITEMS_PER_BUCKET &&
	       options->log_bytes != 0 && options->log_bytes <= LOG_BYTES_MAX && options->kind <= KV_STORE_LOSSLESS &&
	       options->move_to_head <= KV_MOVE_TO_HEAD_NEVER;
}

/* A lossless store's items are alive wherever they are. */
static uint64_t span_of(const struct kv_store_options *options)
{
	if (options->kind == KV_STORE_LOSSLESS)
		return KV_LOG_OFFSET_MASK + 1;
	return next_power_of_two(options->log_bytes < KV_LOG_BYTES_MIN ? KV_LOG_BYTES_MIN : options->log_bytes);
}

static uint64_t buckets_of(const struct kv_store_options *options, uint64_t *buckets_all)
{
	uint64_t buckets = (options->item_count + KV_ITEMS_PER_BUCKET - 1) / KV_ITEMS_PER_BUCKET;

	*buckets_all = buckets;
	if (options->kind == KV_STORE_LOSSLESS)
		*buckets_all += kv_lossless_overflow_buckets(buckets);
	return buckets;
}

static int map_memory(struct kv_store *store, int want_huge)
{
	size_t index_bytes = 2 * store->buckets_all * sizeof(struct kv_line);
	int index_pages, log_pages;

	store->lines = kv_memory_map(index_bytes, want_huge, &index_pages);
	if (!store->lines)
		return -1;
	store->log = kv_memory_map(store->log_bytes, want_huge, &log_pages);
	if (!store->log)
		return -1;
	store->stats.index_bytes = index_bytes;
	store->stats.log_bytes = store->log_bytes;
	store->stats.pages = (uint64_t)log_pages;
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
		kv_memory_unmap(store->log, store->log_bytes);
		kv_memory_unmap(store->versions, store->buckets * sizeof(*store->versions));
		free(store->common);
	}
	free(store);
}

/* Make the only handle of a store the first of several. */
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

/* Give a handle its place among the writers; -1 if all are taken. */
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

/* Memory that shares no cache line with anything else. */
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
	else if (stats->get_found > not_skipped)
		stats->move_to_head_skipped = stats->get_found - not_skipped;
}

uint32_t kv_store_entry_bytes(uint32_t key_bytes, uint32_t value_bytes)
{
	return (uint32_t)sizeof(struct kv_item) + KV_ROUNDUP8(key_bytes) + value_capacity(value_bytes);
}

/* ---- GET, TEST ---- */

KV_INLINED int get(struct kv_store *store, struct lookup key, uint8_t *value, uint32_t room, uint32_t *value_bytes,
		   int shared);
KV_INLINED int look_up(struct kv_store *store, struct lookup key, struct found *found, uint8_t *value, uint32_t room,
		       uint32_t *value_bytes, int shared);
KV_INLINED struct kv_item *find(const struct kv_store *store, const struct lookup *key, __u64 **place, int shared);
static void move_to_head_shared(struct kv_store *store, uint64_t bucket, const struct found *found);

int kv_store_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		 uint32_t room, uint32_t *value_bytes)
{
	*value_bytes = 0;
	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return KV_ERROR;
	if (store->versions)
		return get(store, lookup_of(store, key_hash, key, key_bytes), value, room, value_bytes, 1);
	return get(store, lookup_of(store, key_hash, key, key_bytes), value, room, value_bytes, 0);
}

/* kv_store_get8() in shared mode. */
int kv_store_get8_shared(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes,
			 __u64 *value_word, uint32_t *value_bytes)
{
	struct lookup key = { key_hash, kv_store_bucket(store, key_hash), key_word, NULL, key_bytes, 0 };
	uint8_t value[8];
	int result = get(store, key, value, 8, value_bytes, 1);

	*value_word = *value_bytes <= 8 ? kv_word_of(value, *value_bytes) : 0;
	if (result != KV_INSUFFICIENT_SPACE)
		return result;
	store->stats.get_found--; /* kv_store_get() counts it */
	return KV_SUCCESS;
}

int kv_store_test(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes)
{
	struct lookup lookup;
	struct found found;
	uint32_t value_bytes;
	int result;

	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return KV_ERROR;
	lookup = lookup_of(store, key_hash, key, key_bytes);
	if (store->versions)
		result = look_up(store, lookup, &found, NULL, ~0u, &value_bytes, 1);
	else
		result = look_up(store, lookup, &found, NULL, ~0u, &value_bytes, 0);
	if (result == KV_NOT_FOUND)
		store->stats.test_notfound++;
	else
		store->stats.test_found++;
	return result == KV_NOT_FOUND ? KV_NOT_FOUND : KV_SUCCESS;
}

KV_INLINED int get(struct kv_store *store, struct lookup key, uint8_t *value, uint32_t room, uint32_t *value_bytes,
		   int shared)
{
	struct found found;
	int result = look_up(store, key, &found, value, room, value_bytes, shared);

	if (result == KV_NOT_FOUND) {
		store->stats.get_notfound++;
		return result;
	}
	store->stats.get_found++;
	if (result == KV_SUCCESS && kv_store_distance(store, found.word, shared) > store->move_distance) {
		if (shared)
			move_to_head_shared(store, key.bucket, &found);
		else
			kv_store_move_to_head(store, found.place);
	}
	return result;
}

/* Find the item, and copy its value unless `value` is NULL. */
KV_INLINED int look_up(struct kv_store *store, struct lookup key, struct found *found, uint8_t *value, uint32_t room,
		       uint32_t *value_bytes, int shared)
{
	uint32_t turns = 0;
	int result;

	do {
		found->version = shared ? version_when_free(store, key.bucket, &turns) : 0;
		*value_bytes = 0;
		found->word = 0;
		result = KV_NOT_FOUND;
		found->item = find(store, &key, &found->place, shared);
		if (found->item) {
			found->word = kv_load(found->place, shared);
			result = KV_SUCCESS;
			if (value)
				result = read_value(store, found->item, key.bytes, value, room, value_bytes, shared);
		}
	} while (shared && !is_unchanged(store, key.bucket, found->version, found->word));
	return result;
}

KV_INLINED struct kv_item *find(const struct kv_store *store, const struct lookup *key, __u64 **place, int shared)
{
	return kv_store_find(store, key->hash, key->bytes, key->first_word, key->rest, key->rest_bytes, place, shared);
}

static struct lookup lookup_of(const struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes)
{
	return (struct lookup){
		.hash = key_hash,
		.bucket = kv_store_bucket(store, key_hash),
		.first_word = kv_word_of(key, key_bytes),
		.rest = key_bytes > 8 ? key + 8 : NULL,
		.bytes = key_bytes,
		.rest_bytes = key_bytes > 8 ? key_bytes - 8 : 0,
	};
}

/* ---- Move to head ---- */

static int is_far(const struct kv_store *store, uint64_t word, uint64_t tail, uint32_t entry_bytes);
KV_INLINED uint32_t trimmed_bytes(uint32_t kv_length);

const struct kv_item *kv_store_move_to_head(struct kv_store *store, __u64 *word)
{
	struct kv_item *item = kv_store_item(store, *word), *moved;
	uint32_t length = item->kv_length;
	uint32_t entry_bytes = trimmed_bytes(length);
	uint64_t new_word;

	if (!is_far(store, *word, store->progress.tail, entry_bytes))
		return item;
	new_word = (*word & ~KV_LOG_OFFSET_MASK) | append(store, entry_bytes, 0);
	moved = kv_store_item(store, new_word);
	/* The new place may reach into the old one from below. */
	memmove(moved, item, entry_bytes);
	write_lengths(moved, length >> KV_LENGTH_KEY_SHIFT, length & KV_LENGTH_VALUE_MASK,
		      value_capacity(length & KV_LENGTH_VALUE_MASK), 0);
	*word = new_word;
	store->stats.move_to_head_performed++;
	cleanup(store, 0);
	return moved;
}

/* The same in shared mode, unless that would mean to wait for somebody. */
static void move_to_head_shared(struct kv_store *store, uint64_t bucket, const struct found *found)
{
	uint32_t length = kv_item_length(found->item, 1), value_bytes = length & KV_LENGTH_VALUE_MASK;
	uint32_t entry_bytes = trimmed_bytes(length);
	__u64 words[ITEM_WORDS_MAX], *new_words;
	uint64_t new_word;

	if (!is_far(store, found->word, kv_store_tail(store, 1), entry_bytes))
		return;
	if (entry_bytes > sizeof(words) || !kv_store_holds(store, (__u64 *)found->item, entry_bytes, 1) ||
	    !try_to_take_bucket(store, bucket, found->version)) {
		store->stats.move_to_head_failed++;
		return;
	}
	/* Nobody has written the item since it was found. The log may have come round to it, or may do so right now
	 * with the copy's own place: so it is copied before that is reserved. */
	for (uint32_t i = 0; i < entry_bytes / 8; i++)
		words[i] = kv_load((const __u64 *)found->item + i, 1);
	if (!is_still_alive(store, found->word)) {
		release_bucket(store, bucket);
		store->stats.move_to_head_failed++;
		return;
	}
	new_word = (found->word & ~KV_LOG_OFFSET_MASK) | append(store, entry_bytes, 1);
	new_words = (__u64 *)kv_store_item(store, new_word);
	kv_save(new_words, (uint64_t)value_capacity(value_bytes) << 32 | length, 1);
	for (uint32_t i = 1; i < entry_bytes / 8; i++)
		kv_save(&new_words[i], words[i], 1);
	kv_save(found->place, new_word, 1);
	stop_writing(store);
	release_bucket(store, bucket);
	store->stats.move_to_head_performed++;
	cleanup(store, 1);
}

/* Whether so much has been appended since the item that it should be moved; never if it is the last one. What a lap
 * leaves unused of its span does not count. */
static int is_far(const struct kv_store *store, uint64_t word, uint64_t tail, uint32_t entry_bytes)
{
	uint64_t distance = (tail - word) & KV_LOG_OFFSET_MASK;

	if (distance > (tail & (store->span - 1)))
		distance -= store->span - store->log_bytes;
	return distance > store->move_distance && distance > entry_bytes;
}

/* What an item with these lengths takes if it has no more room than its value needs. */
KV_INLINED uint32_t trimmed_bytes(uint32_t kv_length)
{
	return kv_store_entry_bytes(kv_length >> KV_LENGTH_KEY_SHIFT, kv_length & KV_LENGTH_VALUE_MASK);
}

/* ---- SET, ADD ---- */

enum overwriting { OVERWRITE, INSERT_ONLY };

static int write_item(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		      const uint8_t *value, uint32_t value_bytes, enum overwriting overwriting);
KV_INLINED int set(struct kv_store *store, struct lookup key, const uint8_t *key_text, const uint8_t *value,
		   uint32_t value_bytes, enum overwriting overwriting, int shared);
KV_INLINED int set_in_place(struct kv_store *store, const struct lookup *key, struct kv_item *item, uint64_t word,
			    const uint8_t *value, uint32_t value_bytes, int shared);
KV_INLINED int set_elsewhere(struct kv_store *store, const struct lookup *key, __u64 *place, const uint8_t *key_text,
			     const uint8_t *value, uint32_t value_bytes, int shared);

int kv_store_set(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes)
{
	return write_item(store, key_hash, key, key_bytes, value, value_bytes, OVERWRITE);
}

int kv_store_add(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes)
{
	return write_item(store, key_hash, key, key_bytes, value, value_bytes, INSERT_ONLY);
}

static int write_item(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		      const uint8_t *value, uint32_t value_bytes, enum overwriting overwriting)
{
	int result;

	if (key_bytes == 0 || key_bytes > KV_KEY_MAX) {
		store->stats.set_refused++;
		return KV_ERROR;
	}
	if (value_bytes > KV_VALUE_MAX || kv_store_entry_bytes(key_bytes, value_bytes) > store->log_bytes)
		result = KV_INSUFFICIENT_SPACE;
	else if (store->versions)
		result =
			set(store, lookup_of(store, key_hash, key, key_bytes), key, value, value_bytes, overwriting, 1);
	else
		result =
			set(store, lookup_of(store, key_hash, key, key_bytes), key, value, value_bytes, overwriting, 0);
	if (result == KV_INSUFFICIENT_SPACE)
		store->stats.set_refused++;
	return result;
}

KV_INLINED int set(struct kv_store *store, struct lookup key, const uint8_t *key_text, const uint8_t *value,
		   uint32_t value_bytes, enum overwriting overwriting, int shared)
{
	struct kv_item *item;
	__u64 *place = NULL;
	int result = KV_SUCCESS, appended = 0;

	if (shared)
		take_bucket(store, key.bucket);
	item = find(store, &key, &place, shared);
	if (!item)
		place = NULL;
	if (item && overwriting == INSERT_ONLY && (!shared || is_still_alive(store, kv_load(place, 1)))) {
		store->stats.set_nooverwrite++;
		result = KV_EXISTS;
	} else if (item && value_bytes <= capacity_of(item, shared) &&
		   set_in_place(store, &key, item, *place, value, value_bytes, shared)) {
		store->stats.set_inplace++;
	} else {
		result = set_elsewhere(store, &key, place, key_text, value, value_bytes, shared);
		appended = !store->lossless;
	}
	if (shared) {
		stop_writing(store);
		release_bucket(store, key.bucket);
	}
	if (appended)
		cleanup(store, shared);
	return result;
}

/* Write over the item's old value, which had room for as much. 0 if the log has come round to it. */
KV_INLINED int set_in_place(struct kv_store *store, const struct lookup *key, struct kv_item *item, uint64_t word,
			    const uint8_t *value, uint32_t value_bytes, int shared)
{
	uint32_t capacity_bytes = capacity_of(item, shared);

	if (shared && !start_in_place(store, word))
		return 0;
	if (capacity_bytes > store->capacity_max &&
	    capacity_bytes - value_capacity(value_bytes) >= KV_ALLOCATOR_BLOCK_MIN) {
		uint32_t entry_bytes = kv_store_entry_bytes(key->bytes, value_bytes);

		capacity_bytes = value_capacity(value_bytes);
		capacity_bytes +=
			(uint32_t)kv_lossless_shrink(store, word & KV_LOG_OFFSET_MASK, entry_bytes) - entry_bytes;
	}
	write_lengths(item, key->bytes, value_bytes, capacity_bytes, shared);
	write_padded(value_words(item, key->bytes), value, value_bytes, shared);
	return 1;
}

/* Write a new item, for a new key (`place` is NULL) or instead of the one that the word at `place` points to. */
KV_INLINED int set_elsewhere(struct kv_store *store, const struct lookup *key, __u64 *place, const uint8_t *key_text,
			     const uint8_t *value, uint32_t value_bytes, int shared)
{
	uint32_t entry_bytes = kv_store_entry_bytes(key->bytes, value_bytes);
	uint32_t capacity_bytes = value_capacity(value_bytes);
	uint64_t taken_bytes = entry_bytes, offset, new_word;
	struct kv_item *item;

	if (store->lossless)
		offset = kv_lossless_take(store, entry_bytes, &taken_bytes);
	else
		offset = append(store, entry_bytes, shared);
	if (offset == KV_ALLOCATOR_NONE)
		return KV_INSUFFICIENT_SPACE;
	new_word = KV_STORE_TAG(key->hash) << KV_LOG_OFFSET_BITS | offset;
	item = kv_store_item(store, new_word);
	write_lengths(item, key->bytes, value_bytes, capacity_bytes + (uint32_t)(taken_bytes - entry_bytes), shared);
	kv_save(&item->key_hash, key->hash, shared);
	write_padded(item->words, key_text, key->bytes, shared);
	write_padded(value_words(item, key->bytes), value, value_bytes, shared);
	if (place) {
		uint64_t old_word = *place;

		kv_save(place, new_word, shared);
		if (store->lossless)
			kv_lossless_give(store, old_word & KV_LOG_OFFSET_MASK);
		store->stats.set_moved++;
	} else if (!store->lossless) {
		put_word(store, key->bucket, new_word, shared);
	} else if (kv_lossless_put_word(store, key->bucket, new_word)) {
		add(&progress(store, shared)->items, 1, shared);
		store->stats.set_new++;
	} else {
		kv_lossless_give(store, offset);
		return KV_INSUFFICIENT_SPACE;
	}
	return KV_SUCCESS;
}

/* ---- DELETE, INCREMENT, RESET ---- */

KV_INLINED int remove_item(struct kv_store *store, struct lookup key, int shared);
KV_INLINED int increment_by(struct kv_store *store, struct lookup key, uint64_t increment, uint64_t *value, int shared);

int kv_store_delete(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes)
{
	int result;

	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return KV_ERROR;
	if (store->versions)
		result = remove_item(store, lookup_of(store, key_hash, key, key_bytes), 1);
	else
		result = remove_item(store, lookup_of(store, key_hash, key, key_bytes), 0);
	if (result == KV_SUCCESS)
		store->stats.delete_found++;
	else
		store->stats.delete_notfound++;
	return result;
}

KV_INLINED int remove_item(struct kv_store *store, struct lookup key, int shared)
{
	int result = KV_NOT_FOUND;
	__u64 *place;

	if (shared)
		take_bucket(store, key.bucket);
	if (find(store, &key, &place, shared) && (!shared || is_still_alive(store, kv_load(place, 1)))) {
		uint64_t word = *place;

		if (store->lossless) {
			kv_lossless_remove_word(store, key.bucket, place);
			kv_lossless_give(store, word & KV_LOG_OFFSET_MASK);
		} else {
			remove_word(store, key.bucket, place, shared);
		}
		add(&progress(store, shared)->items, -1, shared);
		result = KV_SUCCESS;
	}
	if (shared)
		release_bucket(store, key.bucket);
	return result;
}

int kv_store_increment(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		       uint64_t increment, uint64_t *value)
{
	int result;

	*value = 0;
	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return KV_ERROR;
	if (store->versions)
		result = increment_by(store, lookup_of(store, key_hash, key, key_bytes), increment, value, 1);
	else
		result = increment_by(store, lookup_of(store, key_hash, key, key_bytes), increment, value, 0);
	if (result == KV_NOT_FOUND)
		store->stats.increment_notfound++;
	else
		store->stats.increment_found++;
	return result;
}

KV_INLINED int increment_by(struct kv_store *store, struct lookup key, uint64_t increment, uint64_t *value, int shared)
{
	int result = KV_NOT_FOUND;
	struct kv_item *item;
	__u64 *place;

	if (shared)
		take_bucket(store, key.bucket);
	item = find(store, &key, &place, shared);
	if (item && (!shared || start_in_place(store, *place))) {
		result = KV_ERROR;
		if ((kv_item_length(item, shared) & KV_LENGTH_VALUE_MASK) == sizeof(*value)) {
			__u64 *word = value_words(item, key.bytes);

			*value = kv_load(word, shared) + increment;
			kv_save(word, *value, shared);
			result = KV_SUCCESS;
		}
	}
	if (shared) {
		stop_writing(store);
		release_bucket(store, key.bucket);
	}
	return result;
}

void kv_store_reset(struct kv_store *store)
{
	store->stats.resets++;
	if (!store->versions) {
		memset(store->lines, 0, 2 * store->buckets_all * sizeof(struct kv_line));
		store->progress.items = 0;
		if (store->lossless)
			kv_lossless_reset(store);
		return;
	}
	for (uint64_t bucket = 0; bucket < store->buckets; bucket++) {
		uint64_t words;

		/* One that looks empty may become so a moment before this, or full a moment after. */
		if (!kv_load(kv_store_line(store, bucket, 0), 1))
			continue;
		take_bucket(store, bucket);
		words = store->lossless ? kv_lossless_empty(store, bucket) : empty_bucket(store, bucket);
		add(&progress(store, 1)->items, -(int64_t)words, 1);
		release_bucket(store, bucket);
	}
}

/* ---- The circular log ---- */

/* Make room at the tail; the entry's 48-bit offset. From here on what it overwrites counts as gone. */
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
	return offset & KV_LOG_OFFSET_MASK;
}

/* ---- Items ---- */

/* Copy an item's value and length out, if it fits. */
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

/* A key or a value with the zeros behind it; even an empty value has a word. */
KV_INLINED void write_padded(__u64 *words, const uint8_t *bytes, uint32_t length, int shared)
{
	if (!shared) {
		words[value_capacity(length) / 8 - 1] = 0;
		if (length)
			memcpy(words, bytes, length);
		return;
	}
	if (length == 0)
		kv_save(words, 0, 1);
	for (uint32_t i = 0; i < length; i += 8)
		kv_save(&words[i / 8], kv_word_of(bytes + i, length - i), 1);
}

/* ---- The index ---- */

/* Put a new key's word where a dead item's is, else in a free place, else where the oldest item's is: the one farthest
 * from the tail, which the log would overwrite first anyway. */
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

/* Take a word out: the bucket's last one fills its place. */
KV_INLINED void remove_word(struct kv_store *store, uint64_t bucket, __u64 *word, int shared)
{
	__u64 *last = kv_store_way(store, bucket, words_in_use(store, bucket) - 1);

	kv_save(word, *last, shared);
	kv_save(last, 0, shared);
}

/* Take all words of a cache's bucket out, in shared mode; how many they were. */
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
 * Drop the words of dead items, some buckets for each append, in proportion to the log that it has filled: a round
 * through the index takes one or two laps of the log (or, if there are more buckets than the log has words, as many
 * laps as give a bucket each word). A word therefore leaves the index long before the tail is 2^48 past it, where its
 * offset would look like a new one.
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

	/* Backwards: the last word, which fills the gap, has been looked at. */
	for (uint32_t way = used; way-- > 0;) {
		if (kv_store_distance(store, *kv_store_way(store, bucket, way), shared) <= store->span)
			continue;
		kv_save(kv_store_way(store, bucket, way), *kv_store_way(store, bucket, --used), shared);
		kv_save(kv_store_way(store, bucket, used), 0, shared);
		store->stats.cleanup++;
		add(&progress(store, shared)->items, -1, shared);
	}
}

/* ---- Shared mode: buckets ---- */

/* The version of a bucket that nobody is writing. */
static uint32_t version_when_free(const struct kv_store *store, uint64_t bucket, uint32_t *turns)
{
	uint32_t version;

	while ((version = __atomic_load_n(&store->versions[bucket], __ATOMIC_ACQUIRE)) & 1)
		kv_wait_a_turn(turns);
	return version;
}

/* Whether all that was read of the bucket, and of the item that `word` points to, is of one moment: nobody has written
 * the bucket since, and the log has not come round to the item. `word` is 0 if no item was found. */
static int is_unchanged(const struct kv_store *store, uint64_t bucket, uint32_t version, uint64_t word)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (!(KV_STORE_UNCHECKED & CHECK_VERSION) &&
	    __atomic_load_n(&store->versions[bucket], __ATOMIC_RELAXED) != version)
		return 0;
	return (KV_STORE_UNCHECKED & CHECK_OVERTAKEN) || !word || kv_store_distance(store, word, 1) <= store->span;
}

/* Whether what was read before of an item whose bucket is held was the item's: the log has not come round to it. */
static int is_still_alive(const struct kv_store *store, uint64_t word)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return kv_store_distance(store, word, 1) <= store->span;
}

static void take_bucket(struct kv_store *store, uint64_t bucket)
{
	uint32_t turns = 0;
	uint32_t version;

	if (KV_STORE_UNCHECKED & CHECK_TAKEN)
		return;
	do
		version = version_when_free(store, bucket, &turns);
	while (!__atomic_compare_exchange_n(&store->versions[bucket], &version, version + 1, 0, __ATOMIC_ACQUIRE,
					    __ATOMIC_RELAXED));
	__atomic_thread_fence(__ATOMIC_RELEASE); /* who sees what is written now sees the odd version */
}

/* The same without waiting, and only if nobody has written the bucket since it had this version. */
static int try_to_take_bucket(struct kv_store *store, uint64_t bucket, uint32_t version)
{
	if (!__atomic_compare_exchange_n(&store->versions[bucket], &version, version + 1, 0, __ATOMIC_ACQUIRE,
					 __ATOMIC_RELAXED))
		return 0;
	__atomic_thread_fence(__ATOMIC_RELEASE);
	return 1;
}

static void release_bucket(struct kv_store *store, uint64_t bucket)
{
	uint32_t step = KV_STORE_UNCHECKED & CHECK_TAKEN ? 2 : 1;
	uint32_t *version = &store->versions[bucket];

	__atomic_store_n(version, __atomic_load_n(version, __ATOMIC_RELAXED) + step, __ATOMIC_RELEASE);
}

/* ---- Shared mode: the log ---- */

/* Show that this handle is about to write over the item that `word` points to. 0 if the log has come round to it. A
 * lossless store's items stay where they are while their bucket is held. */
static int start_in_place(struct kv_store *store, uint64_t word)
{
	struct kv_store_common *common = store->common;
	uint64_t tail = kv_store_tail(store, 1);
	uint64_t offset = tail - ((tail - word) & KV_LOG_OFFSET_MASK);

	if (store->lossless)
		return 1;
	/* In one order for all threads: either the tail is seen here, or this offset in wait_for_writers(). */
	__atomic_store_n(&common->writers[store->writer].offset, offset, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_ACQUIRE); /* what was read of the item before is the item's */
	return __atomic_load_n(&common->progress.tail, __ATOMIC_SEQ_CST) - offset <= store->span;
}

/* The log's end is at `tail`, and this handle may write up to there once nobody writes what was there a lap ago. */
static void wait_for_writers(const struct kv_store *store, uint64_t tail)
{
	const struct kv_store_common *common = store->common;
	uint32_t turns = 0;

	for (uint32_t i = 0; i < common->places && !(KV_STORE_UNCHECKED & CHECK_WRITERS); i++) {
		const __u64 *offset = &common->writers[i].offset;
		uint64_t seen;

		/* Signed: one who has appended since may be ahead. */
		while ((seen = __atomic_load_n(offset, __ATOMIC_SEQ_CST)) != KV_STORE_NOT_WRITING &&
		       (int64_t)(tail - seen) > (int64_t)store->span)
			kv_wait_a_turn(&turns);
	}
	__atomic_thread_fence(__ATOMIC_RELEASE); /* who sees what is written now sees the tail */
}

static void stop_writing(struct kv_store *store)
{
	__atomic_store_n(&store->common->writers[store->writer].offset, KV_STORE_NOT_WRITING, __ATOMIC_RELEASE);
}

/* ---- Shared mode: small helpers ---- */

KV_INLINED struct kv_store_progress *progress(struct kv_store *store, int shared)
{
	return shared ? &store->common->progress : &store->progress;
}

/* Set a counter that is at `from`. 0 if another thread has moved it. */
KV_INLINED int move_on(__u64 *counter, uint64_t from, uint64_t to, int shared)
{
	__u64 expected = from;

	if (shared)
		return __atomic_compare_exchange_n(counter, &expected, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
	*counter = to;
	return 1;
}

KV_INLINED void add(__u64 *counter, int64_t change, int shared)
{
	if (shared)
		__atomic_fetch_add(counter, (uint64_t)change, __ATOMIC_RELAXED);
	else
		*counter += (uint64_t)change;
}

void kv_wait_a_turn(uint32_t *turns)
{
	if (++*turns % TURNS_TO_YIELD == 0)
		sched_yield();
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* ---- Small helpers ---- */

/* A value can grow in place up to the end of its last word; even an empty one has a word of its own. */
static uint32_t value_capacity(uint32_t value_bytes)
{
	return value_bytes < KV_VALUE_CAPACITY_MIN ? KV_VALUE_CAPACITY_MIN : KV_ROUNDUP8(value_bytes);
}

static uint64_t next_power_of_two(uint64_t at_least)
{
	return at_least <= 1 ? 1 : 1ULL << (64 - __builtin_clzll(at_least - 1));
}
