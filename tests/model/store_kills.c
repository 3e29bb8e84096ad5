/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store_kills.c - a process that is killed at every single store to a region, and what the next process finds there.
 *
 * A child works on a store in a region, one instruction at a time (PTRACE_SINGLESTEP). Whenever an instruction has
 * changed the region, the parent copies it, as a kill would leave it at this point, opens the copy and asks for every
 * key. What the child's finished operations have stored must be there; of the operation under way, all or nothing. Then
 * the copy must go on as a store: it takes further operations, and is left and opened once more.
 *
 *   store_kills kind=0 shared=0 items=8 log=1024 operations=150 seed=1 longest=200 resets=1
 *
 * A cache and an inline store may lose a key (the log is short) but never give an old value back. Prints the number of
 * points visited and the sums of what kv_store_open() has repaired, and returns 0; or says on standard error what is
 * wrong, and returns 1.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/memory.h"
#include "store/hot_path.h"
#include "store/region.h"
#include "store/short_items.h"

#define KEYS 20
#define OPERATIONS_MAX 4096
#define VALUE_BYTES_MAX 400
#define SEVERAL 3	/* operations on each copy */
#define REOPEN_EVERY 40 /* operations */

enum action { ACTION_SET, ACTION_ADD, ACTION_DELETE, ACTION_INCREMENT, ACTION_GET, ACTION_RESET };

struct operation {
	enum action action;
	uint32_t key, value_bytes;
	uint64_t number; /* of the value */
};

struct value {
	int is_there;
	uint32_t bytes;
	uint8_t text[VALUE_BYTES_MAX];
};

/* Memory of child and parent, beside the region. */
struct shared {
	volatile uint32_t begun, done;
	volatile int results[OPERATIONS_MAX];
};

struct load {
	uint64_t kind, shared, items, log, operations, seed, longest, resets;
};

static struct load load = { KV_STORE_CACHE, 0, 8, 1024, 150, 1, 200, 1 };
static struct operation operations[OPERATIONS_MAX];
static struct value model[KEYS]; /* after the operations that are done */
static struct shared *shared;
static struct kv_store_options options;
static struct kv_store_repair sums;
static uint64_t random_state, points;

static void read_arguments(int argc, char **argv);
static void plan_operations(void);
static void work(int region_fd);
static void follow(pid_t child, int region_fd);
static void visit(int copy_fd, uint32_t begun, uint32_t done);

int main(int argc, char **argv)
{
	int region_fd;
	pid_t child;

	read_arguments(argc, argv);
	options = (struct kv_store_options){ .item_count = load.items,
					     .log_bytes = load.log,
					     .kind = (uint32_t)load.kind,
					     .move_to_head = load.kind == KV_STORE_LOSSLESS ? 65536 : 30000 };
	plan_operations();
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	region_fd = kv_store_region(&options);
	if (shared == MAP_FAILED || region_fd < 0) {
		perror("store_kills");
		return 2;
	}
	child = fork();
	if (child == 0)
		work(region_fd);
	follow(child, region_fd);
	printf("%llu %llu %llu %llu %llu\n", (unsigned long long)points, (unsigned long long)sums.undone,
	       (unsigned long long)sums.doubled, (unsigned long long)sums.stale, (unsigned long long)sums.damaged);
	return 0;
}

static void read_arguments(int argc, char **argv)
{
	const struct {
		const char *name;
		uint64_t *place;
	} known[] = { { "kind", &load.kind },	    { "shared", &load.shared },		{ "items", &load.items },
		      { "log", &load.log },	    { "operations", &load.operations }, { "seed", &load.seed },
		      { "longest", &load.longest }, { "resets", &load.resets } };

	for (int i = 1; i < argc; i++) {
		size_t name_bytes = strcspn(argv[i], "=");
		uint64_t *place = NULL;

		for (size_t k = 0; k < sizeof(known) / sizeof(known[0]); k++)
			if (strlen(known[k].name) == name_bytes && strncmp(known[k].name, argv[i], name_bytes) == 0)
				place = known[k].place;
		if (!place || argv[i][name_bytes] != '=') {
			fprintf(stderr, "store_kills: %s?\n", argv[i]);
			exit(2);
		}
		*place = strtoull(argv[i] + name_bytes + 1, NULL, 10);
	}
	if (load.operations > OPERATIONS_MAX - SEVERAL || load.longest > VALUE_BYTES_MAX)
		exit(2);
}

/* ---- Operations ---- */

static uint64_t next_random(uint64_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (random_state >> 16) % below;
}

static void plan_operations(void)
{
	random_state = load.seed * 0x9e3779b97f4a7c15ULL + 1;
	for (uint32_t i = 0; i < load.operations + SEVERAL; i++) {
		static const uint32_t lengths[] = { 0, 3, 8, 8, 8, 9, 24 };
		uint64_t choice = next_random(40), length = next_random(9);
		struct operation *operation = &operations[i];

		operation->key = (uint32_t)next_random(KEYS);
		operation->value_bytes = length < 7 ? lengths[length] : (uint32_t)next_random(load.longest + 1);
		operation->number = i + 1;
		operation->action = choice < 24	  ? ACTION_SET
				    : choice < 27 ? ACTION_ADD
				    : choice < 33 ? ACTION_DELETE
				    : choice < 36 ? ACTION_INCREMENT
						  : ACTION_GET;
		if (load.resets && choice == 39 && next_random(3) == 0)
			operation->action = ACTION_RESET;
	}
}

/* The text of a key: of 3 or 8 bytes, or a long one. */
static uint32_t key_of(uint32_t key, uint8_t text[32])
{
	uint32_t bytes = key % 4 == 0 ? 3 : key % 4 == 3 ? 21 : 8;

	memset(text, 0, 32);
	memset(text, (int)('a' + key), bytes);
	return bytes;
}

static struct value value_of(const struct operation *operation)
{
	struct value value = { 1, operation->value_bytes, { 0 } };

	for (uint32_t i = 0; i < value.bytes; i++)
		value.text[i] = (uint8_t)(operation->number * 31 + i + operation->key);
	return value;
}

/* Carry an operation out as an engine does: short keys and values by the fast paths. */
static int carry_out(struct kv_store *store, const struct operation *operation)
{
	struct value value = value_of(operation);
	uint8_t key[32], room[VALUE_BYTES_MAX];
	uint32_t key_bytes = key_of(operation->key, key), value_bytes;
	uint64_t hash = kv_hash(key, key_bytes), key_word = kv_word_of(key, key_bytes), sum;

	switch (operation->action) {
	case ACTION_SET:
		if (key_bytes > 8 || value.bytes > 8)
			return kv_store_set(store, hash, key, key_bytes, value.text, value.bytes);
		if (store->short_lines)
			return kv_short_set8(store, hash, key_word, key_bytes, kv_word_of(value.text, value.bytes),
					     value.bytes);
		return kv_store_set8(store, hash, key_word, key_bytes, NULL, kv_word_of(value.text, value.bytes),
				     value.bytes);
	case ACTION_ADD:
		return kv_store_add(store, hash, key, key_bytes, value.text, value.bytes);
	case ACTION_DELETE:
		return kv_store_delete(store, hash, key, key_bytes);
	case ACTION_INCREMENT:
		return kv_store_increment(store, hash, key, key_bytes, operation->number, &sum);
	case ACTION_GET:
		return kv_store_get(store, hash, key, key_bytes, room, sizeof(room), &value_bytes);
	default:
		kv_store_reset(store);
		return KV_SUCCESS;
	}
}

/* Return a key's value after an operation that has succeeded. */
static struct value value_after(struct value before, const struct operation *operation, uint32_t key)
{
	uint64_t number;

	if (operation->action == ACTION_RESET)
		return (struct value){ 0 };
	if (operation->key != key)
		return before;
	switch (operation->action) {
	case ACTION_SET:
	case ACTION_ADD: /* the key was not there, or lost */
		return value_of(operation);
	case ACTION_DELETE:
		return (struct value){ 0 };
	case ACTION_INCREMENT:
		if (!before.is_there || before.bytes != 8)
			return before;
		memcpy(&number, before.text, 8);
		number += operation->number;
		memcpy(before.text, &number, 8);
		return before;
	default:
		return before;
	}
}

/* ---- The child ---- */

/* Open the store anew, as the next process would: it may be killed there as well. */
static struct kv_store *open_handles(int region_fd, struct kv_store *before)
{
	static struct kv_store *other;
	struct kv_store_repair repair;
	struct kv_store *store;

	if (before) {
		kv_store_destroy(before);
		kv_store_destroy(other);
	}
	store = kv_store_open(&options, region_fd, &repair);
	other = load.shared && store ? kv_store_share(store) : NULL;
	if (!store || (load.shared && !other))
		_exit(2);
	return store;
}

static void work(int region_fd)
{
	struct kv_store *store = open_handles(region_fd, NULL);

	ptrace(PTRACE_TRACEME, 0, NULL, NULL);
	raise(SIGSTOP);
	for (uint32_t i = 0; i < load.operations; i++) {
		if (i % REOPEN_EVERY == REOPEN_EVERY - 1)
			store = open_handles(region_fd, store);
		shared->begun = i + 1;
		shared->results[i] = carry_out(store, &operations[i]);
		shared->done = i + 1;
	}
	_exit(0);
}

/* ---- The parent ---- */

static int is_success(int result)
{
	return result == KV_SUCCESS;
}

/* Let the child make one step after the other; visit each state of its region. */
static void follow(pid_t child, int region_fd)
{
	int status, copy_fd, pages;
	uint32_t applied = 0;
	uint8_t *region, *copy, *last;
	size_t bytes;

	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
		exit(2);
	bytes = (size_t)lseek(region_fd, 0, SEEK_END);
	copy_fd = kv_memory_file("copy", bytes, 0);
	region = kv_memory_map_file(region_fd, bytes, 0, &pages);
	copy = kv_memory_map_file(copy_fd, bytes, 0, &pages);
	last = malloc(bytes);
	if (!region || !copy || !last)
		exit(2);
	memcpy(last, region, bytes);
	for (;;) {
		ptrace(PTRACE_SINGLESTEP, child, NULL, NULL);
		if (waitpid(child, &status, 0) != child || WIFSIGNALED(status))
			exit(2);
		if (WIFEXITED(status))
			break;
		if (memcmp(last, region, bytes) == 0)
			continue;
		memcpy(last, region, bytes);
		memcpy(copy, region, bytes);
		for (; applied < shared->done; applied++)
			for (uint32_t key = 0; key < KEYS; key++)
				if (is_success(shared->results[applied]))
					model[key] = value_after(model[key], &operations[applied], key);
		visit(copy_fd, shared->begun, shared->done);
	}
	if (WEXITSTATUS(status))
		exit(2);
	kv_memory_unmap(region, bytes);
	kv_memory_unmap(copy, bytes);
	free(last);
}

static struct value ask(struct kv_store *store, uint32_t key)
{
	struct value value = { 0 };
	uint8_t text[32];
	uint32_t key_bytes = key_of(key, text);

	value.is_there = kv_store_get(store, kv_hash(text, key_bytes), text, key_bytes, value.text, sizeof(value.text),
				      &value.bytes) == KV_SUCCESS;
	return value;
}

static int is_equal(const struct value *a, const struct value *b)
{
	return a->is_there == b->is_there &&
	       (!a->is_there || (a->bytes == b->bytes && memcmp(a->text, b->text, a->bytes) == 0));
}

static void fail(const char *what, uint32_t key, const struct operation *operation)
{
	fprintf(stderr, "store_kills: point %llu, in operation %llu (action %d, key %u): key %u %s\n",
		(unsigned long long)points, (unsigned long long)operation->number, operation->action, operation->key,
		key, what);
	exit(1);
}

static struct kv_store *open_again(int copy_fd)
{
	struct kv_store_repair repair;
	struct kv_store *store = kv_store_open(&options, copy_fd, &repair);

	if (!store) {
		fprintf(stderr, "store_kills: point %llu: the region is refused: %s\n", (unsigned long long)points,
			strerror(errno));
		exit(1);
	}
	sums.undone += repair.undone;
	sums.doubled += repair.doubled;
	sums.stale += repair.stale;
	sums.damaged += repair.damaged;
	return store;
}

/* Return what the store has of each key. Each must be as before the operation under way, or as after it. */
static void check(struct kv_store *store, struct value found[KEYS], const struct operation *under_way)
{
	int is_lossy = load.kind != KV_STORE_LOSSLESS;

	for (uint32_t key = 0; key < KEYS; key++) {
		struct value after = value_after(model[key], under_way, key);

		if (!is_lossy && under_way->action == ACTION_ADD && model[key].is_there)
			after = model[key];
		found[key] = ask(store, key);
		if (!is_equal(&found[key], &model[key]) && !is_equal(&found[key], &after) &&
		    !(is_lossy && !found[key].is_there))
			fail(found[key].is_there ? "has a wrong value" : "is lost", key, under_way);
	}
}

static void visit(int copy_fd, uint32_t begun, uint32_t done)
{
	static const struct operation nothing = { ACTION_GET, 0, 0, 0 };
	const struct operation *under_way = begun > done ? &operations[begun - 1] : &nothing;
	struct kv_store *store = open_again(copy_fd);
	struct value found[KEYS], expected[KEYS];
	struct kv_store_stats stats;

	points++;
	check(store, found, under_way);
	memcpy(expected, found, sizeof(expected));
	/* It goes on as a store, */
	for (uint32_t i = 0; i < SEVERAL; i++) {
		struct operation more = operations[load.operations + i];

		more.key = (under_way->key + i) % KEYS;
		if (more.action == ACTION_RESET)
			more.action = ACTION_SET;
		if (is_success(carry_out(store, &more)))
			expected[more.key] = value_after(expected[more.key], &more, more.key);
	}
	kv_store_get_stats(store, &stats);
	kv_store_destroy(store);
	/* and a process that ends leaves all of it. */
	store = open_again(copy_fd);
	for (uint32_t key = 0; key < KEYS; key++) {
		struct value value = ask(store, key);

		if (!is_equal(&value, &expected[key]) && !(load.kind != KV_STORE_LOSSLESS && !value.is_there))
			fail("is wrong after a further change", key, under_way);
	}
	if (load.kind == KV_STORE_LOSSLESS) {
		struct kv_store_stats again;

		kv_store_get_stats(store, &again);
		if (again.count != stats.count || again.overflow_buckets != stats.overflow_buckets)
			fail("and others are counted wrongly", 0, under_way);
	}
	kv_store_destroy(store);
}
