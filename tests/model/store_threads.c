/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store_threads.c - threads that use one store at the same time, each through its own handle, and check every answer.
 *
 * Each key has one writer, whose writes are numbered; a value follows from key and number, so that a torn one, or one
 * of another key, shows. Before a write its number is noted as started, after it as stored. A GET must then return a
 * value no older than what was stored before it began, and no newer than what was started before it ended. It may find
 * nothing only if the log is too short for all keys (`lossy`).
 *
 *   store_threads SECONDS THREADS KEYS ITEM_COUNT LOG_BYTES LOSSY
 *
 * Prints its counts and returns 0, or says on standard error what is wrong and returns 1.
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "store.h"

#define THREADS_MAX KV_STORE_HANDLES_MAX
#define KEYS_MAX 256
#define LONG_KEY_BYTES 21
#define VALUE_BYTES_MAX 200
#define NUMBERED_BYTES 16 /* values of at least so many bytes begin with their number */

/* What a key's number decides: how it is written and read. */
enum kind { KIND_INLINE, KIND_SHORT_KEY, KIND_LONG_KEY, KINDS };

struct key {
	_Alignas(128) uint64_t started; /* numbers of the last write */
	uint64_t stored;
	uint64_t hash;
	uint32_t bytes;
	uint8_t text[32]; /* zero padded */
};

struct worker {
	_Alignas(128) struct kv_store *store;
	uint32_t id;
	uint64_t random, gets, misses, sets;
	pthread_t thread;
};

static struct key keys[KEYS_MAX];
static struct worker workers[THREADS_MAX];
static uint32_t key_count, thread_count;
static int lossy, stop;

static uint64_t number(const char *text);
static void make_keys(void);
static void *work(void *argument);
static void set_next(struct worker *worker, uint32_t k);
static void check_get(struct worker *worker, uint32_t k);
static void report(const struct kv_store *store);
static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

int main(int argc, char **argv)
{
	uint64_t log_bytes;
	struct kv_store *store;
	struct timespec run;
	double seconds;

	if (argc != 7)
		fail("usage: store_threads SECONDS THREADS KEYS ITEM_COUNT LOG_BYTES LOSSY");
	seconds = atof(argv[1]);
	thread_count = (uint32_t)number(argv[2]);
	key_count = (uint32_t)number(argv[3]);
	log_bytes = number(argv[5]);
	lossy = number(argv[6]) != 0;
	if (thread_count == 0 || thread_count > THREADS_MAX || key_count < thread_count || key_count > KEYS_MAX)
		fail("too few or too many threads or keys");
	make_keys();
	store = kv_store_create(number(argv[4]), log_bytes, 0);
	for (uint32_t i = 0; i < thread_count; i++) {
		workers[i] = (struct worker){ .id = i, .random = 88172645463325252ULL * (i + 1) };
		workers[i].store = i || !store ? kv_store_share(store) : store;
		if (!workers[i].store)
			fail("no memory");
	}
	for (uint32_t i = 0; i < thread_count; i++)
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			fail("no thread");
	run = (struct timespec){ .tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (time_t)seconds) * 1e9) };
	nanosleep(&run, NULL);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (uint32_t i = 0; i < thread_count; i++)
		pthread_join(workers[i].thread, NULL);
	for (uint32_t k = 0; k < key_count; k++)
		for (uint32_t i = 0; i < thread_count; i++)
			check_get(&workers[i], k);
	report(store);
	for (uint32_t i = 0; i < thread_count; i++)
		kv_store_destroy(workers[i].store);
	return 0;
}

static uint64_t number(const char *text)
{
	return strtoull(text, NULL, 10);
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static uint64_t next_random(struct worker *worker)
{
	worker->random ^= worker->random << 13;
	worker->random ^= worker->random >> 7;
	worker->random ^= worker->random << 17;
	return worker->random >> 16;
}

static void make_keys(void)
{
	for (uint32_t k = 0; k < key_count; k++) {
		struct key *key = &keys[k];

		key->bytes = k % KINDS == KIND_LONG_KEY ? LONG_KEY_BYTES : 1 + k % 8;
		key->text[0] = (uint8_t)k; /* a long key differs from others in its last byte too */
		key->text[key->bytes - 1] = (uint8_t)k;
		key->hash = kv_hash(key->text, key->bytes);
	}
}

/* The value of a key's write: its length. */
static uint32_t make_value(uint32_t k, uint64_t seq, uint64_t *words)
{
	uint64_t seed = mix((uint64_t)k << 48 ^ seq);
	uint32_t value_bytes = seed % (k % KINDS == KIND_INLINE ? 9 : VALUE_BYTES_MAX + 1);

	for (uint32_t i = 0; i < VALUE_BYTES_MAX / 8; i++)
		words[i] = mix(seed + i);
	if (value_bytes >= NUMBERED_BYTES)
		words[0] = seq;
	return value_bytes;
}

/* ---- A thread ---- */

static void *work(void *argument)
{
	struct worker *worker = argument;
	uint32_t own = (key_count - worker->id + thread_count - 1) / thread_count;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		if (next_random(worker) % 2)
			set_next(worker, worker->id + (uint32_t)(next_random(worker) % own) * thread_count);
		else
			check_get(worker, (uint32_t)(next_random(worker) % key_count));
	}
	return NULL;
}

static uint64_t key_word(const struct key *key)
{
	uint64_t word;

	memcpy(&word, key->text, 8);
	return word;
}

static void set_next(struct worker *worker, uint32_t k)
{
	struct key *key = &keys[k];
	uint64_t seq = key->started + 1, value[VALUE_BYTES_MAX / 8];
	uint32_t value_bytes = make_value(k, seq, value);
	int result;

	kv_store_prefetch_bucket(worker->store, key->hash);
	kv_store_prefetch_item(worker->store, key->hash);
	__atomic_store_n(&key->started, seq, __ATOMIC_SEQ_CST);
	if (k % KINDS == KIND_INLINE)
		result = kv_store_set8(worker->store, key->hash, key_word(key), key->bytes,
				       kv_word_of((const uint8_t *)value, value_bytes), value_bytes);
	else
		result = kv_store_set(worker->store, key->hash, key->text, key->bytes, (const uint8_t *)value,
				      value_bytes);
	__atomic_store_n(&key->stored, seq, __ATOMIC_SEQ_CST);
	worker->sets++;
	if (result != KV_SUCCESS)
		fail("key %u: SET returned %d", k, result);
}

/* As the engine does it: small keys inline, and whatever is longer than 8 bytes by the general way. */
static int get_any(struct worker *worker, uint32_t k, uint8_t *value, uint32_t *value_bytes)
{
	const struct key *key = &keys[k];
	const uint8_t *long_value;
	__u64 value_word;
	int result;

	if (k % KINDS != KIND_LONG_KEY) {
		result = kv_store_get8(worker->store, key->hash, key_word(key), key->bytes, &value_word, value_bytes,
				       &long_value);
		if (*value_bytes <= 8) {
			if (*value_bytes < 8 && value_word >> (8 * *value_bytes))
				fail("key %u: %u bytes are not zero padded", k, *value_bytes);
			memcpy(value, &value_word, 8);
			return result;
		}
		if (long_value && worker->store->versions)
			fail("key %u: a pointer into a log that others write", k);
	}
	return kv_store_get(worker->store, key->hash, key->text, key->bytes, value, VALUE_BYTES_MAX, value_bytes);
}

/* Whether this is what the key's write `seq` stored. */
static int is_write(uint32_t k, uint64_t seq, const uint8_t *value, uint32_t value_bytes)
{
	uint64_t words[VALUE_BYTES_MAX / 8];

	return make_value(k, seq, words) == value_bytes && memcmp(words, value, value_bytes) == 0;
}

static void check_get(struct worker *worker, uint32_t k)
{
	uint64_t oldest = __atomic_load_n(&keys[k].stored, __ATOMIC_SEQ_CST), newest, seq;
	uint8_t value[VALUE_BYTES_MAX];
	uint32_t value_bytes;
	int result = get_any(worker, k, value, &value_bytes);

	newest = __atomic_load_n(&keys[k].started, __ATOMIC_SEQ_CST);
	worker->gets++;
	if (result == KV_NOT_FOUND) {
		worker->misses++;
		if (oldest && !lossy)
			fail("key %u: lost after write %llu", k, (unsigned long long)oldest);
		return;
	}
	if (result != KV_SUCCESS)
		fail("key %u: GET returned %d", k, result);
	if (value_bytes < NUMBERED_BYTES) {
		for (seq = newest; seq >= oldest && seq > 0; seq--)
			if (is_write(k, seq, value, value_bytes))
				return;
		fail("key %u: no write since %llu stored these %u bytes", k, (unsigned long long)oldest, value_bytes);
	}
	memcpy(&seq, value, 8);
	if (!is_write(k, seq, value, value_bytes))
		fail("key %u: no write ever stored these %u bytes", k, value_bytes);
	if (seq < oldest || seq > newest)
		fail("key %u: write %llu came back, while %llu to %llu were due", k, (unsigned long long)seq,
		     (unsigned long long)oldest, (unsigned long long)newest);
}

/* The counts, which must fit together: GETs, misses, SETs, and laps of the log. */
static void report(const struct kv_store *store)
{
	uint64_t gets = 0, misses = 0, sets = 0, stored = 0, items = 0;
	struct kv_store_stats stats;

	for (uint32_t i = 0; i < thread_count; i++) {
		gets += workers[i].gets;
		misses += workers[i].misses;
		sets += workers[i].sets;
		kv_store_get_stats(workers[i].store, &stats);
		stored += stats.set_new + stats.set_in_place + stats.set_moved + stats.set_evicted;
		items += stats.set_new - stats.cleanup;
	}
	if (stored != sets || items != stats.items_estimate)
		fail("%llu SETs are counted as %llu, and %llu items as %llu", (unsigned long long)sets,
		     (unsigned long long)stored, (unsigned long long)items, (unsigned long long)stats.items_estimate);
	printf("%llu %llu %llu %llu\n", (unsigned long long)gets, (unsigned long long)misses, (unsigned long long)sets,
	       (unsigned long long)(kv_store_tail(store, store->versions != NULL) / store->log_bytes));
}

static void fail(const char *format, ...)
{
	va_list arguments;

	flockfile(stderr); /* for good: of several threads that fail the first one speaks */
	va_start(arguments, format);
	fputs("store_threads: ", stderr);
	vfprintf(stderr, format, arguments);
	fputs("\n", stderr);
	va_end(arguments);
	_Exit(1);
}
