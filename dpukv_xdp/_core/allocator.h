/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * allocator.h - memory for a lossless store's items: two-level segregated fit with boundary tags.
 *
 * All memory is blocks, side by side. A block is its header word (its bytes, and two flags) and what it holds, at least
 * 32 bytes: a free block has two links there, and its bytes once more in its last word, where the block behind it finds
 * them when it is freed. Free neighbours are merged at once, so that no two free blocks are side by side. Free blocks
 * of about the same size make a list. Sizes below 512 bytes have a list each; from there on 32 lists share each
 * doubling. Taking and giving take the same few steps however full the memory is (Masmano et al., TLSF, ECRTS 2004).
 *
 * One thread at a time may use it: lossless.c has a lock. But threads may read a block's memory, as words, while it is
 * taken from their hands, so that every word here is written as a whole.
 */
#ifndef KV_ALLOCATOR_H
#define KV_ALLOCATOR_H

#include <stdint.h>

#define KV_ALLOCATOR_HEADER_BYTES 8
#define KV_ALLOCATOR_BLOCK_MIN 40 /* with its header */
#define KV_ALLOCATOR_SECONDS 32	  /* lists for each doubling of the size */
#define KV_ALLOCATOR_FIRSTS 43	  /* doublings, up to 2^51 bytes; the first one's lists are 8 bytes apart */
#define KV_ALLOCATOR_NONE (~0ULL) /* no block */

struct kv_allocator {
	uint8_t *memory;
	uint64_t bytes;
	uint64_t used_bytes;					   /* of blocks in use, with their headers */
	uint64_t firsts;					   /* bit f: a bit of seconds[f] is set */
	uint32_t seconds[KV_ALLOCATOR_FIRSTS];			   /* bit s: there is a block in heads[f][s] */
	uint64_t heads[KV_ALLOCATOR_FIRSTS][KV_ALLOCATOR_SECONDS]; /* offsets of blocks */
};

/* Make it all one free block; touches its first and last page only. `bytes` is a multiple of 8, at least 64. */
void kv_allocator_reset(struct kv_allocator *allocator, uint8_t *memory, uint64_t bytes);
/* The offset of at least so many bytes, and how many they are; KV_ALLOCATOR_NONE if there is no such block. */
uint64_t kv_allocator_take(struct kv_allocator *allocator, uint64_t bytes, uint64_t *taken_bytes);
/* Give them back. */
void kv_allocator_give(struct kv_allocator *allocator, uint64_t offset);
/* Give back what is behind the first `bytes`, as far as it makes a block; how many are left. */
uint64_t kv_allocator_shrink(struct kv_allocator *allocator, uint64_t offset, uint64_t bytes);

#endif
