/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * lossless.h - what a lossless store has and a cache has not: memory that comes back, and buckets to overflow to.
 *
 * In shared mode the caller holds the bucket. All of these may then be called by several threads at the same time.
 */
#ifndef KV_LOSSLESS_H
#define KV_LOSSLESS_H

#include "store/hot_path.h"

/* Overflow buckets for so many main ones. */
uint64_t kv_lossless_overflow_buckets(uint64_t buckets);
/* NULL and errno on failure. */
struct kv_lossless *kv_lossless_create(const struct kv_store *store);
void kv_lossless_destroy(struct kv_lossless *lossless);
/* Forget all blocks and overflow buckets; the index is zeroed already, and nobody else uses the store. */
void kv_lossless_reset(const struct kv_store *store);
/* Overflow buckets in use. */
uint64_t kv_lossless_overflowing(const struct kv_lossless *lossless);

/* Memory for an item: its offset, or KV_ALLOCATOR_NONE; *taken_bytes is how much it became. */
uint64_t kv_lossless_take(const struct kv_store *store, uint32_t entry_bytes, uint64_t *taken_bytes);
void kv_lossless_give(const struct kv_store *store, uint64_t offset);
/* Give back what is behind an item's first bytes; how many are left. */
uint64_t kv_lossless_shrink(const struct kv_store *store, uint64_t offset, uint32_t entry_bytes);

/* Put a word behind the last one of a bucket's chain. 0 if there is no place: all overflow buckets are in use. */
int kv_lossless_put_word(const struct kv_store *store, uint64_t bucket, uint64_t word);
/* Take a word out: the chain's last one fills its place. */
void kv_lossless_remove_word(const struct kv_store *store, uint64_t bucket, __u64 *word);
/* Take all words of a chain out, and give their items' memory back; how many they were. */
uint64_t kv_lossless_empty(const struct kv_store *store, uint64_t bucket);

#endif
