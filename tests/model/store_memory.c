/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store_memory.c - the allocator against an account of its own, and a store as large as the paper's.
 *
 *   store_memory allocator SEED    blocks of random sizes, filled, checked, shrunk and given back
 *   store_memory large KIND        192 Mi items and 12 GiB: created without touching the memory, and used at its end
 *
 * Returns 0, or says on standard error what is wrong and returns 1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/hash.h"
#include "base/memory.h"
#include "store/allocator.h"
#include "store/hot_path.h"
#include "store/short_items.h"

#include "../no_files.h"

#define BLOCKS_MAX 4096
#define TURNS 60000
#define LARGE_ITEMS (192ULL << 20)
#define LARGE_BYTES (12ULL << 30)

#define CHECK(condition)                                                                      \
	do {                                                                                  \
		if (!(condition)) {                                                           \
			fprintf(stderr, "store_memory: line %d: %s\n", __LINE__, #condition); \
			exit(1);                                                              \
		}                                                                             \
	} while (0)

struct block {
	uint64_t offset, bytes, room;
	uint8_t seed;
};

static struct kv_allocator allocator;
static struct block blocks[BLOCKS_MAX];
static uint32_t block_count;
static uint64_t random_state;

static void test_allocator(uint64_t memory_bytes);
static void test_large(uint32_t kind);

int main(int argc, char **argv)
{
	CHECK(argc == 3);
	random_state = strtoull(argv[2], NULL, 10) * 0x9e3779b97f4a7c15ULL + 1;
	if (strcmp(argv[1], "large") == 0) {
		test_large((uint32_t)atoi(argv[2]));
		return 0;
	}
	for (uint64_t memory_bytes = 64; memory_bytes <= 4 << 20; memory_bytes = memory_bytes * 5 / 64 * 64)
		test_allocator(memory_bytes);
	return 0;
}

/* ---- The allocator ---- */

static uint64_t next_random(uint64_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (random_state >> 16) % below;
}

static int is_intact(const struct block *block)
{
	for (uint64_t i = 0; i < block->bytes; i++)
		if (allocator.memory[block->offset + i] != (uint8_t)(block->seed + i))
			return 0;
	return 1;
}

static void take(uint64_t bytes)
{
	struct block *block = &blocks[block_count];
	uint64_t used_bytes = allocator.used_bytes;

	if (block_count == BLOCKS_MAX)
		return;
	block->offset = kv_allocator_take(&allocator, bytes, &block->room);
	if (block->offset == KV_ALLOCATOR_NONE) {
		CHECK(allocator.used_bytes == used_bytes && used_bytes + bytes > allocator.bytes / 4);
		return;
	}
	CHECK(block->offset % 8 == 0 && block->room >= bytes && block->room < (bytes < 32 ? 32 : bytes) + 48);
	CHECK(block->offset + block->room <= allocator.bytes - KV_ALLOCATOR_HEADER_BYTES);
	CHECK(allocator.used_bytes == used_bytes + block->room + KV_ALLOCATOR_HEADER_BYTES);
	block->bytes = bytes;
	block->seed = (uint8_t)next_random(256);
	for (uint64_t i = 0; i < bytes; i++)
		allocator.memory[block->offset + i] = (uint8_t)(block->seed + i);
	block_count++;
}

static void give(uint32_t i)
{
	CHECK(is_intact(&blocks[i]));
	kv_allocator_give(&allocator, blocks[i].offset);
	blocks[i] = blocks[--block_count];
}

static void shrink(uint32_t i)
{
	struct block *block = &blocks[i];
	uint64_t bytes = next_random(block->bytes + 1), room = kv_allocator_shrink(&allocator, block->offset, bytes);

	CHECK(room >= bytes && room <= block->room);
	block->bytes = bytes;
	block->room = room;
	CHECK(is_intact(block));
}

/* All bytes in use are those of the blocks at hand; and after the last one has come back it is one block again. */
static void check_account(void)
{
	uint64_t used_bytes = 0;

	for (uint32_t i = 0; i < block_count; i++)
		used_bytes += blocks[i].room + KV_ALLOCATOR_HEADER_BYTES;
	CHECK(used_bytes == allocator.used_bytes);
}

static void test_sizes_that_fit(uint8_t *memory, uint64_t memory_bytes);

static void test_allocator(uint64_t memory_bytes)
{
	uint64_t whole_bytes = memory_bytes - KV_ALLOCATOR_HEADER_BYTES, room;
	uint8_t *memory = aligned_alloc(64, memory_bytes);

	CHECK(memory);
	kv_allocator_reset(&allocator, memory, memory_bytes);
	for (uint32_t turn = 0; turn < TURNS; turn++) {
		/* Now mostly taking, then mostly giving. */
		uint64_t choice = next_random(16), takes = turn / 4000 % 2 ? 5 : 10;

		if (choice < takes)
			take(1 + next_random(choice == 0 ? 3600 : 200));
		else if (block_count && choice == 15)
			shrink((uint32_t)next_random(block_count));
		else if (block_count)
			give((uint32_t)next_random(block_count));
		if (turn % 1000 == 0)
			check_account();
	}
	while (block_count)
		give((uint32_t)next_random(block_count));
	CHECK(allocator.used_bytes == 0);
	CHECK((*(const uint64_t *)memory & ~7ULL) == whole_bytes);
	CHECK(kv_allocator_take(&allocator, KV_ALLOCATOR_TAKE_MAX + 1, &room) == KV_ALLOCATOR_NONE);
	CHECK(kv_allocator_take(&allocator, memory_bytes, &room) == KV_ALLOCATOR_NONE);
	if (memory_bytes >= 1 << 20)
		test_sizes_that_fit(memory, memory_bytes);
	free(memory);
}

/* Free blocks of one size, each between two in use. */
static void make_holes(uint64_t bytes, uint32_t count)
{
	uint64_t offsets[BLOCKS_MAX], room;

	for (uint32_t i = 0; i < count; i++) {
		offsets[i] = kv_allocator_take(&allocator, bytes, &room);
		CHECK(offsets[i] != KV_ALLOCATOR_NONE);
		CHECK(kv_allocator_take(&allocator, 32, &room) != KV_ALLOCATOR_NONE);
	}
	for (uint32_t i = 0; i < count; i++)
		kv_allocator_give(&allocator, offsets[i]);
}

/* Bytes that the largest free block could hold: walks over all of them. */
static uint64_t largest_free(void)
{
	uint64_t largest = 0, header;

	for (uint64_t block = 0; block < allocator.bytes - KV_ALLOCATOR_HEADER_BYTES; block += header & ~7ULL) {
		memcpy(&header, allocator.memory + block, sizeof(header));
		if ((header & 1) && (header & ~7ULL) > largest)
			largest = header & ~7ULL;
	}
	return largest ? largest - KV_ALLOCATOR_HEADER_BYTES : 0;
}

/* However many blocks are a little too small: one that is large enough is found, at every size up to the largest. */
static void test_sizes_that_fit(uint8_t *memory, uint64_t memory_bytes)
{
	for (uint64_t bytes = 40; bytes <= KV_ALLOCATOR_TAKE_MAX; bytes += 8 * 37) {
		uint64_t room;

		kv_allocator_reset(&allocator, memory, memory_bytes);
		make_holes(bytes, 10);
		make_holes(bytes - 8, 80); /* given back later, so found earlier */
		while (kv_allocator_take(&allocator, bytes, &room) != KV_ALLOCATOR_NONE)
			CHECK(room >= bytes);
		CHECK(largest_free() < bytes);
	}
	/* The limit itself, of a memory that is this one block. */
	kv_allocator_reset(&allocator, memory, KV_ALLOCATOR_TAKE_MAX + 2 * KV_ALLOCATOR_HEADER_BYTES);
	CHECK(kv_allocator_take(&allocator, KV_ALLOCATOR_TAKE_MAX + 1, &memory_bytes) == KV_ALLOCATOR_NONE);
	CHECK(kv_allocator_take(&allocator, KV_ALLOCATOR_TAKE_MAX, &memory_bytes) == KV_ALLOCATOR_HEADER_BYTES);
}

/* ---- A large store ---- */

/* Instead of memory.c: nothing is there before it is touched. */
void *kv_memory_map(size_t bytes, int want_huge, int *pages)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);

	*pages = KV_PAGES_SMALL;
	(void)want_huge;
	return memory == MAP_FAILED ? NULL : memory;
}

void kv_memory_unmap(void *memory, size_t bytes)
{
	if (memory)
		munmap(memory, bytes);
}

static long resident_kib(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_maxrss;
}

static void store_and_find(struct kv_store *store, uint64_t from, uint64_t keys)
{
	const uint8_t *long_value;
	uint32_t value_bytes;
	__u64 value;

	for (uint64_t key = from; key < from + keys; key++) {
		uint64_t hash = kv_hash((uint8_t *)&key, 8);
		int result = store->short_lines ? kv_short_set8(store, hash, key, 8, ~key, 8)
						: kv_store_set8(store, hash, key, 8, NULL, ~key, 8);

		CHECK(result == KV_SUCCESS);
	}
	for (uint64_t key = from; key < from + keys; key++) {
		uint64_t hash = kv_hash((uint8_t *)&key, 8);
		int result = store->short_lines
				     ? kv_short_get8(store, hash, key, 8, &value, &value_bytes, 0)
				     : kv_store_get8(store, hash, key, 8, NULL, &value, &value_bytes, &long_value, 0);

		CHECK(result == KV_SUCCESS && value == ~key && value_bytes == 8);
	}
}

static void test_large(uint32_t kind)
{
	struct kv_store_options options = { LARGE_ITEMS, LARGE_BYTES, kind, 0, 65536, 0 };
	long before_kib = resident_kib();
	struct kv_store *store = kv_store_create(&options);
	struct kv_store_stats stats;

	CHECK(store && resident_kib() - before_kib < 1024);
	kv_store_get_stats(store, &stats);
	CHECK(stats.index_bytes + stats.log_bytes == kv_store_memory_bytes(&options));
	CHECK(stats.log_bytes == LARGE_BYTES);
	store_and_find(store, 0, 1000);
	if (kind == KV_STORE_CACHE) {
		/* Up to the log's last entry, across the gap to the next span, and on. */
		store->progress.tail = LARGE_BYTES - 500 * 32;
		store->progress.cleaned = kv_store_cleanup_due(store, store->progress.tail);
		store_and_find(store, 1000, 1000);
		CHECK(store->progress.tail == store->span + 500 * 32);
		CHECK(store->progress.cleaned <= kv_store_cleanup_due(store, store->span) + 500 * 32);
	}
	CHECK(resident_kib() - before_kib < 64 << 10);
	kv_store_get_stats(store, &stats);
	CHECK(stats.set_new - stats.cleanup == stats.count);
	kv_store_destroy(store);
}
