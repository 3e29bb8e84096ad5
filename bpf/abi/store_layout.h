/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store_layout.h - the store: MICA's index and log, with the same layout on the host and in XDP.
 */
#ifndef KV_ABI_STORE_LAYOUT_H
#define KV_ABI_STORE_LAYOUT_H

#include "abi/operation_table.h"
#include "abi/words.h"

enum kv_store_limit {
	KV_BUCKET_WAYS = 15,	 /* item words in a bucket; a cache's last word of its second line stays 0 */
	KV_LINE_WORDS = 8,	 /* words in a cache line */
	KV_LOG_OFFSET_BITS = 48, /* bits of an item word's offset in the log; its tag is in the 16 bits above */
	KV_ITEMS_PER_BUCKET = 3, /* intended items per bucket; store.c says why */
	KV_VALUE_CAPACITY_MIN =
		8,		  /* bytes reserved for a value at least, so that short ones are overwritten in place */
	KV_LENGTH_KEY_SHIFT = 24, /* position of the key's length in kv_length */
	KV_SEGMENT_BYTES = 65536, /* bytes of a segment of XDP's log: one map value, and the reach of a 16-bit offset */
	KV_SEGMENT_SLACK = 4096	  /* bytes behind each segment, for any offset in it plus any masked length */
};

/* Half a bucket. Most lookups read first halves only, so these are stored together and make the best use of caches. */
struct kv_line {
	__u64 words[KV_LINE_WORDS];
};
KV_ASSERT(sizeof(struct kv_line) == 64);

/* An item in the log. Key and value follow, each zero padded to 8 bytes: an 8/8 item takes 32 bytes. */
struct kv_item {
	__u32 kv_length;      /*  0, as on the wire: value length in the low 24 bits, key length in the high 8 */
	__u32 value_capacity; /*  4, bytes reserved for the value, a multiple of 8 */
	__u64 key_hash;	      /*  8 */
	__u64 words[];	      /* 16 */
};
KV_ASSERT(sizeof(struct kv_item) == 16);

/* A store in XDP without its index and its log, which are maps of their own. */
struct kv_dpu_store {
	__u32 lock;	/*  0, struct bpf_spin_lock: only the kernel's helpers may use it */
	__u32 owner;	/*  4, 1 + number of the core that works on this store, 0 if none does */
	__u64 tail;	/*  8, bytes ever appended; position in the log = tail % log_bytes */
	__u64 appended; /* 16, items ever appended */
	__u64 cleaned;	/* 24, buckets ever visited by the cleanup; position = cleaned % buckets */
	__u64 buckets;	/* 32, buckets of the index */
	__u64 log_bytes;
	__u64 round_tail; /* 48, tail when the cleanup's current round through the buckets began */
	/* State of the current batch and request: in a map, where the verifier does not track it */
	__u32 wire_bytes;   /* 56, bytes of the responses so far on the wire */
	__u32 values_bytes; /* 60, bytes of their long values */
	__u64 scratch;	    /* 64, a place for KV_UNKNOWN to read from */
	__u64 place_word;   /* 72, result of kv_find() in store/dpu_store.h, as the next two */
	__u32 place_way;    /* 80 */
	__u32 place_own;    /* 84 */
	/* As in struct kv_engine_stats */
	__u64 batches;
	__u64 requests;
	struct kv_operation_counts counts;
	/* As in struct kv_store_stats */
	__u64 set_nooverwrite;
	__u64 set_new;
	__u64 set_inplace;
	__u64 set_moved;
	__u64 set_evicted;
	__u64 set_refused;
	__u64 get_found;
	__u64 get_notfound;
	__u64 test_found;
	__u64 test_notfound;
	__u64 delete_found;
	__u64 delete_notfound;
	__u64 increment_found;
	__u64 increment_notfound;
	__u64 cleanup;
};
KV_ASSERT(sizeof(struct kv_dpu_store) == 280);

#ifndef KV_ABI_CDEF

#define KV_LOG_OFFSET_MASK ((1ULL << KV_LOG_OFFSET_BITS) - 1)
#define KV_LENGTH_VALUE_MASK 0xffffffu

/* Tag of an item's word in the index, never 0, so that a word in use is never 0 either. */
#define KV_STORE_TAG(key_hash) (((key_hash)&0xffff) ? ((key_hash)&0xffff) : 1)
/* Bucket of a hash: its bits 16-47, scaled to the number of buckets, which need not be a power of two. */
#define KV_STORE_BUCKET_HASH(key_hash) ((__u64)(__u32)((key_hash) >> 16))
#define KV_STORE_BUCKET(key_hash, buckets) (KV_STORE_BUCKET_HASH(key_hash) * (buckets) >> 32)

#endif /* KV_ABI_CDEF */

#endif
