/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * transfer.h - the transfer primitives that `dpukv qp-bench` measures, see kv_transfer.c.
 */
#ifndef KV_ABI_TRANSFER_H
#define KV_ABI_TRANSFER_H

#include "abi/load.h"
#include "abi/words.h"

enum kv_transfer_limit {
	KV_TRANSFER_BYTES_MAX = 8192,	 /* bytes in one payload */
	KV_TRANSFER_SLOTS = 64,		 /* slots of the mapped ring, the most payloads in flight; a power of two */
	KV_TRANSFER_PAYLOADS = 3,	 /* different ones, in turn: a slot never holds the same one twice in a row */
	KV_TRANSFER_FRAGMENT_MAX = 1024, /* bytes of a payload in one frame, within the usual MTU */
	KV_TRANSFER_TURNS = 1500,	 /* polling turns in one run of a program */
	KV_TRANSFER_RINGBUF_PAGES = 256, /* room for KV_TRANSFER_SLOTS of the largest payloads */
	KV_TRANSFER_ETHERTYPE = 0x88b5	 /* reserved by IEEE 802 for local experiments */
};

/* Shared by both ends. Each cache line has one writer; counters count operations handed over or taken. */
struct kv_transfer_control {
	__u32 operations;     /*   0, operations to do; this line is set before the start */
	__u32 bytes;	      /*   4, bytes of a payload */
	__u32 window;	      /*   8, most operations in flight: 1 is blocking */
	__u32 ringbuf_wakeup; /*  12, flags of bpf_ringbuf_output() */
	__u32 stop;	      /*  16, 1: both ends stop */
	__u8 padding0[108];   /*  20: the adjacent-line prefetcher pairs lines */
	__u32 dpu_count;      /* 128, written by the DPU */
	__u8 padding1[124];   /* 132 */
	__u32 host_count;     /* 256, written by the host */
	__u8 padding2[124];   /* 260 */
	__u32 dpu_fragments;  /* 384, private to the DPU: fragments of the current operation that are done */
	__u32 dpu_wrong;      /* 388, payloads with wrong bytes */
	__u8 padding3[120];   /* 392 */
};
KV_ASSERT(sizeof(struct kv_transfer_control) == 512);

/* Header of a frame with a payload or a fragment of one. */
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

/* Word i of a prepared payload, and the difference between a word and the next one. */
#define KV_TRANSFER_STEP (KV_LOAD_VALUE_SALT * KV_TRANSFER_PAYLOADS)
#define KV_TRANSFER_WORD(payload, i) (KV_LOAD_VALUE_SALT * ((payload) + 1) + KV_TRANSFER_STEP * (__u64)(i))

#endif /* KV_ABI_CDEF */

#endif
