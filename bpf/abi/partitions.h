/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * partitions.h - the partition table: which engine owns which part of the key space.
 */
#ifndef KV_ABI_PARTITIONS_H
#define KV_ABI_PARTITIONS_H

#include "abi/words.h"

enum kv_partition_limit {
	KV_PARTITIONS_MAX = 256, /* parts of the key space, each owned by one engine */
	KV_OWNER_NONE = 255	 /* owner of a partition that every engine rejects */
};

/*
 * The owner of each partition. A key's partition is (key_hash >> 48) % partitions, as in MICA2. Python writes the
 * table, every engine reads it.
 */
struct kv_partition_table {
	__u32 partitions;	       /* 0, in use: 1 to KV_PARTITIONS_MAX */
	__u8 concurrent_read;	       /* 4, 1: any engine may read (CREW, CRCW); 0: the owner only (EREW) */
	__u8 concurrent_write;	       /* 5, 1: any engine may write (CRCW); 0: the owner only */
	__u8 reset_allowed;	       /* 6, 1: KV_OP_RESET empties the partitions that an engine owns */
	__u8 padding;		       /* 7 */
	__u8 owner[KV_PARTITIONS_MAX]; /* 8, engine of each partition, or KV_OWNER_NONE while it moves */
};
KV_ASSERT(sizeof(struct kv_partition_table) == 8 + KV_PARTITIONS_MAX);

#ifndef KV_ABI_CDEF

/* Hash bits 48-63 choose the partition. */
#define KV_PARTITION(key_hash, partitions) ((__u32)((key_hash) >> 48) % (partitions))

#endif /* KV_ABI_CDEF */

#endif
