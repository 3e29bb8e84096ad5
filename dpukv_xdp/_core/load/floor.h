/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* floor.h - the machine's floor: look-ups that do nothing but read the cache lines that a store's look-up needs. */
#ifndef KV_FLOOR_H
#define KV_FLOOR_H

#include "base/memory.h"

enum kv_floor_limit { KV_FLOOR_AHEAD_MAX = 63 /* most requests between a prefetch and its use: 2^n - 1 */ };

/* Look-ups in zeroed memory: an index of buckets, and the items behind it. */
struct kv_floor {
	const uint8_t *memory;
	uint64_t buckets;    /* of bucket_bytes each: cache lines, of which a look-up reads the first */
	uint64_t item_lines; /* cache lines of items; 0: the bucket has the item, and a look-up reads one line */
	uint32_t ahead;	     /* requests between a prefetch and its use; 0: each look-up waits for the one before */
	uint32_t bucket_bytes;
	uint64_t requests;
	uint64_t ticks; /* result: time of all look-ups */
	uint64_t sum;	/* of the words that were read, so that the compiler leaves no read out */
};

/* Bytes of the memory that `floor` describes. */
uint64_t kv_floor_bytes(const struct kv_floor *floor);
void kv_floor_run(struct kv_floor *floor);

#endif
