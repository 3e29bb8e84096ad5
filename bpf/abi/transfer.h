/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * transfer.h - the transfer primitives that `dpukv qp-bench` measures, see kv_transfer.c.
 */
#ifndef KV_ABI_TRANSFER_H
#define KV_ABI_TRANSFER_H

#include "abi/load.h"
#include "abi/words.h"

enum kv_transfer_limit {
	KV_TRANSFER_BYTES_MAX = 8192, /* of one payload */
	KV_TRANSFER_SLOTS = 64,	      /* of the mapped ring: payloads in flight at most; a power of two */
	KV_TRANSFER_PAYLOADS = 3, /* different ones, taken in turn: a slot never holds the same one twice in a row */
	KV_TRANSFER_FRAGMENT_MAX = 1024, /* bytes of a payload in one frame: fits the usual MTU */
	KV_TRANSFER_TURNS = 1500,	 /* turns that one run of a program polls */
	KV_TRANSFER_RINGBUF_PAGES = 256, /* room for KV_TRANSFER_SLOTS of the largest payloads */
	KV_TRANSFER_ETHERTYPE = 0x88b5	 /* for local experiments: IEEE 802 */
};

/* Shared by the two ends. Each line has one writer; counters are of operations handed over or taken. */
struct kv_transfer_control {
	__u32 operations;     /*   0, set before the start, to the end of the line */
	__u32 bytes;	      /*   4, of a payload */
	__u32 window;	      /*   8, operations in flight at most: 1 is blocking */
	__u32 ringbuf_wakeup; /*  12, flags of bpf_ringbuf_output() */
	__u32 stop;	      /*  16, 1: give up */
	__u8 padding0[108];   /*  20: the adjacent-line prefetcher pairs lines */
	__u32 dpu_count;      /* 128, written by the DPU */
	__u8 padding1[124];   /* 132 */
	__u32 host_count;     /* 256, written by the host */
	__u8 padding2[124];   /* 260 */
	__u32 dpu_fragments;  /* 384, the DPU's own: fragments of the operation at hand that are done */
	__u32 dpu_wrong;      /* 388, payloads that were not what they must be */
	__u8 padding3[120];   /* 392 */
};
KV_ASSERT(sizeof(struct kv_transfer_control) == 512);

/* A frame with a payload, or one fragment of it behind the other. */
struct kv_transfer_frame {
	__u8 eth_destination[6]; /*  0 */
	__u8 eth_source[6];	 /*  6 */
	__u16 eth_type;		 /* 12, KV_TRANSFER_ETHERTYPE in network order */
	__u16 fragment;		 /* 14 */
	__u32 operation;	 /* 16 */
	__u32 reserved;		 /* 20, zero: the payload begins at a multiple of 8 */
};
KV_ASSERT(sizeof(struct kv_transfer_frame) == 24);

#ifndef KV_ABI_CDEF

/* Word i of a prepared payload of the transfer primitives, and what the next word is larger by. */
#define KV_TRANSFER_STEP (KV_LOAD_VALUE_SALT * KV_TRANSFER_PAYLOADS)
#define KV_TRANSFER_WORD(payload, i) (KV_LOAD_VALUE_SALT * ((payload) + 1) + KV_TRANSFER_STEP * (__u64)(i))

#endif /* KV_ABI_CDEF */

#endif
