/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * allocator.h - memory for a lossless store's items: segregated fit with boundary tags.
 *
 * The memory consists of adjacent blocks. A block is a header word (its size and two flags) and at least 32 bytes of
 * content. A free block has two links there, and its size again in its last word, where the next block finds it when
 * that one is freed. Free neighbours are merged at once, so that two free blocks are never adjacent. Each size has a
 * list of free blocks, up to the largest size that can be taken; above it each doubling of the size has one list,
 * because any of its blocks will do. A fitting block, if there is one, is found in a few steps however full the memory
 * is (after Masmano et al., TLSF, ECRTS 2004).
 *
 * One thread at a time may use the allocator: lossless.c has a lock. Readers may still read a block's words after it
 * has been freed, so every word here is written as a whole.
 */
#ifndef KV_ALLOCATOR_H
#define KV_ALLOCATOR_H

#include <stdint.h>

#define KV_ALLOCATOR_HEADER_BYTES 8
#define KV_ALLOCATOR_BLOCK_MIN 40 /* bytes, its header included */
#define KV_ALLOCATOR_TAKE_MAX (4096 - KV_ALLOCATOR_HEADER_BYTES)
#define KV_ALLOCATOR_SIZES ((KV_ALLOCATOR_TAKE_MAX + KV_ALLOCATOR_HEADER_BYTES) / 8) /* lists of blocks of one size */
#define KV_ALLOCATOR_DOUBLINGS 40 /* lists of larger ones, up to 2^52 bytes */
#define KV_ALLOCATOR_LISTS (KV_ALLOCATOR_SIZES + KV_ALLOCATOR_DOUBLINGS)
#define KV_ALLOCATOR_MAP_WORDS ((KV_ALLOCATOR_LISTS + 63) / 64)
#define KV_ALLOCATOR_NONE (~0ULL) /* in place of an offset: no block */

struct kv_allocator {
	uint8_t *memory;
	uint64_t bytes;
	uint64_t used_bytes;			 /* bytes of blocks in use, headers included */
	uint64_t filled[KV_ALLOCATOR_MAP_WORDS]; /* bit l: list l is not empty */
	uint64_t heads[KV_ALLOCATOR_LISTS];	 /* offset of each list's first block */
};

/*
 * Make the memory one free block. This touches its first and last page only. `bytes` is a multiple of 8, at least 64.
 */
void kv_allocator_reset(struct kv_allocator *allocator, uint8_t *memory, uint64_t bytes);
/*
 * Take at least so many bytes. Return their offset and, in *taken_bytes, their number; KV_ALLOCATOR_NONE if there is no
 * such block or more than KV_ALLOCATOR_TAKE_MAX are wanted.
 */
uint64_t kv_allocator_take(struct kv_allocator *allocator, uint64_t bytes, uint64_t *taken_bytes);
/* Give a block back. */
void kv_allocator_give(struct kv_allocator *allocator, uint64_t offset);
/*
 * Lay the blocks of a memory anew, one after the other from its beginning, all of them. First make the allocator one
 * without any block; two free ones may not be adjacent. The last block ends 8 bytes before the memory's end.
 */
void kv_allocator_clear(struct kv_allocator *allocator, uint8_t *memory, uint64_t bytes);
void kv_allocator_lay_used(struct kv_allocator *allocator, uint64_t block, uint64_t bytes);
void kv_allocator_lay_free(struct kv_allocator *allocator, uint64_t block, uint64_t bytes);
/* Give back the part behind the first `bytes` if it is large enough for a block. Return the bytes kept. */
uint64_t kv_allocator_shrink(struct kv_allocator *allocator, uint64_t offset, uint64_t bytes);

#endif
