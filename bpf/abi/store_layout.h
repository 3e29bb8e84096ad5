/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store_layout.h - the store: the index and log of MICA, laid out alike on the host and in XDP.
 */
#ifndef KV_ABI_STORE_LAYOUT_H
#define KV_ABI_STORE_LAYOUT_H

#include "abi/operation_table.h"
#include "abi/words.h"

enum kv_store_limit {
	KV_BUCKET_WAYS = 15,	   /* item words in a bucket; a cache's last word of its second line stays 0 */
	KV_LINE_WORDS = 8,	   /* words in a cache line */
	KV_LOG_OFFSET_BITS = 48,   /* an item word: its tag in the 16 bits above, its offset in the log below */
	KV_ITEMS_PER_BUCKET = 3,   /* intended load; store.c says why */
	KV_VALUE_CAPACITY_MIN = 8, /* bytes that even an empty value has, so that short ones are overwritten in place */
	KV_LENGTH_KEY_SHIFT = 24,  /* in kv_length */
	KV_SEGMENT_BYTES = 65536,  /* XDP's log is made of these: a map's value, and what a 16-bit offset reaches */
	KV_SEGMENT_SLACK = 4096	   /* behind each, so that any offset plus any masked length stays inside */
};

/* Half a bucket. Small items' lookups read the first half only, so the first halves stand together and fill caches. */
struct kv_line {
	__u64 words[KV_LINE_WORDS];
};
KV_ASSERT(sizeof(struct kv_line) == 64);

/* In the log: then the key, then the value, each zero padded to 8 bytes. An 8/8 item takes 32 bytes. */
struct kv_item {
	__u32 kv_length;      /*  0, as on the wire: value length in the low 24 bits, key length in the high 8 */
	__u32 value_capacity; /*  4, bytes that a value in place may have: a multiple of 8 */
	__u64 key_hash;	      /*  8 */
	__u64 words[];	      /* 16 */
};
KV_ASSERT(sizeof(struct kv_item) == 16);

/* A partition in XDP: what its engine knows besides index and log, which are maps of their own. */
struct kv_dpu_store {
	__u32 lock;	/*  0, struct bpf_spin_lock: only the kernel's helpers touch it */
	__u32 owner;	/*  4, 1 + the core that works on this partition, 0 if none does */
	__u64 tail;	/*  8, bytes ever appended; position in the log = tail % log_bytes */
	__u64 appended; /* 16, items ever appended */
	__u64 cleaned;	/* 24, buckets ever visited by the cleanup; position = cleaned % buckets */
	__u64 buckets;	/* 32, as loaded */
	__u64 log_bytes;
	__u64 round_tail; /* 48, tail when the cleanup's present round through the buckets began */
	/* The batch and the request at hand: here, so that the verifier knows nothing of them */
	__u32 wire_bytes;    /* 56, of the responses so far */
	__u32 payload_bytes; /* 60, likewise */
	__u64 scratch;	     /* 64, see KV_UNKNOWN in bpf/side.h */
	__u64 place_word;    /* 72, see kv_find() in bpf/store.h */
	__u32 place_way;     /* 80 */
	__u32 place_own;     /* 84 */
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

/* The high bits of an item's word in the index: a word in use is never 0. */
#define KV_STORE_TAG(key_hash) (((key_hash)&0xffff) ? ((key_hash)&0xffff) : 1)
/* Hash bits 16-47, scaled to the number of buckets: it need not be a power of two. */
#define KV_STORE_BUCKET(key_hash, buckets) ((__u64)(__u32)((key_hash) >> 16) * (buckets) >> 32)

#endif /* KV_ABI_CDEF */

#endif
