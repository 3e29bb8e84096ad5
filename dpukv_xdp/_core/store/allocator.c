/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * allocator.c - see allocator.h.
 */
#include "store/allocator.h"

#define FLAG_FREE 1ULL
#define FLAG_FREE_BEFORE 2ULL /* the previous block is free */
#define FLAGS 7ULL
/* Links of a free block, behind its header. */
enum link { LINK_NEXT = 1, LINK_PREVIOUS = 2 };

static uint64_t word_at(const struct kv_allocator *allocator, uint64_t offset);
static void write_word(struct kv_allocator *allocator, uint64_t offset, uint64_t word);
static uint64_t block_bytes(const struct kv_allocator *allocator, uint64_t block);
static uint64_t needed_bytes(uint64_t bytes);
static uint32_t list_of(uint64_t bytes);
static uint64_t find_block(const struct kv_allocator *allocator, uint64_t bytes);
static void insert_block(struct kv_allocator *allocator, uint64_t block, uint64_t bytes);
static void remove_block(struct kv_allocator *allocator, uint64_t block);
static void release(struct kv_allocator *allocator, uint64_t block, uint64_t bytes);

void kv_allocator_reset(struct kv_allocator *allocator, uint8_t *memory, uint64_t bytes)
{
	kv_allocator_clear(allocator, memory, bytes);
	kv_allocator_lay_free(allocator, 0, bytes - KV_ALLOCATOR_HEADER_BYTES);
}

void kv_allocator_clear(struct kv_allocator *allocator, uint8_t *memory, uint64_t bytes)
{
	allocator->memory = memory;
	allocator->bytes = bytes;
	allocator->used_bytes = 0;
	for (uint32_t i = 0; i < KV_ALLOCATOR_MAP_WORDS; i++)
		allocator->filled[i] = 0;
	/* The last word is the header of an empty block that is always in use, so that every block has a next one. */
	write_word(allocator, bytes - KV_ALLOCATOR_HEADER_BYTES, 0);
	write_word(allocator, 0, 0);
}

void kv_allocator_lay_used(struct kv_allocator *allocator, uint64_t block, uint64_t bytes)
{
	write_word(allocator, block, bytes | (word_at(allocator, block) & FLAG_FREE_BEFORE));
	/* The next block's header is laid next. */
	if (block + bytes < allocator->bytes - KV_ALLOCATOR_HEADER_BYTES)
		write_word(allocator, block + bytes, 0);
	allocator->used_bytes += bytes;
}

void kv_allocator_lay_free(struct kv_allocator *allocator, uint64_t block, uint64_t bytes)
{
	insert_block(allocator, block, bytes);
	write_word(allocator, block + bytes, FLAG_FREE_BEFORE);
}

uint64_t kv_allocator_take(struct kv_allocator *allocator, uint64_t bytes, uint64_t *taken_bytes)
{
	uint64_t needed = needed_bytes(bytes), found_bytes, block;

	if (bytes > KV_ALLOCATOR_TAKE_MAX)
		return KV_ALLOCATOR_NONE;
	block = find_block(allocator, needed);
	if (block == KV_ALLOCATOR_NONE)
		return KV_ALLOCATOR_NONE;
	remove_block(allocator, block);
	found_bytes = block_bytes(allocator, block);
	/* The previous block is in use, because free neighbours are merged. */
	if (found_bytes - needed >= KV_ALLOCATOR_BLOCK_MIN) {
		insert_block(allocator, block + needed, found_bytes - needed);
		found_bytes = needed;
	} else {
		write_word(allocator, block + found_bytes, word_at(allocator, block + found_bytes) & ~FLAG_FREE_BEFORE);
	}
	write_word(allocator, block, found_bytes);
	allocator->used_bytes += found_bytes;
	*taken_bytes = found_bytes - KV_ALLOCATOR_HEADER_BYTES;
	return block + KV_ALLOCATOR_HEADER_BYTES;
}

void kv_allocator_give(struct kv_allocator *allocator, uint64_t offset)
{
	uint64_t block = offset - KV_ALLOCATOR_HEADER_BYTES;
	uint64_t bytes = block_bytes(allocator, block);

	allocator->used_bytes -= bytes;
	release(allocator, block, bytes);
}

uint64_t kv_allocator_shrink(struct kv_allocator *allocator, uint64_t offset, uint64_t bytes)
{
	uint64_t block = offset - KV_ALLOCATOR_HEADER_BYTES;
	uint64_t old_bytes = block_bytes(allocator, block), new_bytes = needed_bytes(bytes);

	if (old_bytes < new_bytes + KV_ALLOCATOR_BLOCK_MIN)
		return old_bytes - KV_ALLOCATOR_HEADER_BYTES;
	write_word(allocator, block, new_bytes | (word_at(allocator, block) & FLAGS));
	write_word(allocator, block + new_bytes, 0);
	allocator->used_bytes -= old_bytes - new_bytes;
	release(allocator, block + new_bytes, old_bytes - new_bytes);
	return new_bytes - KV_ALLOCATOR_HEADER_BYTES;
}

/* ---- Blocks ---- */

/* Free a block: merge it with its free neighbours. */
static void release(struct kv_allocator *allocator, uint64_t block, uint64_t bytes)
{
	uint64_t behind = word_at(allocator, block + bytes);

	if (behind & FLAG_FREE) {
		remove_block(allocator, block + bytes);
		bytes += behind & ~FLAGS;
	}
	if (word_at(allocator, block) & FLAG_FREE_BEFORE) {
		uint64_t bytes_before = word_at(allocator, block - 8);

		remove_block(allocator, block - bytes_before);
		block -= bytes_before;
		bytes += bytes_before;
	}
	insert_block(allocator, block, bytes);
	write_word(allocator, block + bytes, word_at(allocator, block + bytes) | FLAG_FREE_BEFORE);
}

static uint64_t block_bytes(const struct kv_allocator *allocator, uint64_t block)
{
	return word_at(allocator, block) & ~FLAGS;
}

static uint64_t needed_bytes(uint64_t bytes)
{
	uint64_t needed = ((bytes + 7) & ~7ULL) + KV_ALLOCATOR_HEADER_BYTES;

	return needed < KV_ALLOCATOR_BLOCK_MIN ? KV_ALLOCATOR_BLOCK_MIN : needed;
}

/* ---- Lists ---- */

/* Return the list for blocks of this size. */
static uint32_t list_of(uint64_t bytes)
{
	uint64_t words = bytes / 8;

	if (words <= KV_ALLOCATOR_SIZES)
		return (uint32_t)words - 1;
	return KV_ALLOCATOR_SIZES + (uint32_t)(__builtin_clzll(KV_ALLOCATOR_SIZES) - __builtin_clzll(words));
}

/* Return a block of the smallest available size that fits; above the lists of one size each, about the smallest. */
static uint64_t find_block(const struct kv_allocator *allocator, uint64_t needed)
{
	uint32_t list = list_of(needed), word = list / 64;
	uint64_t filled = allocator->filled[word] & (~0ULL << list % 64);

	while (!filled) {
		if (++word == KV_ALLOCATOR_MAP_WORDS)
			return KV_ALLOCATOR_NONE;
		filled = allocator->filled[word];
	}
	return allocator->heads[64 * word + (uint32_t)__builtin_ctzll(filled)];
}

/* Make these bytes a free block and put it first in its list. The previous block is in use. */
static void insert_block(struct kv_allocator *allocator, uint64_t block, uint64_t bytes)
{
	uint32_t list = list_of(bytes);
	uint64_t bit = 1ULL << list % 64, *filled = &allocator->filled[list / 64];
	uint64_t next = *filled & bit ? allocator->heads[list] : KV_ALLOCATOR_NONE;

	write_word(allocator, block, bytes | FLAG_FREE);
	write_word(allocator, block + 8 * LINK_NEXT, next);
	write_word(allocator, block + 8 * LINK_PREVIOUS, KV_ALLOCATOR_NONE);
	write_word(allocator, block + bytes - 8, bytes);
	if (next != KV_ALLOCATOR_NONE)
		write_word(allocator, next + 8 * LINK_PREVIOUS, block);
	allocator->heads[list] = block;
	*filled |= bit;
}

static void remove_block(struct kv_allocator *allocator, uint64_t block)
{
	uint32_t list = list_of(block_bytes(allocator, block));
	uint64_t next = word_at(allocator, block + 8 * LINK_NEXT);
	uint64_t previous = word_at(allocator, block + 8 * LINK_PREVIOUS);

	if (next != KV_ALLOCATOR_NONE)
		write_word(allocator, next + 8 * LINK_PREVIOUS, previous);
	if (previous != KV_ALLOCATOR_NONE) {
		write_word(allocator, previous + 8 * LINK_NEXT, next);
		return;
	}
	allocator->heads[list] = next;
	if (next == KV_ALLOCATOR_NONE)
		allocator->filled[list / 64] &= ~(1ULL << list % 64);
}

/* ---- Words ---- */

typedef uint64_t __attribute__((may_alias)) shared_word;

static uint64_t word_at(const struct kv_allocator *allocator, uint64_t offset)
{
	return __atomic_load_n((const shared_word *)(allocator->memory + offset), __ATOMIC_RELAXED);
}

static void write_word(struct kv_allocator *allocator, uint64_t offset, uint64_t word)
{
	__atomic_store_n((shared_word *)(allocator->memory + offset), word, __ATOMIC_RELAXED);
}
