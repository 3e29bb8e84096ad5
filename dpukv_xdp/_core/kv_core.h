/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * kv_core.h - the native core's interface: what Python (cffi) and the C tests may call.
 *
 * Plain C11, no Python.h: it can be fuzzed and sanitised alone. Functions return 0 or a negative errno unless they say
 * otherwise. Nothing here prints, exits or allocates after its create call.
 */
#ifndef KV_CORE_H
#define KV_CORE_H

#include "kv_abi.h"
#ifndef KV_ABI_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

/* ---- hash.c: CityHash64 v1.1 ------------------------------------------------------------------------------------ */

uint64_t kv_hash(const uint8_t *key, size_t key_bytes);
/* Hash `count` keys of the same length that lie `stride` bytes apart. */
void kv_hash_many(const uint8_t *keys, size_t stride, size_t key_bytes, size_t count, uint64_t *hashes);

/* ---- memory.c: where long-lived memory comes from --------------------------------------------------------------- */

enum kv_pages { KV_PAGES_SMALL = 0, KV_PAGES_TRANSPARENT = 1, KV_PAGES_HUGE = 2 };

/* A zeroed private mapping; `want_huge` tries hugetlbfs, then transparent huge pages. *pages says what it became.
 * NULL and errno on failure. */
void *kv_memory_map(size_t bytes, int want_huge, int *pages);
void kv_memory_unmap(void *memory, size_t bytes);

/* ---- store.c: one partition: MICA's lossy index and circular log ------------------------------------------------- */

struct kv_store_stats {
	uint64_t items_estimate; /* live index entries */
	uint64_t get_found;
	uint64_t get_not_found;
	uint64_t set_new;
	uint64_t set_in_place;
	uint64_t set_moved;   /* overwritten by a larger value elsewhere in the log */
	uint64_t set_evicted; /* put where the bucket's oldest item was */
	uint64_t set_refused;
	uint64_t cleanup;	/* index entries dropped because the log had overwritten their item */
	uint64_t index_bytes;
	uint64_t log_bytes;
	uint64_t pages; /* enum kv_pages of the log */
};

struct kv_store;

/* A partition for about `item_count` items with a log of at least `log_bytes` bytes (rounded up to a power of two).
 * NULL and errno on failure. */
struct kv_store *kv_store_create(uint64_t item_count, uint64_t log_bytes, int want_huge);
void kv_store_destroy(struct kv_store *store);
void kv_store_get_stats(const struct kv_store *store, struct kv_store_stats *stats);

/* enum kv_result. The value's exact length comes back in *value_bytes; at most `room` bytes are copied, and a longer
 * value gives KV_INSUFFICIENT_SPACE with nothing copied. */
int kv_store_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		 uint32_t room, uint32_t *value_bytes);
/* enum kv_result. Insert or overwrite. */
int kv_store_set(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes);

#endif
