/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store_fuzz.c - libFuzzer target: bytes are operations on a small store, and a model predicts every answer.
 *
 * A cache's item may be lost only because the log came round to it or because it was the oldest of a full bucket. Both
 * follow from sizes alone, so the model below, which keeps no index and no log, says exactly which keys must be found.
 * A lossless store's item is never lost; what is refused for want of space the model does not know. Both ways in are
 * driven, the inline ones for small items and the general ones. The log has any length, and may start just before the
 * tail's 2^48, where offsets repeat. The store may be in shared mode and used through two handles in turn, which must
 * make no difference at all. Its memory is the sanitizer's, which sees each byte beyond.
 *
 *   test_store_fuzz.py names the compiler's options and the sources.
 */
#include <stdlib.h>

#include "base/hash.h"
#include "base/memory.h"
#include "store/hot_path.h"

#include "../no_files.h"

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
	uint64_t added; /* by INCREMENTs since the value was written */
	__u64 *place;	/* in the index, where the item was when it was looked up last: much may have happened since */
};

struct model {
	struct model_item items[KEYS];
	uint64_t tail;
	uint64_t log_bytes;
	uint64_t span;
	uint64_t move_to_head; /* bytes from the tail */
	uint64_t buckets;
	int lossless;
};

struct input {
	const uint8_t *data;
	size_t left;
};

static uint8_t next_byte(struct input *input);
static void create(struct input *input, struct model *model, struct kv_store *handles[2]);
static void check_get(struct kv_store *store, struct model *model, struct model_item *item);
static void check_set(struct kv_store *store, struct model *model, struct model_item *item, uint32_t value_bytes,
		      uint8_t seed);
static void check_add(struct kv_store *store, struct model *model, struct model_item *item, uint32_t value_bytes,
		      uint8_t seed);
static void check_delete(struct kv_store *store, const struct model *model, struct model_item *item);
static void check_increment(struct kv_store *store, const struct model *model, struct model_item *item, uint64_t by);
static void check_reset(struct kv_store *store, struct model *model);
static void check_written(struct kv_store *store, struct model *model, struct model_item *item, uint32_t value_bytes,
			  uint8_t seed, int result);
static void check_count(struct kv_store *store, const struct model *model);
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

		switch (operation % 16) {
		case 0:
		case 1:
			check_get(store, &model, item);
			break;
		case 2:
			check_set(store, &model, item, operation / 16 * 16 + next_byte(&input) % 16, seed);
			break;
		case 3:
			check_set(store, &model, item, next_byte(&input) * 8u % (KV_VALUE_MAX + 1), seed);
			break;
		case 4:
			for (uint32_t k = 0; k < KEYS; k++)
				check_set(store, &model, &model.items[k], operation / 16 * 2, seed);
			break;
		case 5:
			check_refused(store, item);
			break;
		case 6:
			check_add(store, &model, item, operation / 16 * 4 + next_byte(&input) % 4, seed);
			break;
		case 7:
		case 8:
			check_delete(store, &model, item);
			break;
		case 9:
			for (uint32_t k = 0; k < KEYS; k++)
				if (k % (1 + operation / 16) == 0)
					check_delete(store, &model, &model.items[k]);
			break;
		case 10:
		case 11:
			check_increment(store, &model, item, 0x0101010101010101ULL * next_byte(&input));
			break;
		case 12:
			if (next_byte(&input) % 8 == 0)
				check_reset(store, &model);
			break;
		case 13:
			check_set(store, &model, item, 8, seed);
			break;
		default:
			check_set(store, &model, item, operation / 16 % 9, seed);
		}
		check_count(store, &model);
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

/* Bytes choose kind and sizes, how much of the hashes is left (so that keys share buckets and tags), what the keys
 * look like, where the tail starts, what a GET moves, and whether there are two handles. */
static void create(struct input *input, struct model *model, struct kv_store *handles[2])
{
	static const uint64_t hash_masks[] = { ~0ULL, ~0xfffcULL, 3ULL << 46 | 3, 0xffffULL << 48, 0 };
	uint8_t sizes = next_byte(input), mask = next_byte(input), lengths = next_byte(input);
	uint8_t start = next_byte(input), shared = next_byte(input), odd = next_byte(input);
	struct kv_store_options options = {
		.item_count = 1 + sizes % 16 * 4,
		.log_bytes = (64ULL << sizes / 16 % 10) + (odd % 2 ? (64ULL << sizes / 16 % 10) * odd / 256 : 0),
		.kind = next_byte(input) % 2 ? KV_STORE_LOSSLESS : KV_STORE_CACHE,
		.move_to_head = next_byte(input) * 257u + 1,
	};
	struct kv_store *store = kv_store_create(&options);

	CHECK(store);
	model->lossless = options.kind == KV_STORE_LOSSLESS;
	model->log_bytes = (options.log_bytes + 63) / 64 * 64;
	for (model->span = 64; model->span < model->log_bytes;)
		model->span *= 2;
	model->move_to_head = model->log_bytes * options.move_to_head / 65536;
	if (options.move_to_head == 65536 || model->lossless)
		model->move_to_head = ~0ULL;
	model->buckets = store->buckets;
	CHECK(kv_store_memory_bytes(&options) == store->stats.index_bytes + model->log_bytes);
	/* Whole laps, so that positions in the log stay as they were. */
	if (!model->lossless) {
		model->tail = start % 4 ? (1ULL << KV_LOG_OFFSET_BITS) - (start / 4 * model->span) : 0;
		store->progress.tail = model->tail;
		store->progress.cleaned = kv_store_cleanup_due(store, model->tail);
	}
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
	return item->stored && (model->lossless || model->tail - item->offset <= model->span);
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

static uint64_t model_append(struct model *model, uint32_t entry_bytes)
{
	if (model->tail % model->span + entry_bytes > model->log_bytes)
		model->tail += model->span - model->tail % model->span;
	model->tail += entry_bytes;
	return model->tail - entry_bytes;
}

static uint32_t model_capacity(uint32_t value_bytes)
{
	return value_bytes < 8 ? 8 : (value_bytes + 7) / 8 * 8;
}

static int model_set(struct model *model, struct model_item *item, uint32_t value_bytes, uint8_t seed)
{
	uint32_t entry_bytes = kv_store_entry_bytes(item->key_bytes, value_bytes);
	int was_live = model_is_live(model, item);

	if (!model->lossless && (!was_live || value_bytes > item->value_capacity)) {
		if (entry_bytes > model->log_bytes)
			return KV_INSUFFICIENT_SPACE;
		item->offset = model_append(model, entry_bytes);
		item->value_capacity = model_capacity(value_bytes);
		item->stored = was_live; /* a new key's place must not count itself */
		if (!was_live)
			model_evict_from(model, model_bucket(model, item));
	}
	item->stored = 1;
	item->value_bytes = value_bytes;
	item->seed = seed;
	item->added = 0;
	return KV_SUCCESS;
}

/* What a GET does to an item that it finds. */
static void model_get(struct model *model, struct model_item *item)
{
	uint32_t entry_bytes = kv_store_entry_bytes(item->key_bytes, item->value_bytes);
	uint64_t age_bytes = model->tail - item->offset;

	if (model->move_to_head == ~0ULL || !model_is_live(model, item))
		return;
	if (age_bytes > model->tail % model->span)
		age_bytes -= model->span - model->log_bytes;
	if (age_bytes <= model->move_to_head || age_bytes <= entry_bytes)
		return;
	item->offset = model_append(model, entry_bytes);
	item->value_capacity = model_capacity(item->value_bytes);
}

/* ---- Operations, with what must come of them ---- */

static void fill(uint8_t *value, uint32_t value_bytes, uint8_t seed, uint64_t added)
{
	uint64_t word;

	for (uint32_t i = 0; i < value_bytes; i++)
		value[i] = (uint8_t)(seed + i * 3) | 1;
	if (value_bytes == 8 && added) {
		memcpy(&word, value, 8);
		word += added;
		memcpy(value, &word, 8);
	}
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
				   item->place, &value_word, &value_bytes, &long_value, kv_store_is_shared(store));

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

static void check_get(struct kv_store *store, struct model *model, struct model_item *item)
{
	int expected = model_is_live(model, item) ? KV_SUCCESS : KV_NOT_FOUND;
	uint8_t wanted[KV_VALUE_MAX], value[KV_VALUE_MAX];
	uint32_t value_bytes = ~0u;

	fill(wanted, item->value_bytes, item->seed, item->added);
	model_get(model, item);
	if (item->key_bytes <= 8)
		check_get8(store, item, expected, wanted);
	CHECK(kv_store_get(store, item->key_hash, item->key, item->key_bytes, value, sizeof(value), &value_bytes) ==
	      expected);
	if (item->key_bytes <= 8)
		model_get(model, item);
	CHECK(kv_store_test(store, item->key_hash, item->key, item->key_bytes) == expected);
	CHECK(kv_store_tail(store, store->versions != NULL) == model->tail);
	kv_store_prefetch_bucket(store, item->key_hash, kv_store_is_shared(store));
	item->place = kv_store_prefetch_item(store, item->key_hash, kv_store_is_shared(store));
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

	fill(value, value_bytes, seed, 0);
	if (item->key_bytes <= 8 && value_bytes <= 8)
		result = kv_store_set8(store, item->key_hash, word_of(item->key, item->key_bytes), item->key_bytes,
				       item->place, word_of(value, value_bytes), value_bytes);
	else
		result = kv_store_set(store, item->key_hash, item->key, item->key_bytes, value, value_bytes);
	check_written(store, model, item, value_bytes, seed, result);
}

static void check_add(struct kv_store *store, struct model *model, struct model_item *item, uint32_t value_bytes,
		      uint8_t seed)
{
	int too_large = kv_store_entry_bytes(item->key_bytes, value_bytes) > model->log_bytes;
	int was_live = model_is_live(model, item), result;
	uint8_t value[KV_VALUE_MAX];

	fill(value, value_bytes, seed, 0);
	result = kv_store_add(store, item->key_hash, item->key, item->key_bytes, value, value_bytes);
	if (was_live)
		CHECK(result == (too_large ? KV_INSUFFICIENT_SPACE : KV_EXISTS));
	else
		check_written(store, model, item, value_bytes, seed, result);
	check_get(store, model, item);
}

/* Whether this is what had to come of a write; nobody but the allocator knows what is full. */
static void check_written(struct kv_store *store, struct model *model, struct model_item *item, uint32_t value_bytes,
			  uint8_t seed, int result)
{
	if (model->lossless && result != KV_SUCCESS)
		CHECK(result == KV_INSUFFICIENT_SPACE);
	else
		CHECK(result == model_set(model, item, value_bytes, seed));
	CHECK(kv_store_tail(store, store->versions != NULL) == model->tail);
	check_get(store, model, item);
}

static void check_delete(struct kv_store *store, const struct model *model, struct model_item *item)
{
	int expected = model_is_live(model, item) ? KV_SUCCESS : KV_NOT_FOUND;

	CHECK(kv_store_delete(store, item->key_hash, item->key, item->key_bytes) == expected);
	item->stored = 0;
}

static void check_increment(struct kv_store *store, const struct model *model, struct model_item *item, uint64_t by)
{
	uint64_t value, sum;
	int result = kv_store_increment(store, item->key_hash, item->key, item->key_bytes, by, &value);

	if (!model_is_live(model, item)) {
		CHECK(result == KV_NOT_FOUND && value == 0);
	} else if (item->value_bytes != 8) {
		CHECK(result == KV_ERROR && value == 0);
	} else {
		item->added += by;
		fill((uint8_t *)&sum, 8, item->seed, item->added);
		CHECK(result == KV_SUCCESS && value == sum);
	}
}

static void check_reset(struct kv_store *store, struct model *model)
{
	struct kv_store_stats stats;

	kv_store_reset(store);
	kv_store_get_stats(store, &stats);
	CHECK(stats.count == 0 && stats.overflow_buckets == 0);
	for (uint32_t k = 0; k < KEYS; k++)
		model->items[k].stored = 0;
}

/* The index may have a cache's dead items, and nothing but a lossless store's live ones. */
static void check_count(struct kv_store *store, const struct model *model)
{
	struct kv_store_stats stats;
	uint64_t live = 0;

	for (uint32_t k = 0; k < KEYS; k++)
		live += (uint64_t)model_is_live(model, &model->items[k]);
	kv_store_get_stats(store, &stats);
	CHECK(model->lossless ? stats.count == live : stats.count >= live);
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

/* ---- Instead of memory.c ---- */

void *kv_memory_map(size_t bytes, int want_huge, int *pages)
{
	void *memory = aligned_alloc(64, bytes % 64 ? bytes + 64 - bytes % 64 : bytes);

	*pages = want_huge ? KV_PAGES_HUGE : KV_PAGES_SMALL;
	return memory ? memset(memory, 0, bytes) : NULL;
}

void kv_memory_unmap(void *memory, size_t bytes)
{
	(void)bytes;
	free(memory);
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
