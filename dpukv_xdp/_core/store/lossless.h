/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * lossless.h - the parts of a lossless store that a cache lacks: an allocator and overflow buckets.
 *
 * In shared mode the caller holds the bucket, and several threads may call these functions at the same time.
 */
#ifndef KV_LOSSLESS_H
#define KV_LOSSLESS_H

#include "store/hot_path.h"

/* Return how many overflow buckets a store with so many main buckets has. */
uint64_t kv_lossless_overflow_buckets(uint64_t buckets);
/*
 * Create the state of a lossless store, for kv_lossless_reset() or kv_lossless_rebuild(). Return NULL and set errno on
 * failure.
 */
struct kv_lossless *kv_lossless_create(void);
void kv_lossless_destroy(struct kv_lossless *lossless);
/* Free all blocks and overflow buckets. The caller has zeroed the index, and no other thread uses the store. */
void kv_lossless_reset(const struct kv_store *store);
/*
 * Make the allocator and the list of free overflow buckets anew from a repaired index: bit i of `starts` is set if an
 * item begins at byte 8 * i (there is a word more than the log has bits for), bit i of `chained` if overflow bucket
 * `buckets + i` is in a chain. Return -1 and set errno to EUCLEAN if items overlap.
 */
int kv_lossless_rebuild(const struct kv_store *store, const uint64_t *starts, const uint64_t *chained);
/* Return the number of overflow buckets in use. */
uint64_t kv_lossless_overflowing(const struct kv_lossless *lossless);

/* Take memory for an item. Return its offset, or KV_ALLOCATOR_NONE; *taken_bytes becomes its size. */
uint64_t kv_lossless_take(const struct kv_store *store, uint32_t entry_bytes, uint64_t *taken_bytes);
void kv_lossless_give(const struct kv_store *store, uint64_t offset);
/* Give back the memory behind an item's first bytes. Return the bytes kept. */
uint64_t kv_lossless_shrink(const struct kv_store *store, uint64_t offset, uint32_t entry_bytes);

/* Append a word to a bucket's chain. Return 0 if there is no place because all overflow buckets are in use. */
int kv_lossless_put_word(const struct kv_store *store, uint64_t bucket, uint64_t word);
/* Remove a word; the chain's last one takes its place. */
void kv_lossless_remove_word(const struct kv_store *store, uint64_t bucket, __u64 *word);
/* Remove all words of a chain and give their items' memory back. Return how many there were. */
uint64_t kv_lossless_empty(const struct kv_store *store, uint64_t bucket);

#endif
