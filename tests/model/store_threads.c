/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store_threads.c - threads that use one store at the same time, each through its own handle, and check every answer.
 *
 * Each key has one writer, whose writes are numbered; a value follows from key and number, so that a torn one, or one
 * of another key, shows. Some numbers are a DELETE. Before a write its number is noted as started, after it as stored.
 * A GET must then return a value no older than what was stored before it began, and no newer than what was started
 * before it ended. It may find nothing only if one of these numbers is a DELETE, or if items get lost (`lossy`: the log
 * is too short, or somebody resets the store).
 *
 * Besides, all writers INCREMENT the same counters, which must lose none and never go back, and ADD and DELETE the same
 * batons: who has added one holds it, alone, until he deletes it.
 *
 *   store_threads seconds=1 threads=4 writers=4 keys=48 items=256 log=1048576
 *                 kind=0 move=65536 lossy=0 resets=0 deletes=1 words=0
 *
 * Those who are not writers are readers as in CREW. Without `deletes` (and batons) a cache's items soon stay where they
 * are, so that its log never comes round. With `words` all keys have 8 bytes and all values at most 8, so that only the
 * bytes of a key tell it from another one. Prints its counts and returns 0, or says on standard error what is
 * wrong and returns 1.
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/hash.h"
#include "store/hot_path.h"
#include "store/short_items.h"

#define THREADS_MAX KV_STORE_HANDLES_MAX
#define KEYS_MAX 256
#define LONG_KEY_BYTES 21
#define VALUE_BYTES_MAX 200
#define SHARED_KEYS 3
#define ADD_EVERY 4	    /* one in so many insertions is an ADD */
#define DELETE_EVERY 5	    /* one in so many writes is a DELETE */
#define RESET_EVERY 5000    /* operations of one thread */
#define PATIENCE_SECONDS 40 /* a store whose locks were left out may run round in circles */
#define NUMBERED_BYTES 16   /* values of at least so many bytes begin with their number */

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
	uint64_t random, gets, misses, sets, deletes;
	uint64_t incremented[SHARED_KEYS], seen[SHARED_KEYS]; /* sums, and the last value that came back */
	pthread_t thread;
};

/* What the threads share. */
struct load {
	double seconds;
	uint64_t threads, writers, keys, items, log, kind, move, lossy, resets, deletes, words;
};

static struct key keys[KEYS_MAX];
static struct key counters[SHARED_KEYS], batons[SHARED_KEYS];
static uint32_t holders[SHARED_KEYS];
static struct worker workers[THREADS_MAX];
static struct load load = { 1, 4, 4, 48, 256, 1 << 20, KV_STORE_CACHE, KV_MOVE_TO_HEAD_NEVER, 0, 0, 1, 0 };
static int stop;

static void read_arguments(int argc, char **argv);
static void make_keys(void);
static void open_handles(void);
static void *work(void *argument);
static void write_next(struct worker *worker, uint32_t k);
static void check_get(struct worker *worker, uint32_t k);
static void increment(struct worker *worker, uint32_t i);
static void pass_baton(struct worker *worker, uint32_t i);
static void check_counters(struct worker *worker);
static void report(void);
static void check_reset(struct worker *worker);
static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

int main(int argc, char **argv)
{
	struct timespec run;

	read_arguments(argc, argv);
	alarm(PATIENCE_SECONDS);
	make_keys();
	open_handles();
	for (uint32_t i = 0; i < load.threads; i++)
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			fail("no thread");
	run.tv_sec = (time_t)load.seconds;
	run.tv_nsec = (long)((load.seconds - (double)run.tv_sec) * 1e9);
	nanosleep(&run, NULL);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (uint32_t i = 0; i < load.threads; i++)
		pthread_join(workers[i].thread, NULL);
	for (uint32_t k = 0; k < load.keys; k++)
		for (uint32_t i = 0; i < load.threads; i++)
			check_get(&workers[i], k);
	check_counters(&workers[0]);
	report();
	check_reset(&workers[0]);
	for (uint32_t i = 0; i < load.threads; i++)
		kv_store_destroy(workers[i].store);
	return 0;
}

static void read_arguments(int argc, char **argv)
{
	static const struct {
		const char *name;
		uint64_t *number;
	} options[] = { { "threads=", &load.threads }, { "writers=", &load.writers }, { "keys=", &load.keys },
			{ "items=", &load.items },     { "log=", &load.log },	      { "kind=", &load.kind },
			{ "move=", &load.move },       { "lossy=", &load.lossy },     { "resets=", &load.resets },
			{ "deletes=", &load.deletes }, { "words=", &load.words } };

	for (int a = 1; a < argc; a++) {
		size_t i = 0;

		if (strncmp(argv[a], "seconds=", 8) == 0) {
			load.seconds = atof(argv[a] + 8);
			continue;
		}
		while (i < sizeof(options) / sizeof(*options) &&
		       strncmp(argv[a], options[i].name, strlen(options[i].name)))
			i++;
		if (i == sizeof(options) / sizeof(*options))
			fail("what is %s?", argv[a]);
		*options[i].number = strtoull(argv[a] + strlen(options[i].name), NULL, 10);
	}
	if (load.threads == 0 || load.threads > THREADS_MAX || load.writers == 0 || load.writers > load.threads ||
	    load.keys < load.writers || load.keys > KEYS_MAX)
		fail("too few or too many threads or keys");
}

static void open_handles(void)
{
	struct kv_store_options options = { .item_count = load.items,
					    .log_bytes = load.log,
					    .kind = (uint32_t)load.kind,
					    .move_to_head = (uint32_t)load.move };
	uint64_t zero = 0;

	for (uint32_t i = 0; i < load.threads; i++) {
		workers[i] = (struct worker){ .id = i, .random = 88172645463325252ULL * (i + 1) };
		workers[i].store = i ? kv_store_share(workers[0].store) : kv_store_create(&options);
		if (!workers[i].store)
			fail("no memory");
		kv_store_set_reader(workers[i].store, i >= load.writers);
	}
	for (uint32_t i = 0; i < SHARED_KEYS; i++)
		if (kv_store_set(workers[0].store, counters[i].hash, counters[i].text, 8, (const uint8_t *)&zero, 8))
			fail("no counter");
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

static enum kind kind_of(uint32_t k)
{
	return load.words ? KIND_INLINE : k % KINDS;
}

static void make_keys(void)
{
	for (uint32_t i = 0; i < SHARED_KEYS; i++) {
		counters[i].bytes = batons[i].bytes = 8;
		memcpy(counters[i].text, (char[8]){ "count 0" }, 8);
		memcpy(batons[i].text, (char[8]){ "baton 0" }, 8);
		counters[i].text[7] = batons[i].text[7] = (uint8_t)i;
		counters[i].hash = kv_hash(counters[i].text, 8);
		batons[i].hash = kv_hash(batons[i].text, 8);
	}
	for (uint32_t k = 0; k < load.keys; k++) {
		struct key *key = &keys[k];

		key->bytes = kind_of(k) == KIND_LONG_KEY ? LONG_KEY_BYTES : load.words ? 8 : 1 + k % 8;
		key->text[0] = (uint8_t)k; /* a long key differs from others in its last byte too */
		key->text[key->bytes - 1] = (uint8_t)k;
		key->hash = kv_hash(key->text, key->bytes);
	}
}

static int is_delete(uint32_t k, uint64_t seq)
{
	return seq == 0 || (load.deletes && mix((uint64_t)k << 40 ^ seq) % DELETE_EVERY == 0);
}

/* The value of a key's write: its length. */
static uint32_t make_value(uint32_t k, uint64_t seq, uint64_t *words)
{
	uint64_t seed = mix((uint64_t)k << 48 ^ seq);
	uint32_t value_bytes = seed % (kind_of(k) == KIND_INLINE ? 9 : VALUE_BYTES_MAX + 1);

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
	int is_writer = worker->id < load.writers;
	uint32_t own = is_writer ? (uint32_t)((load.keys - worker->id + load.writers - 1) / load.writers) : 0;

	for (uint64_t turn = 1; !__atomic_load_n(&stop, __ATOMIC_RELAXED); turn++) {
		uint32_t choice = (uint32_t)(next_random(worker) % 8);

		if (!load.lossy && load.kind != KV_STORE_LOSSLESS &&
		    kv_store_tail(worker->store, worker->store->versions != NULL) > load.log / 2)
			break; /* long before the log comes round */
		if (load.resets && worker->id == 0 && turn % RESET_EVERY == 0)
			kv_store_reset(worker->store);
		if (!is_writer || choice < 3)
			check_get(worker, (uint32_t)(next_random(worker) % load.keys));
		else if (choice == 3)
			increment(worker, (uint32_t)(next_random(worker) % SHARED_KEYS));
		else if (choice == 4 && !load.lossy && load.deletes)
			pass_baton(worker, (uint32_t)(next_random(worker) % SHARED_KEYS));
		else
			write_next(worker, worker->id + (uint32_t)(next_random(worker) % own * load.writers));
	}
	return NULL;
}

static uint64_t key_word(const struct key *key)
{
	uint64_t word;

	memcpy(&word, key->text, 8);
	return word;
}

static int insert(struct worker *worker, uint32_t k, uint64_t seq, int add)
{
	const struct key *key = &keys[k];
	uint64_t value[VALUE_BYTES_MAX / 8];
	uint32_t value_bytes = make_value(k, seq, value);

	worker->sets++;
	if (add)
		return kv_store_add(worker->store, key->hash, key->text, key->bytes, (const uint8_t *)value,
				    value_bytes);
	if (kind_of(k) == KIND_INLINE && worker->store->short_lines)
		return kv_short_set8(worker->store, key->hash, key_word(key), key->bytes,
				     kv_word_of((const uint8_t *)value, value_bytes), value_bytes);
	if (kind_of(k) == KIND_INLINE)
		return kv_store_set8(worker->store, key->hash, key_word(key), key->bytes, NULL,
				     kv_word_of((const uint8_t *)value, value_bytes), value_bytes);
	return kv_store_set(worker->store, key->hash, key->text, key->bytes, (const uint8_t *)value, value_bytes);
}

/* The key's next write: its number says whether that is a DELETE. */
static void write_next(struct worker *worker, uint32_t k)
{
	struct key *key = &keys[k];
	uint64_t seq = key->started + 1;
	int was_there = !is_delete(k, seq - 1), result;

	kv_store_prefetch_bucket(worker->store, key->hash, kv_store_is_shared(worker->store));
	kv_store_prefetch_item(worker->store, key->hash, kv_store_is_shared(worker->store));
	/* An ADD of a key that is there stores nothing: what it would have stored must never come back. */
	if (was_there && !load.lossy && next_random(worker) % ADD_EVERY == 0) {
		result = insert(worker, k, seq + (1ULL << 40), 1);
		worker->sets--;
		if (result != KV_EXISTS)
			fail("key %u: ADD returned %d after write %llu", k, result, (unsigned long long)seq - 1);
	}
	__atomic_store_n(&key->started, seq, __ATOMIC_SEQ_CST);
	if (is_delete(k, seq)) {
		result = kv_store_delete(worker->store, key->hash, key->text, key->bytes);
		worker->deletes += result == KV_SUCCESS;
		if (result != (was_there ? KV_SUCCESS : KV_NOT_FOUND) && !(load.lossy && result == KV_NOT_FOUND))
			fail("key %u: DELETE returned %d after write %llu", k, result, (unsigned long long)seq - 1);
	} else {
		result = insert(worker, k, seq, !was_there && seq % ADD_EVERY == 0);
		if (result != KV_SUCCESS)
			fail("key %u: SET or ADD returned %d after write %llu", k, result, (unsigned long long)seq - 1);
	}
	__atomic_store_n(&key->stored, seq, __ATOMIC_SEQ_CST);
}

/* Counters go up; they may only be lost as any item may. */
static void increment(struct worker *worker, uint32_t i)
{
	const struct key *key = &counters[i];
	uint64_t value, by = 1 + next_random(worker) % 1000, zero = 0;
	int result = kv_store_increment(worker->store, key->hash, key->text, key->bytes, by, &value);

	if (load.lossy && result == KV_NOT_FOUND) {
		result = kv_store_add(worker->store, key->hash, key->text, key->bytes, (const uint8_t *)&zero, 8);
		worker->sets += result == KV_SUCCESS;
		return;
	}
	if (result != KV_SUCCESS)
		fail("key counter %u: INCREMENT returned %d", i, result);
	if (!load.lossy && value < worker->seen[i] + by)
		fail("key counter %u: it was %llu, and went back to %llu", i, (unsigned long long)worker->seen[i],
		     (unsigned long long)value);
	worker->seen[i] = value;
	worker->incremented[i] += by;
}

/* Of several who ADD a key at the same time one succeeds. */
static void pass_baton(struct worker *worker, uint32_t i)
{
	const struct key *key = &batons[i];
	int result = kv_store_add(worker->store, key->hash, key->text, key->bytes, (const uint8_t *)"baton", 5);

	if (result == KV_EXISTS)
		return;
	worker->sets++;
	if (result != KV_SUCCESS)
		fail("key baton %u: ADD returned %d", i, result);
	if (__atomic_fetch_add(&holders[i], 1, __ATOMIC_SEQ_CST) != 0)
		fail("key baton %u: two hold it", i);
	if (kv_store_test(worker->store, key->hash, key->text, key->bytes) != KV_SUCCESS)
		fail("key baton %u: not there", i);
	__atomic_fetch_sub(&holders[i], 1, __ATOMIC_SEQ_CST);
	if (kv_store_delete(worker->store, key->hash, key->text, key->bytes) != KV_SUCCESS)
		fail("key baton %u: somebody else has deleted it", i);
	worker->deletes++;
}

static int get_short(struct kv_store *store, const struct key *key, __u64 *value_word, uint32_t *value_bytes,
		     const uint8_t **long_value)
{
	int result;

	*long_value = NULL;
	if (!store->short_lines)
		return kv_store_get8(store, key->hash, key_word(key), key->bytes, NULL, value_word, value_bytes,
				     long_value, kv_store_is_shared(store));
	result = kv_short_get8(store, key->hash, key_word(key), key->bytes, value_word, value_bytes,
			       kv_store_is_shared(store));
	if (result == KV_SHORT_ASK_INDEX)
		*value_bytes = KV_INLINE_MAX + 1;
	return result;
}

/* As the engine does it: small keys inline, and whatever is longer than 8 bytes by the general way. */
static int get_any(struct worker *worker, uint32_t k, uint8_t *value, uint32_t *value_bytes)
{
	const struct key *key = &keys[k];
	const uint8_t *long_value;
	__u64 value_word;
	int result;

	if (kind_of(k) != KIND_LONG_KEY) {
		result = get_short(worker->store, key, &value_word, value_bytes, &long_value);
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

	return !is_delete(k, seq) && make_value(k, seq, words) == value_bytes && memcmp(words, value, value_bytes) == 0;
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
		for (seq = oldest; seq <= newest && !load.lossy; seq++)
			if (is_delete(k, seq))
				return;
		if (!load.lossy)
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

/* ---- When all have stopped ---- */

static void check_counters(struct worker *worker)
{
	for (uint32_t i = 0; i < SHARED_KEYS && !load.lossy; i++) {
		uint64_t sum = 0, value;

		for (uint32_t w = 0; w < load.threads; w++)
			sum += workers[w].incremented[i];
		if (kv_store_increment(worker->store, counters[i].hash, counters[i].text, 8, 0, &value) || value != sum)
			fail("key counter %u: increments of %llu together became %llu", i, (unsigned long long)sum,
			     (unsigned long long)value);
	}
}

/* The counts, which must fit together: GETs, misses, SETs and ADDs, laps of the log, moves to its head. */
static void report(void)
{
	uint64_t gets = 0, misses = 0, sets = SHARED_KEYS, deletes = 0, stored = 0, items = 0, deleted = 0, moved = 0;
	const struct kv_store *store = workers[0].store;
	struct kv_store_stats stats;

	for (uint32_t i = 0; i < load.threads; i++) {
		gets += workers[i].gets;
		misses += workers[i].misses;
		sets += workers[i].sets;
		deletes += workers[i].deletes;
		kv_store_get_stats(workers[i].store, &stats);
		stored += stats.set_new + stats.set_inplace + stats.set_moved + stats.set_evicted;
		deleted += stats.delete_found;
		items += stats.set_new - stats.cleanup - stats.delete_found;
		moved += stats.move_to_head_performed;
	}
	if (stored != sets || deleted != deletes || (items != stats.count && !load.resets))
		fail("%llu SETs are counted as %llu, %llu DELETEs as %llu, and %llu items as %llu",
		     (unsigned long long)sets, (unsigned long long)stored, (unsigned long long)deletes,
		     (unsigned long long)deleted, (unsigned long long)items, (unsigned long long)stats.count);
	printf("%llu %llu %llu %llu %llu\n", (unsigned long long)gets, (unsigned long long)misses,
	       (unsigned long long)sets,
	       (unsigned long long)(kv_store_tail(store, store->versions != NULL) / store->span),
	       (unsigned long long)moved);
}

/* An empty store, and all its memory back: the largest item fits. */
static void check_reset(struct worker *worker)
{
	uint32_t room = (uint32_t)(load.log < 4096 ? load.log : 4096) - 64;
	static uint8_t value[4096];
	struct kv_store_stats stats;

	kv_store_reset(worker->store);
	kv_store_get_stats(worker->store, &stats);
	if (stats.count || stats.overflow_buckets)
		fail("%llu items and %llu overflow buckets are left after a RESET", (unsigned long long)stats.count,
		     (unsigned long long)stats.overflow_buckets);
	if (kv_store_set(worker->store, 1, (const uint8_t *)"x", 1, value, room < KV_VALUE_MAX ? room : KV_VALUE_MAX))
		fail("no space after a RESET");
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
