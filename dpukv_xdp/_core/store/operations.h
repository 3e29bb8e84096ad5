/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* operations.h - one partition: MICA's lossy index and circular log, or its lossless sibling. */
#ifndef KV_OPERATIONS_H
#define KV_OPERATIONS_H

#include "base/integers.h"

/* Counters of one handle, named as MICA2 names its table's (LTable::Stats), with set_moved, set_refused, increment_*,
 * resets and overflow_buckets of our own. */
struct kv_store_stats {
	uint64_t count; /* items in the index, through all handles; a cache's cleanup has yet to drop dead ones */
	uint64_t set_nooverwrite; /* ADD of a key that was there */
	uint64_t set_new;	  /* a new key, in a free place of its bucket */
	uint64_t set_inplace;
	uint64_t set_moved;   /* overwritten by a larger value elsewhere */
	uint64_t set_evicted; /* a new key, put where the full bucket's oldest item was */
	uint64_t set_refused; /* a length outside the limits, an item larger than the log, or no space */
	uint64_t get_found;
	uint64_t get_notfound;
	uint64_t test_found;
	uint64_t test_notfound;
	uint64_t delete_found;
	uint64_t delete_notfound;
	uint64_t increment_found;
	uint64_t increment_notfound;
	uint64_t resets;
	uint64_t cleanup; /* index entries dropped because the log had overwritten their item */
	uint64_t move_to_head_performed;
	uint64_t move_to_head_skipped; /* a GET of an item that is near enough to the log's head, or by a reader */
	uint64_t move_to_head_failed;  /* in shared mode: somebody else was writing the bucket */
	uint64_t overflow_buckets;     /* in use, of a lossless store */
	uint64_t index_bytes;
	uint64_t log_bytes; /* or of the allocator's memory */
	uint64_t pages;	    /* enum kv_pages of the log */
};

struct kv_store;

enum kv_store_kind {
	KV_STORE_CACHE = 0,   /* MICA's cache mode: a lossy index, a circular log, the oldest item goes first */
	KV_STORE_LOSSLESS = 1 /* MICA's store mode: overflow buckets and an allocator; full is KV_INSUFFICIENT_SPACE */
};

struct kv_store_options {
	uint64_t item_count; /* the index is laid out for about so many, KV_ITEMS_PER_BUCKET to a bucket */
	uint64_t log_bytes;  /* of the log, or of the allocator's memory; rounded up to whole cache lines */
	uint32_t kind;	     /* enum kv_store_kind */
	uint32_t want_huge;
	/* GET moves an item to the log's head that is farther than this share of the log from it, in 1/65536: 0 is LRU,
	 * 65536 (never) is FIFO, between them approximate LRU. Cache only. */
	uint32_t move_to_head;
	uint32_t padding;
};

/* A partition: one thread at a time may use it. The index is sized so that losing even one of item_count hashed keys is
 * improbable at KV_ITEMS_PER_BUCKET. NULL and errno on failure: EINVAL for a size of 0 or beyond reason. */
struct kv_store *kv_store_create(const struct kv_store_options *options);
/* Bytes that such a store's index and log take; 0 if it cannot be created. Shared mode adds 4 for each bucket. */
uint64_t kv_store_memory_bytes(const struct kv_store_options *options);
/* A further handle on the same store, with counters of its own. From the first one on all handles are in shared mode:
 * each may be used by one thread, all at the same time. Call it while no thread uses the store. NULL and errno on
 * failure: ENOSPC for more than KV_ENGINES_MAX handles. */
struct kv_store *kv_store_share(struct kv_store *store);
/* Whether a handle only reads (CREW: another thread owns the partition): then its GETs leave items where they are. */
void kv_store_set_reader(struct kv_store *handle, int is_reader);
/* Give a handle back while no thread uses the store; the last one takes the store with it. */
void kv_store_destroy(struct kv_store *store);
/* Bytes that such an item takes in the log: item_count * this, as log_bytes, holds item_count of them. */
uint32_t kv_store_entry_bytes(uint32_t key_bytes, uint32_t value_bytes);
void kv_store_get_stats(const struct kv_store *store, struct kv_store_stats *stats);

/*
 * The operations. All give KV_ERROR for a key of no or more than KV_KEY_MAX bytes.
 *
 * GET: KV_SUCCESS or KV_NOT_FOUND; the value's exact length comes back in *value_bytes. A value longer than `room`
 * gives KV_INSUFFICIENT_SPACE with nothing copied.
 */
int kv_store_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		 uint32_t room, uint32_t *value_bytes);
/* SET, insert or overwrite: KV_SUCCESS, or KV_INSUFFICIENT_SPACE for a value over KV_VALUE_MAX, an item larger than the
 * log, or a lossless store that is full; a refused SET leaves what was there. */
int kv_store_set(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes);
/* ADD, insert only: as SET, and KV_EXISTS for a key that is there. */
int kv_store_add(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes);
/* TEST: KV_SUCCESS or KV_NOT_FOUND. */
int kv_store_test(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);
/* DELETE: KV_SUCCESS or KV_NOT_FOUND. A lossless store has the item's memory back. */
int kv_store_delete(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);
/* INCREMENT: add to a value of 8 bytes, modulo 2^64, in place; the new one comes back in *value. KV_NOT_FOUND, or
 * KV_ERROR for a value of another length. */
int kv_store_increment(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		       uint64_t increment, uint64_t *value);
/* RESET: forget all items. */
void kv_store_reset(struct kv_store *store);

#endif
