/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * queue_pair.h - the queue pair: requests from the communication engine to a processing engine, responses back.
 */
#ifndef KV_ABI_QUEUE_PAIR_H
#define KV_ABI_QUEUE_PAIR_H

#include "abi/limits.h"
#include "abi/words.h"

/* KV_PAYLOAD_BYTES is large enough for any masked offset plus any masked length. */
enum kv_queue_limit {
	KV_SLOTS = 64,		 /* batches in flight in one queue pair; a power of two */
	KV_ROUND_REQUESTS = 256, /* requests from which on an engine takes no further batch of a pair in a round */
	KV_INLINE_MAX = 8,	 /* bytes of key or value that travel inside a record */
	KV_PAYLOAD_BYTES = 8192	 /* bytes for longer keys and values in a slot: twice KV_FRAME_MAX, rounded up */
};

/* How requests get from XDP to the host. */
enum kv_transport {
	KV_TRANSPORT_RING = 0,	  /* struct kv_queue_pair, mapped by both sides */
	KV_TRANSPORT_RINGBUF = 1, /* a BPF ring buffer per engine; responses go through the mapped queue pair */
	KV_TRANSPORT_AF_XDP = 2	  /* the frame itself through a socket, with or without records behind it */
};

/*
 * A request as the processing engine sees it (the paper's Figure 8a): 32 bytes with key and value inside when both
 * are at most KV_INLINE_MAX bytes, zero padded. A longer key or value lies in the slot's payload instead, and its
 * field holds the offset there.
 */
struct kv_request {
	__u64 header;	/*  0, header word */
	__u64 key_hash; /*  8 */
	__u64 key;	/* 16 */
	__u64 value;	/* 24 */
};
KV_ASSERT(sizeof(struct kv_request) == 32);

/* A response: 16 bytes with the value inside when it is at most KV_INLINE_MAX bytes, else its offset in the payload. */
struct kv_response {
	__u64 header; /* 0, header word with result and value length filled in and key length 0 */
	__u64 value;  /* 8 */
};
KV_ASSERT(sizeof(struct kv_response) == 16);

/* One cache line, written by the communication engine only. Counters of batches; slot = counter % KV_SLOTS. */
struct kv_request_control {
	__u32 published;  /*  0, batches appended; storing it hands over a batch */
	__u32 answered;	  /*  4, batches whose response has been taken */
	__u32 drain;	  /*  8, 1: the engine wakes the sender for every parked response */
	__u8 padding[52]; /* 12 */
};
KV_ASSERT(sizeof(struct kv_request_control) == 64);

/* One cache line, written by the processing engine only. */
struct kv_response_control {
	__u32 published;  /*  0, batches processed; storing it hands back a batch */
	__u16 alive;	  /*  4, 1 while an engine serves this queue pair */
	__u16 engine_cpu; /*  6, the engine's core: a communication engine on the same core must not wait for it */
	__u8 padding[56]; /*  8 */
};
KV_ASSERT(sizeof(struct kv_response_control) == 64);

/* A batch of requests. The head and the first record share a cache line: a batch of one request takes one line. */
struct kv_request_slot {
	__u8 count;	   /*  0, the paper's RC: requests in the batch */
	__u8 has_payload;  /*  1, 1 if the payload holds this batch's packet body */
	__u16 pair;	   /*  2, in a shared ring buffer: number of the communication core that sent the batch */
	__u16 frame_bytes; /*  4, length of a whole frame in the payload, on its way to a host door */
	__u16 ready;	   /*  6, records written so far, where each is handed over separately */
	__u8 padding[24];  /*  8 */
	struct kv_request records[KV_BATCH_MAX]; /* 32 */
	__u8 padding1[32];
	__u8 payload[KV_PAYLOAD_BYTES]; /* 2112 */
};
KV_ASSERT(sizeof(struct kv_request_slot) == 2112 + KV_PAYLOAD_BYTES);

struct kv_response_slot {
	__u16 wire_bytes;			  /*  0, bytes of the responses on the wire, their headers included; or
						     the length of a whole frame in the payload, 0 for none */
	__u16 ready;				  /*  2, as in the request slot */
	__u8 padding[12];			  /*  4 */
	struct kv_response records[KV_BATCH_MAX]; /* 16 */
	__u8 padding1[48];
	__u8 payload[KV_PAYLOAD_BYTES]; /* 1088 */
};
KV_ASSERT(sizeof(struct kv_response_slot) == 1088 + KV_PAYLOAD_BYTES);

/*
 * XDP metadata in front of a frame that goes to the host through AF_XDP. If records_offset is not 0, the frame has been
 * parsed: at that offset, behind the frame, are the first KV_PARKED_BYTES of struct kv_parked_batch, then the records.
 */
struct kv_frame_note {
	__u16 records_offset; /*  0, from the start of the frame; 0: not parsed */
	__u16 frame_bytes;    /*  2, of the frame itself */
	__u8 engine;	      /*  4 */
	__u8 count;	      /*  5, records */
	__u8 has_payload;     /*  6, as in the request slot; the payload is the frame's body */
	__u8 header_offset;   /*  7, offset of struct kv_packet_header: 4 behind a VLAN tag, else 0 */
};
KV_ASSERT(sizeof(struct kv_frame_note) == 8);

/* Shared memory of one communication core and one processing engine. */
struct kv_queue_pair {
	struct kv_request_control request_control;   /* 0 */
	__u8 padding0[64];			     /* 64: the adjacent-line prefetcher pairs lines */
	struct kv_response_control response_control; /* 128 */
	__u8 padding1[64];			     /* 192 */
	struct kv_request_slot requests[KV_SLOTS];   /* 256 */
	struct kv_response_slot responses[KV_SLOTS];
};
KV_ASSERT(sizeof(struct kv_queue_pair) == 256 + KV_SLOTS * (2112 + 1088 + 2 * KV_PAYLOAD_BYTES));

#endif
