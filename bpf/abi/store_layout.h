/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store_layout.h - the store: MICA's index and log, and the lines of an inline store, with the same layout on the host
 * and in XDP.
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

enum kv_short_limit {
	KV_SHORT_ITEMS = 3,		 /* items in a line */
	KV_SHORT_GROUP = 8,		 /* lines in a group; a power of two, and at most the bits of `other_lines` */
	KV_SHORT_ITEMS_PER_8_LINES = 14, /* items that a table is sized for: 1.75 for each line */
	KV_SHORT_LOG_BYTES_PER_ITEM = 64 /* for which the index has room: none takes less than 40, and most take more */
};

/* A short item in a line, both parts zero padded. */
struct kv_short_item {
	__u64 key;
	__u64 value;
};

/*
 * A line of an inline store: dpukv_xdp/_core/store/short_items.h says how lines are used. `version`: on the host it is
 * odd while an item of this home is being written, in shared mode; in XDP it is the store's epoch when the line was
 * last written. `had_long` is 1 if a key of this home has had a long value, and may be in the index; only a RESET in
 * exclusive mode clears it.
 */
struct kv_short_line {
	__u32 version;		       /*  0 */
	__u16 lengths[KV_SHORT_ITEMS]; /*  4, of the items in this line, see KV_SHORT_LENGTHS; 0: free */
	__u8 other_lines;	       /* 10, bit d: line home ^ d has items of this home */
	__u8 next_victim;	       /* 11, place to be taken next if the group is full */
	__u8 had_long;		       /* 12 */
	__u8 is_taken;		       /* 13, of a group's first line, on the host: a writer has the group */
	__u8 padding[2];	       /* 14 */
	struct kv_short_item items[KV_SHORT_ITEMS]; /* 16 */
};
KV_ASSERT(sizeof(struct kv_short_line) == 64);
KV_ASSERT((KV_SHORT_GROUP & (KV_SHORT_GROUP - 1)) == 0 && KV_SHORT_GROUP <= 8);

/* A store in XDP without its index, its log and its lines, which are maps of their own. */
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
	__u32 wire_bytes;    /* 56, bytes of the responses so far on the wire */
	__u32 values_bytes;  /* 60, bytes of their long values */
	__u64 scratch;	     /* 64, a place for KV_UNKNOWN to read from */
	__u64 place_word;    /* 72, result of kv_find() in store/dpu_store.h, as the next two */
	__u32 place_way;     /* 80 */
	__u32 place_own;     /* 84 */
	__u32 epoch;	     /* 88, RESETs so far: a line of an older version is empty */
	__u32 short_number;  /* 92, line of the item that kv_find_short() found */
	__u32 short_way;     /* 96, 1 + its place there; 0: not found */
	__u32 short_home;    /* 100, the key's home line */
	__u16 short_marks;   /* 104, bit d: line home ^ d may have the key */
	__u16 had_long;	     /* 106, 1: index and log may have the key */
	__u32 number;	     /* 108, of this store */
	__u64 short_lines;   /* 112, lines of an inline store */
	__u64 short_cleaned; /* 120, lines ever visited by the cleanup */
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
KV_ASSERT(sizeof(struct kv_dpu_store) == 320);

#ifndef KV_ABI_CDEF

#define KV_LOG_OFFSET_MASK ((1ULL << KV_LOG_OFFSET_BITS) - 1)
#define KV_LENGTH_VALUE_MASK 0xffffffu

/* Tag of an item's word in the index, never 0, so that a word in use is never 0 either. */
#define KV_STORE_TAG(key_hash) (((key_hash)&0xffff) ? ((key_hash)&0xffff) : 1)
/* Bucket of a hash: its bits 16-47, scaled to the number of buckets, which need not be a power of two. */
#define KV_STORE_BUCKET_HASH(key_hash) ((__u64)(__u32)((key_hash) >> 16))
#define KV_STORE_BUCKET(key_hash, buckets) (KV_STORE_BUCKET_HASH(key_hash) * (buckets) >> 32)

/* The parts of an item's lengths that a lookup compares. A build without the distance tests the tests. */
#ifndef KV_SHORT_COMPARED
#define KV_SHORT_COMPARED (~0xf0u)
#endif

/* Lengths of an item in a line that is `distance` from its home. */
#define KV_SHORT_LENGTHS(key_bytes, value_bytes, distance) ((key_bytes) | (value_bytes) << 4 | (distance) << 8)
#define KV_SHORT_KEY_AND_DISTANCE(lengths) ((lengths)&KV_SHORT_COMPARED)
#define KV_SHORT_VALUE_BYTES(lengths) ((lengths) >> 4 & 0xf)
#define KV_SHORT_DISTANCE(lengths) ((lengths) >> 8)

#endif /* KV_ABI_CDEF */

#endif
