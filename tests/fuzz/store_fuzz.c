/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store_fuzz.c - libFuzzer target: bytes are operations on a small store, and a model predicts every answer.
 *
 * An item may be lost only because the log came round to it or because it was the oldest of a full bucket. Both follow
 * from sizes alone, so the model below, which keeps no index and no log, says exactly which keys must be found. Both
 * ways in are driven, the inline ones for small items and the general ones. The log may start just before the tail's
 * 2^48, where offsets repeat. The store may be in shared mode and used through two handles in turn, which must make no
 * difference at all.
 *
 *   clang-14 -fsanitize=fuzzer,address,undefined -I dpukv_xdp/_core -I bpf tests/fuzz/store_fuzz.c \
 *            dpukv_xdp/_core/{hash,memory,store}.c
 */
#include <stdlib.h>

#include "store.h"

#define KEYS 64
#define OPERATIONS_MAX 4096

/* Aborts in every build: assert() would vanish with NDEBUG. */
#define CHECK(condition)                  \
	do {                              \
		if (!(condition))         \
			__builtin_trap(); \
	} while (0)

struct model_item {
	uint8_t key[KV_KEY_MAX];
	uint32_t key_bytes;
	uint64_t key_hash;
	int stored;
	uint64_t offset; /* of 64 bits: never ambiguous */
	uint32_t value_capacity;
	uint32_t value_bytes;
	uint8_t seed;
};

struct model {
	struct model_item items[KEYS];
	uint64_t tail;
	uint64_t log_bytes;
	uint64_t buckets;
};

struct input {
	const uint8_t *data;
	size_t left;
};

static uint8_t next_byte(struct input *input);
static void create(struct input *input, struct model *model, struct kv_store *handles[2]);
static void check_get(struct kv_store *store, const struct model *model, const struct model_item *item);
static void check_set(struct kv_store *store, struct model *model, struct model_item *item, uint32_t value_bytes,
		      uint8_t seed);
static void check_refused(struct kv_store *store, const struct model_item *item);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, size };
	struct model model = { 0 };
	struct kv_store *handles[2];

	create(&input, &model, handles);
	for (uint32_t i = 0; input.left && i < OPERATIONS_MAX; i++) {
		uint8_t operation = next_byte(&input), choice = next_byte(&input);
		struct model_item *item = &model.items[choice % KEYS];
		struct kv_store *store = handles[choice / KEYS % 2];
		uint8_t seed = (uint8_t)(i * 31 + 1);

		switch (operation % 8) {
		case 0:
		case 1:
			check_get(store, &model, item);
			break;
		case 2:
			check_set(store, &model, item, operation / 8 * 8 + next_byte(&input) % 8, seed);
			break;
		case 3:
			check_set(store, &model, item, next_byte(&input) * 8u % (KV_VALUE_MAX + 1), seed);
			break;
		case 4:
			for (uint32_t k = 0; k < KEYS; k++)
				check_set(store, &model, &model.items[k], operation / 8, seed);
			break;
		case 5:
			check_refused(store, item);
			break;
		default:
			check_set(store, &model, item, operation / 8 % 9, seed);
		}
	}
	for (uint32_t k = 0; k < KEYS; k++)
		check_get(handles[k % 2], &model, &model.items[k]);
	kv_store_destroy(handles[0]);
	if (handles[1] != handles[0])
		kv_store_destroy(handles[1]);
	return 0;
}

static uint8_t next_byte(struct input *input)
{
	if (!input->left)
		return 0;
	input->left--;
	return *input->data++;
}

/* Five bytes choose the sizes, how much of the hashes is left (so that keys share buckets and tags), what the keys
 * look like, where the tail starts, and whether there are two handles. */
static void create(struct input *input, struct model *model, struct kv_store *handles[2])
{
	static const uint64_t hash_masks[] = { ~0ULL, ~0xfffcULL, 3ULL << 46 | 3, 0xffffULL << 48, 0 };
	uint8_t sizes = next_byte(input), mask = next_byte(input), lengths = next_byte(input);
	uint8_t start = next_byte(input), shared = next_byte(input);
	struct kv_store *store = kv_store_create(1 + sizes % 16 * 4, 64ULL << sizes / 16 % 10, 0);

	CHECK(store);
	/* Whole laps, so that positions in the log stay as they were. */
	model->tail = start % 4 ? (1ULL << KV_LOG_OFFSET_BITS) - (start / 4 * store->log_bytes) : 0;
	store->progress.tail = model->tail;
	store->progress.cleaned = model->tail >> store->cleanup_shift;
	model->log_bytes = store->log_bytes;
	model->buckets = store->buckets;
	for (uint32_t k = 0; k < KEYS; k++) {
		struct model_item *item = &model->items[k];

		/* All zeros, told apart by their length, or by their last byte only. */
		item->key_bytes = 1 + (lengths % 2 ? k * (1 + lengths / 2 % 4) : lengths / 2 * (k % 3));
		item->key[item->key_bytes - 1] = lengths % 2 ? 0 : (uint8_t)k;
		item->key_hash = kv_hash(item->key, item->key_bytes) & hash_masks[mask % 5];
	}
	handles[0] = store;
	handles[1] = shared % 2 ? kv_store_share(store) : store;
	CHECK(handles[1]);
}

/* ---- The model ---- */

static int model_is_live(const struct model *model, const struct model_item *item)
{
	return item->stored && model->tail - item->offset <= model->log_bytes;
}

static uint64_t model_bucket(const struct model *model, const struct model_item *item)
{
	return (item->key_hash >> 16 & 0xffffffff) * model->buckets >> 32;
}

static void model_evict_from(struct model *model, uint64_t bucket)
{
	struct model_item *oldest = NULL;
	uint32_t live = 0;

	for (uint32_t k = 0; k < KEYS; k++) {
		struct model_item *item = &model->items[k];

		if (!model_is_live(model, item) || model_bucket(model, item) != bucket)
			continue;
		live++;
		if (!oldest || item->offset < oldest->offset)
			oldest = item;
	}
	CHECK(live <= KV_BUCKET_WAYS);
	if (live == KV_BUCKET_WAYS)
		oldest->stored = 0;
}

static int model_set(struct model *model, struct model_item *item, uint32_t value_bytes, uint8_t seed)
{
	uint32_t entry_bytes = kv_store_entry_bytes(item->key_bytes, value_bytes);
	uint64_t left = model->log_bytes - model->tail % model->log_bytes;
	int was_live = model_is_live(model, item);

	if (!was_live || value_bytes > item->value_capacity) {
		if (entry_bytes > model->log_bytes)
			return KV_INSUFFICIENT_SPACE;
		if (entry_bytes > left)
			model->tail += left;
		item->offset = model->tail;
		model->tail += entry_bytes;
		item->value_capacity = value_bytes < 8 ? 8 : (value_bytes + 7) / 8 * 8;
		item->stored = was_live; /* a new key's place must not count itself */
		if (!was_live)
			model_evict_from(model, model_bucket(model, item));
	}
	item->stored = 1;
	item->value_bytes = value_bytes;
	item->seed = seed;
	return KV_SUCCESS;
}

/* ---- Operations, with what must come of them ---- */

static void fill(uint8_t *value, uint32_t value_bytes, uint8_t seed)
{
	for (uint32_t i = 0; i < value_bytes; i++)
		value[i] = (uint8_t)(seed + i * 3) | 1;
}

static uint64_t word_of(const uint8_t *bytes, uint32_t length)
{
	uint64_t word = 0;

	if (length)
		memcpy(&word, bytes, length);
	return word;
}

static void check_get8(struct kv_store *store, const struct model_item *item, int expected, const uint8_t *value)
{
	__u64 value_word = ~0ULL;
	uint32_t value_bytes = ~0u;
	const uint8_t *long_value = NULL;
	int result = kv_store_get8(store, item->key_hash, word_of(item->key, item->key_bytes), item->key_bytes,
				   &value_word, &value_bytes, &long_value);

	CHECK(result == expected);
	if (result != KV_SUCCESS) {
		CHECK(value_bytes == 0 && value_word == 0);
		return;
	}
	CHECK(value_bytes == item->value_bytes);
	if (value_bytes <= 8)
		CHECK(value_word == word_of(value, value_bytes));
	else if (store->versions)
		CHECK(!long_value);
	else
		CHECK(memcmp(long_value, value, value_bytes) == 0);
}

static void check_get(struct kv_store *store, const struct model *model, const struct model_item *item)
{
	int expected = model_is_live(model, item) ? KV_SUCCESS : KV_NOT_FOUND;
	uint8_t wanted[KV_VALUE_MAX], value[KV_VALUE_MAX];
	uint32_t value_bytes = ~0u;

	kv_store_prefetch_bucket(store, item->key_hash);
	kv_store_prefetch_item(store, item->key_hash);
	fill(wanted, item->value_bytes, item->seed);
	if (item->key_bytes <= 8)
		check_get8(store, item, expected, wanted);
	CHECK(kv_store_get(store, item->key_hash, item->key, item->key_bytes, value, sizeof(value), &value_bytes) ==
	      expected);
	if (expected == KV_SUCCESS) {
		CHECK(value_bytes == item->value_bytes);
		CHECK(memcmp(value, wanted, value_bytes) == 0);
	}
}

static void check_set(struct kv_store *store, struct model *model, struct model_item *item, uint32_t value_bytes,
		      uint8_t seed)
{
	uint8_t value[KV_VALUE_MAX];
	int result;

	fill(value, value_bytes, seed);
	if (item->key_bytes <= 8 && value_bytes <= 8)
		result = kv_store_set8(store, item->key_hash, word_of(item->key, item->key_bytes), item->key_bytes,
				       word_of(value, value_bytes), value_bytes);
	else
		result = kv_store_set(store, item->key_hash, item->key, item->key_bytes, value, value_bytes);
	CHECK(result == model_set(model, item, value_bytes, seed));
	CHECK(kv_store_tail(store, store->versions != NULL) == model->tail);
	check_get(store, model, item);
}

static void check_refused(struct kv_store *store, const struct model_item *item)
{
	uint8_t value[KV_VALUE_MAX + 1] = { 0 }, key[KV_KEY_MAX + 1] = { 0 };
	uint32_t value_bytes;

	CHECK(kv_store_set(store, item->key_hash, key, 0, value, 1) == KV_ERROR);
	CHECK(kv_store_set(store, item->key_hash, key, KV_KEY_MAX + 1, value, 1) == KV_ERROR);
	CHECK(kv_store_get(store, item->key_hash, key, 0, value, 1, &value_bytes) == KV_ERROR && value_bytes == 0);
	CHECK(kv_store_set(store, item->key_hash, item->key, item->key_bytes, value, KV_VALUE_MAX + 1) ==
	      KV_INSUFFICIENT_SPACE);
}

#ifdef KV_FUZZ_STANDALONE
#include <stdio.h>
#include <time.h>

/* Without libFuzzer (gcc has none): reproducible random inputs until the given seconds are over. */
int main(int argc, char **argv)
{
	static uint8_t data[2048];
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 10);
	uint64_t state = 1, runs = 0;

	for (; time(NULL) < end; runs++) {
		for (size_t i = 0; i < sizeof(data); i++) {
			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
			data[i] = (uint8_t)(state >> 32);
		}
		LLVMFuzzerTestOneInput(data, state % sizeof(data));
	}
	printf("%llu runs\n", (unsigned long long)runs);
	return 0;
}
#endif
