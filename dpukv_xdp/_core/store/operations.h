/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* operations.h - the interface of a store: MICA's lossy index and circular log, or a lossless store. */
#ifndef KV_OPERATIONS_H
#define KV_OPERATIONS_H

#include "base/integers.h"

/* Counters of one handle, named as in MICA2 (LTable::Stats); set_moved, set_refused, increment_*, resets and
 * overflow_buckets are additions. */
struct kv_store_stats {
	uint64_t count;		  /* items in the index, stored through any handle; a cache's may include dead ones */
	uint64_t set_nooverwrite; /* ADDs of a key that was present */
	uint64_t set_new;	  /* new keys, entered in a free place of their bucket */
	uint64_t set_inplace;
	uint64_t set_moved;   /* values replaced by a larger one, in a new place */
	uint64_t set_evicted; /* new keys that replaced the oldest item of a full bucket, or one of a full line */
	uint64_t set_refused; /* SETs with a length outside the limits, an item larger than the log, or no space */
	uint64_t get_found;
	uint64_t get_notfound;
	uint64_t test_found;
	uint64_t test_notfound;
	uint64_t delete_found;
	uint64_t delete_notfound;
	uint64_t increment_found;
	uint64_t increment_notfound;
	uint64_t resets;
	uint64_t cleanup; /* index entries dropped because the log had overwritten their item, or an inline store's item
			   * had taken another key's place elsewhere */
	uint64_t move_to_head_performed;
	/* GETs of an item near enough to the log's head, or by a reader; 0 in an inline store */
	uint64_t move_to_head_skipped;
	uint64_t move_to_head_failed; /* in shared mode: another thread was writing the bucket */
	uint64_t overflow_buckets;    /* overflow buckets of a lossless store in use */
	uint64_t index_bytes;
	uint64_t log_bytes; /* bytes of the log, or of the allocator's memory */
	uint64_t pages;	    /* kind of pages of the log, or of an inline store's lines, enum kv_pages */
};

struct kv_store;

enum kv_store_kind {
	KV_STORE_CACHE = 0,    /* MICA's cache mode: a lossy index and a circular log that overwrites the oldest item */
	KV_STORE_LOSSLESS = 1, /* MICA's store mode: overflow buckets, an allocator; full is KV_INSUFFICIENT_SPACE */
	KV_STORE_INLINE = 2,   /* short items in lines of their own, see short_items.h; a cache for all others */
	KV_STORE_KINDS
};

struct kv_store_options {
	uint64_t item_count; /* items that the index, or the lines of an inline store, are sized for */
	uint64_t log_bytes;  /* size of the log or of the allocator's memory, rounded up to whole cache lines. An inline
			      * store's index is sized for as many items as fit there, item_count at most */
	uint32_t kind;	     /* enum kv_store_kind */
	uint32_t want_huge;
	/* GET moves an item to the log's head if it is farther away than this share of the log, in 1/65536. 0 is LRU,
	 * 65536 (never) is FIFO, values between are approximate LRU. Only where there is a log. */
	uint32_t move_to_head;
	uint32_t padding;
};

/* Findings of kv_store_open() in a region that another process has left. */
struct kv_store_repair {
	uint64_t items;	  /* that the store has */
	uint64_t undone;  /* writes that were under way, and are as if they had not begun */
	uint64_t doubled; /* words that were twice in their bucket, and keys in an inline store's line and index */
	uint64_t stale;	  /* words of items that the log has overwritten */
	uint64_t damaged; /* words that are no item's: none, unless somebody else has written the region */
};

/*
 * Create a store; one thread at a time may use it. The index is sized so that losing even one of item_count hashed keys
 * is improbable; an inline store loses 7 of 10,000. Return NULL and set errno on failure: EINVAL for a size of 0 or one
 * that is too large.
 */
struct kv_store *kv_store_create(const struct kv_store_options *options);
/*
 * Create a region for such a store: memory with a file descriptor, which another process can take over. Return the
 * descriptor, or -1 and set errno.
 */
int kv_store_region(const struct kv_store_options *options);
/*
 * As kv_store_create(), with the memory of a region. If there is a store already, left by a process that was killed at
 * any point, the handle is on that one; *repair says what was found. The region's bytes are checked, and all of them
 * are read. Return NULL and set errno on failure: EINVAL for a region of other options or of another layout, EUCLEAN
 * for one whose content no killed process can have left.
 */
struct kv_store *kv_store_open(const struct kv_store_options *options, int region_fd, struct kv_store_repair *repair);
/*
 * Return the bytes that such a store's index and log take, or 0 if it cannot be created, and the bytes that shared mode
 * adds.
 */
uint64_t kv_store_memory_bytes(const struct kv_store_options *options);
uint64_t kv_store_version_bytes(const struct kv_store_options *options);
/*
 * Return a further handle on the same store, with counters of its own. From then on all handles are in shared mode: one
 * thread per handle, all at the same time. Call it while no thread uses the store. Return NULL and set errno on
 * failure: ENOSPC for more than KV_ENGINES_MAX handles.
 */
struct kv_store *kv_store_share(struct kv_store *store);
/* Set whether a handle only reads (CREW: another thread owns the partition): its GETs then never move items. */
void kv_store_set_reader(struct kv_store *handle, int is_reader);
/* Destroy a handle while no thread uses the store. Destroying the last one destroys the store. */
void kv_store_destroy(struct kv_store *store);
/* Return the bytes that such an item takes in the log: log_bytes = item_count * this holds item_count of them. */
uint32_t kv_store_entry_bytes(uint32_t key_bytes, uint32_t value_bytes);
void kv_store_get_stats(const struct kv_store *store, struct kv_store_stats *stats);

/*
 * The operations. Each returns an enum kv_result; KV_ERROR for a key of 0 or more than KV_KEY_MAX bytes.
 *
 * GET: KV_SUCCESS or KV_NOT_FOUND; *value_bytes becomes the value's exact length. For a value longer than `room`,
 * KV_INSUFFICIENT_SPACE with nothing copied.
 */
int kv_store_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		 uint32_t room, uint32_t *value_bytes);
/* SET, insert or overwrite: KV_SUCCESS, or KV_INSUFFICIENT_SPACE for a value over KV_VALUE_MAX, an item larger than the
 * log, or a full lossless store. A refused SET leaves the old value in place. */
int kv_store_set(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes);
/* ADD, insert only: as SET, or KV_EXISTS if the key is present. */
int kv_store_add(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes);
/* TEST: KV_SUCCESS or KV_NOT_FOUND. */
int kv_store_test(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);
/* DELETE: KV_SUCCESS or KV_NOT_FOUND. A lossless store frees the item's memory. */
int kv_store_delete(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);
/* INCREMENT: add to a value of KV_NUMBER_BYTES in place, modulo 2^64, and return the sum in *value. KV_SUCCESS,
 * KV_NOT_FOUND, or KV_ERROR for a value of another length. */
int kv_store_increment(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		       uint64_t increment, uint64_t *value);
/* RESET: forget all items. */
void kv_store_reset(struct kv_store *store);

#endif
