/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * load.h - the load generator's frames, control and results.
 */
#ifndef KV_ABI_LOAD_H
#define KV_ABI_LOAD_H

#include "abi/histogram.h"
#include "abi/words.h"

/* KV_LIVE_FRAME_MAX: BPF_PROG_RUN reserves more of a page than XDP does; Linux 6.1 leaves 3368 bytes of it. */
enum kv_load_limit {
	KV_LIVE_FRAME_MAX = 3367, /* bytes in a frame that BPF_PROG_RUN sends; odd, so that no batch has this length */
	KV_TEMPLATE_FRAME = 4096, /* bytes for one prepared frame of the load generator */
	KV_WINDOW_MAX = 4096,	  /* packets the load generator keeps outstanding; a power of two */
	KV_STALL_PERIOD_MS = 20	  /* ms between the starts of two pauses of a server under `bench --stall` */
};

/* A frame ready to be sent, and what its answer is checked against. */
struct kv_template {
	__u32 frame_bytes;	       /*  0 */
	__u32 request_count;	       /*  4 */
	__u32 gap_ns;		       /*  8, open loop: intended time after the previous packet, in ns */
	__u32 get_count;	       /* 12 */
	__u64 hash_sum;		       /* 16, sum of the requests' key hashes: every answer must echo its own */
	__u64 reserved;		       /* 24 */
	__u8 frame[KV_TEMPLATE_FRAME]; /* 32 */
};
KV_ASSERT(sizeof(struct kv_template) == 32 + KV_TEMPLATE_FRAME);

enum kv_load_state { KV_LOAD_STOPPED = 0, KV_LOAD_RUNNING = 1, KV_LOAD_DRAINING = 2 };

/* Set by Python, read by the generator program. */
struct kv_load_control {
	__u32 state;	      /*  0, enum kv_load_state */
	__u32 window;	      /*  4, most packets outstanding */
	__u32 template_first; /*  8, first template to send */
	__u32 template_count; /* 12, templates in use from template_first on */
	__u64 packets_limit;  /* 16, packets to send in total; 0 = no limit */
	__u64 timeout_ns;     /* 24, an unanswered packet counts as lost after so many ns */
	__u32 open_loop;      /* 32, 1 = send at each template's gap, latency from the intended time */
	__u32 value_bytes;    /* 36, length that every value must have */
	__u32 zero;	      /* 40, always 0, see KV_UNKNOWN_ZERO */
	__u32 padding[5];     /* 44 */
};
KV_ASSERT(sizeof(struct kv_load_control) == 64);

/* One outstanding packet. */
struct kv_load_slot {
	__u64 start_ns;	      /*  0, when it was sent; in an open loop, when it should have been */
	__u32 template_index; /* 8 */
	__u16 epoch;	      /* 12, tells a late answer from the answer to the slot's next packet */
	__u16 busy;	      /* 14 */
};
KV_ASSERT(sizeof(struct kv_load_slot) == 16);

/* The generator's position; only its core uses it. */
struct kv_load_cursor {
	__u64 packets_sent;  /*  0 */
	__u64 requests_sent; /*  8 */
	__u64 bytes_sent;    /* 16 */
	__u64 lost_packets;  /* 24 */
	__u64 lost_requests; /* 32 */
	__u64 next_start_ns; /* 40, open loop: when the next packet should be sent */
	__u32 slot;	     /* 48 */
	__u32 template_next; /* 52 */
	__u32 idle_turns;    /* 56 */
	__u32 padding;	     /* 60 */
};
KV_ASSERT(sizeof(struct kv_load_cursor) == 64);

/* Results of one core that received answers. */
struct kv_load_results {
	__u64 packets;	      /* answered packets */
	__u64 responses;      /* answered requests */
	__u64 bytes;	      /* of answered packets */
	__u64 hits;	      /* GETs with a value */
	__u64 misses;	      /* GETs without */
	__u64 stored;	      /* SETs that succeeded */
	__u64 corrupt;	      /* answers with a wrong value, key, length or count */
	__u64 refused;	      /* answers with any other result code */
	__u64 late;	      /* answers to packets that had been given up */
	__u64 latency_sum_ns; /* over requests */
	__u64 latency_max_ns;
	__u64 latency[KV_HISTOGRAM_BUCKETS]; /* requests by round trip, see kv_histogram_bucket() */
};

#ifndef KV_ABI_CDEF

/* Word i of the value that the load generator stores under a key. Every answer is checked against it. */
#define KV_LOAD_VALUE_SALT 0x9e3779b97f4a7c15ULL
#define KV_LOAD_VALUE_WORD(key_hash, i) ((key_hash) ^ (KV_LOAD_VALUE_SALT * ((__u64)(i) + 1)))

#endif /* KV_ABI_CDEF */

#endif
