/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store.c - one partition: MICA's lossy index and circular log, for keys and values of any legal length.
 *
 * store.h has the layout and the paths that a batch of small items takes; everything else is here. The terms are those
 * of MICA (Lim et al., NSDI 2014).
 *
 * In shared mode (CRCW) each thread has a handle, and every word that two threads may touch is read and written
 * atomically. Three things keep them apart:
 *
 *   buckets  A writer takes a bucket by making its version odd. Nobody holds two. A reader takes nothing: it looks at
 *            the version, finds the item, copies the value, and starts again if the version has changed since.
 *   tail     Room in the log is reserved by moving the tail before anything is written there. A reader that finds its
 *            item within the last log_bytes after it has copied the value has copied that item and nothing else.
 *   writers  Each handle shows the offset that it is about to write at, in place or behind the tail. Who has moved the
 *            tail by a lap past that waits until it is done: a thread may lose its core between any two instructions,
 *            and would else write over what has been stored there in the meantime.
 *
 * Nobody waits in a circle: who waits for a bucket holds nothing, and who holds one waits for writes in place, which
 * wait for nobody, and for earlier appends, which can only wait for still earlier ones.
 */
#include <errno.h>
#include <sched.h>
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

/* Turns of waiting before a thread gives up its core, perhaps to the one it waits for. */
#define TURNS_TO_YIELD 256

/* The test of the tests: which of these checks a build leaves out, see tests/model/test_store_threads.py. */
#define CHECK_VERSION 1
#define CHECK_OVERTAKEN 2
#define CHECK_WRITERS 4
#ifndef KV_STORE_UNCHECKED
#define KV_STORE_UNCHECKED 0
#endif

static int enter_shared_mode(struct kv_store *store);
static int add_writer(struct kv_store *handle);
static void *zeroed(size_t bytes);
static uint64_t next_power_of_two(uint64_t at_least);
static uint32_t value_capacity(uint32_t value_bytes);
static int refuse(struct kv_store *store, int result);
KV_INLINED uint64_t append(struct kv_store *store, uint32_t entry_bytes, int shared);
KV_INLINED int read_value(const struct kv_store *store, const struct kv_item *item, uint32_t key_bytes, uint8_t *value,
			  uint32_t room, uint32_t *value_bytes, int shared);
KV_INLINED uint32_t capacity_of(const struct kv_item *item, int shared);
KV_INLINED void write_lengths(struct kv_item *item, uint32_t key_bytes, uint32_t value_bytes, uint32_t capacity_bytes,
			      int shared);
KV_INLINED void write_padded(__u64 *words, const uint8_t *bytes, uint32_t length, int shared);
KV_INLINED void put_word(struct kv_store *store, uint64_t key_hash, uint64_t new_word, int shared);
KV_INLINED void cleanup(struct kv_store *store, int shared);
KV_INLINED void cleanup_bucket(struct kv_store *store, uint64_t bucket, int shared);
static uint32_t version_when_free(const struct kv_store *store, uint64_t bucket, uint32_t *turns);
static int is_unchanged(const struct kv_store *store, uint64_t bucket, uint32_t version, uint64_t word);
static void take_bucket(struct kv_store *store, uint64_t bucket);
static void release_bucket(struct kv_store *store, uint64_t bucket);
static int start_in_place(struct kv_store *store, uint64_t word);
static void wait_for_writers(const struct kv_store *store, uint64_t tail);
static void stop_writing(struct kv_store *store);
KV_INLINED struct kv_store_progress *progress(struct kv_store *store, int shared);
KV_INLINED int move_on(__u64 *counter, uint64_t from, uint64_t to, int shared);
KV_INLINED void add(__u64 *counter, int64_t change, int shared);
static void wait_a_turn(uint32_t *turns);

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
	store = zeroed(sizeof(*store));
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
		kv_memory_unmap(store->lines, 2 * store->buckets * sizeof(struct kv_line));
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

void kv_store_get_stats(const struct kv_store *store, struct kv_store_stats *stats)
{
	*stats = store->stats;
	stats->items_estimate = store->common ? kv_load(&store->common->progress.items, 1) : store->progress.items;
}

uint32_t kv_store_entry_bytes(uint32_t key_bytes, uint32_t value_bytes)
{
	return (uint32_t)sizeof(struct kv_item) + KV_ROUNDUP8(key_bytes) + value_capacity(value_bytes);
}

/* ---- GET, SET ---- */

KV_INLINED int get(struct kv_store *store, uint64_t key_hash, uint32_t key_bytes, uint64_t first_word,
		   const uint8_t *rest, uint8_t *value, uint32_t room, uint32_t *value_bytes, int shared);
KV_INLINED void set(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		    const uint8_t *value, uint32_t value_bytes, int shared);

int kv_store_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		 uint32_t room, uint32_t *value_bytes)
{
	const uint8_t *rest = key_bytes > 8 ? key + 8 : NULL;
	uint64_t first_word;

	*value_bytes = 0;
	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return KV_ERROR;
	first_word = kv_word_of(key, key_bytes);
	if (store->versions)
		return get(store, key_hash, key_bytes, first_word, rest, value, room, value_bytes, 1);
	return get(store, key_hash, key_bytes, first_word, rest, value, room, value_bytes, 0);
}

/* kv_store_get8() in shared mode. */
int kv_store_get8_shared(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes,
			 __u64 *value_word, uint32_t *value_bytes)
{
	uint8_t value[8];
	int result = get(store, key_hash, key_bytes, key_word, NULL, value, 8, value_bytes, 1);

	*value_word = *value_bytes <= 8 ? kv_word_of(value, *value_bytes) : 0;
	return result == KV_INSUFFICIENT_SPACE ? KV_SUCCESS : result;
}

int kv_store_set(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes)
{
	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return refuse(store, KV_ERROR);
	if (value_bytes > KV_VALUE_MAX || kv_store_entry_bytes(key_bytes, value_bytes) > store->log_bytes)
		return refuse(store, KV_INSUFFICIENT_SPACE);
	if (store->versions)
		set(store, key_hash, key, key_bytes, value, value_bytes, 1);
	else
		set(store, key_hash, key, key_bytes, value, value_bytes, 0);
	return KV_SUCCESS;
}

KV_INLINED int get(struct kv_store *store, uint64_t key_hash, uint32_t key_bytes, uint64_t first_word,
		   const uint8_t *rest, uint8_t *value, uint32_t room, uint32_t *value_bytes, int shared)
{
	uint32_t rest_bytes = rest ? key_bytes - 8 : 0;
	uint64_t bucket = kv_store_bucket(store, key_hash);
	uint32_t version = 0, turns = 0;
	const struct kv_item *item;
	uint64_t found;
	__u64 *word;
	int result;

	do {
		if (shared)
			version = version_when_free(store, bucket, &turns);
		*value_bytes = 0;
		found = 0;
		result = KV_NOT_FOUND;
		item = kv_store_find(store, key_hash, key_bytes, first_word, rest, rest_bytes, &word, shared);
		if (item) {
			found = kv_load(word, shared);
			result = read_value(store, item, key_bytes, value, room, value_bytes, shared);
		}
	} while (shared && !is_unchanged(store, bucket, version, found));
	if (result == KV_NOT_FOUND)
		store->stats.get_not_found++;
	else
		store->stats.get_found++;
	return result;
}

KV_INLINED void set(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		    const uint8_t *value, uint32_t value_bytes, int shared)
{
	uint32_t capacity_bytes = value_capacity(value_bytes), key_words = KV_ROUNDUP8(key_bytes) / 8;
	const uint8_t *rest = key_bytes > 8 ? key + 8 : NULL;
	uint64_t bucket = kv_store_bucket(store, key_hash);
	struct kv_item *item;
	__u64 *word = NULL;
	int in_place;

	if (shared)
		take_bucket(store, bucket);
	item = kv_store_find(store, key_hash, key_bytes, kv_word_of(key, key_bytes), rest, rest ? key_bytes - 8 : 0,
			     &word, shared);
	in_place = item && value_bytes <= capacity_of(item, shared) && (!shared || start_in_place(store, *word));
	if (in_place) {
		write_lengths(item, key_bytes, value_bytes, capacity_of(item, shared), shared);
		store->stats.set_in_place++;
	} else {
		uint32_t entry_bytes = kv_store_entry_bytes(key_bytes, value_bytes);
		uint64_t new_word = KV_STORE_TAG(key_hash) << KV_LOG_OFFSET_BITS | append(store, entry_bytes, shared);

		if (item) {
			kv_save(word, new_word, shared);
			store->stats.set_moved++;
		} else {
			put_word(store, key_hash, new_word, shared);
		}
		item = kv_store_item(store, new_word);
		write_lengths(item, key_bytes, value_bytes, capacity_bytes, shared);
		kv_save(&item->key_hash, key_hash, shared);
		write_padded(item->words, key, key_bytes, shared);
	}
	write_padded(&item->words[key_words], value, value_bytes, shared);
	if (shared) {
		stop_writing(store);
		release_bucket(store, bucket);
	}
	if (!in_place)
		cleanup(store, shared);
}

/* ---- The circular log ---- */

/* Make room at the tail; the entry's 48-bit offset. From here on what it overwrites counts as gone. */
KV_INLINED uint64_t append(struct kv_store *store, uint32_t entry_bytes, int shared)
{
	uint64_t tail, offset;

	do {
		tail = kv_store_tail(store, shared);
		offset = tail;
		if ((tail & (store->log_bytes - 1)) + entry_bytes > store->log_bytes)
			offset = (tail | (store->log_bytes - 1)) + 1;
		if (shared)
			__atomic_store_n(&store->common->writers[store->writer].offset, offset, __ATOMIC_RELAXED);
	} while (!move_on(&progress(store, shared)->tail, tail, offset + entry_bytes, shared));
	if (shared)
		wait_for_writers(store, offset + entry_bytes);
	return offset & KV_LOG_OFFSET_MASK;
}

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
KV_INLINED void put_word(struct kv_store *store, uint64_t key_hash, uint64_t new_word, int shared)
{
	uint64_t bucket = kv_store_bucket(store, key_hash), tail = kv_store_tail(store, shared);
	uint64_t oldest_distance = 0;
	uint32_t oldest = 0, used;

	for (used = 0; used < KV_BUCKET_WAYS && *kv_store_way(store, bucket, used); used++) {
		uint64_t distance = (tail - *kv_store_way(store, bucket, used)) & KV_LOG_OFFSET_MASK;

		if (distance > oldest_distance) {
			oldest_distance = distance;
			oldest = used;
		}
	}
	if (oldest_distance > store->log_bytes) {
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

/*
 * Drop the words of dead items, some buckets for each append: a round through the index takes one lap of the log (or,
 * if there are more buckets than the log has words, as many laps as give a bucket each word). A word therefore leaves
 * the index long before the tail is 2^48 bytes past it, where its offset would look like a new one.
 */
KV_INLINED void cleanup(struct kv_store *store, int shared)
{
	uint64_t due = kv_store_tail(store, shared) >> store->cleanup_shift;
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
	uint32_t used = 0;

	while (used < KV_BUCKET_WAYS && *kv_store_way(store, bucket, used))
		used++;
	/* Backwards: the last word, which fills the gap, has been looked at. */
	for (uint32_t way = used; way-- > 0;) {
		if (kv_store_distance(store, *kv_store_way(store, bucket, way), shared) <= store->log_bytes)
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
		wait_a_turn(turns);
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
	return (KV_STORE_UNCHECKED & CHECK_OVERTAKEN) || !word || kv_store_distance(store, word, 1) <= store->log_bytes;
}

static void take_bucket(struct kv_store *store, uint64_t bucket)
{
	uint32_t turns = 0;
	uint32_t version;

	do
		version = version_when_free(store, bucket, &turns);
	while (!__atomic_compare_exchange_n(&store->versions[bucket], &version, version + 1, 0, __ATOMIC_ACQUIRE,
					    __ATOMIC_RELAXED));
	__atomic_thread_fence(__ATOMIC_RELEASE); /* who sees what is written now sees the odd version */
}

static void release_bucket(struct kv_store *store, uint64_t bucket)
{
	uint32_t *version = &store->versions[bucket];

	__atomic_store_n(version, __atomic_load_n(version, __ATOMIC_RELAXED) + 1, __ATOMIC_RELEASE);
}

/* ---- Shared mode: the log ---- */

/* Show that this handle is about to write over the item that `word` points to. 0 if the log has come round to it. */
static int start_in_place(struct kv_store *store, uint64_t word)
{
	struct kv_store_common *common = store->common;
	uint64_t tail = kv_store_tail(store, 1);
	uint64_t offset = tail - ((tail - word) & KV_LOG_OFFSET_MASK);

	/* In one order for all threads: either the tail is seen here, or this offset in wait_for_writers(). */
	__atomic_store_n(&common->writers[store->writer].offset, offset, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_ACQUIRE); /* what was read of the item before is the item's */
	return __atomic_load_n(&common->progress.tail, __ATOMIC_SEQ_CST) - offset <= store->log_bytes;
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
		       (int64_t)(tail - seen) > (int64_t)store->log_bytes)
			wait_a_turn(&turns);
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

static void wait_a_turn(uint32_t *turns)
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
