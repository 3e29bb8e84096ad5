/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * allocator.h - memory for a lossless store's items: segregated fit with boundary tags.
 *
 * All memory is blocks, side by side. A block is its header word (its bytes, and two flags) and what it holds, at least
 * 32 bytes: a free block has two links there, and its bytes once more in its last word, where the block behind it finds
 * them when it is freed. Free neighbours are merged at once, so that no two free blocks are side by side. Free blocks
 * of one size make a list, up to the largest size that can be taken; from there on those of each doubling share one, as
 * any of them will do. So a block that fits is found if there is one, in a few steps however full the memory is (after
 * Masmano et al., TLSF, ECRTS 2004).
 *
 * One thread at a time may use it: lossless.c has a lock. But threads may read a block's memory, as words, while it is
 * taken from their hands, so that every word here is written as a whole.
 */
#ifndef KV_ALLOCATOR_H
#define KV_ALLOCATOR_H

#include <stdint.h>

#define KV_ALLOCATOR_HEADER_BYTES 8
#define KV_ALLOCATOR_BLOCK_MIN 40 /* with its header */
#define KV_ALLOCATOR_TAKE_MAX (4096 - KV_ALLOCATOR_HEADER_BYTES)
#define KV_ALLOCATOR_SIZES ((KV_ALLOCATOR_TAKE_MAX + KV_ALLOCATOR_HEADER_BYTES) / 8) /* lists of blocks of one size */
#define KV_ALLOCATOR_DOUBLINGS 40 /* lists of larger ones, up to 2^52 bytes */
#define KV_ALLOCATOR_LISTS (KV_ALLOCATOR_SIZES + KV_ALLOCATOR_DOUBLINGS)
#define KV_ALLOCATOR_MAP_WORDS ((KV_ALLOCATOR_LISTS + 63) / 64)
#define KV_ALLOCATOR_NONE (~0ULL) /* no block */

struct kv_allocator {
	uint8_t *memory;
	uint64_t bytes;
	uint64_t used_bytes;			 /* of blocks in use, with their headers */
	uint64_t filled[KV_ALLOCATOR_MAP_WORDS]; /* bit l: list l has a block */
	uint64_t heads[KV_ALLOCATOR_LISTS];	 /* offsets of blocks */
};

/* Make it all one free block; touches its first and last page only. `bytes` is a multiple of 8, at least 64. */
void kv_allocator_reset(struct kv_allocator *allocator, uint8_t *memory, uint64_t bytes);
/*
 * The offset of at least so many bytes, and how many they are; KV_ALLOCATOR_NONE if there is no such block, or they are
 * more than KV_ALLOCATOR_TAKE_MAX.
 */
uint64_t kv_allocator_take(struct kv_allocator *allocator, uint64_t bytes, uint64_t *taken_bytes);
/* Give them back. */
void kv_allocator_give(struct kv_allocator *allocator, uint64_t offset);
/* Give back what is behind the first `bytes`, as far as it makes a block; how many are left. */
uint64_t kv_allocator_shrink(struct kv_allocator *allocator, uint64_t offset, uint64_t bytes);

#endif
