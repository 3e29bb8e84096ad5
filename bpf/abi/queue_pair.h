/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * queue_pair.h - the queue pair: requests from the communication engine to a processing engine, responses back.
 */
#ifndef KV_ABI_QUEUE_PAIR_H
#define KV_ABI_QUEUE_PAIR_H

#include "abi/limits.h"
#include "abi/words.h"

/*
 * A batch's records lie in one piece, its packet's body or its responses' long values directly behind them, where they
 * take the room of as many records as they need. A piece may run from the last record of the ring into the slack; so
 * long is the slack that it also holds any masked offset plus any masked length, see KV_OFFSET_MASK.
 */
enum kv_queue_limit {
	KV_BATCHES = 8192,	    /* batches in flight in one queue pair; a power of two */
	KV_RECORDS = 16384,	    /* records in each direction of a queue pair; a power of two */
	KV_REQUEST_SLACK = 352,	    /* request records behind them: KV_BATCH_MAX, and 9 KiB */
	KV_RESPONSE_SLACK = 576,    /* response records behind them: KV_BATCH_MAX, and 8 KiB */
	KV_BATCH_RECORDS_MAX = 288, /* no batch takes more records in either direction, body or values included */
	KV_CROWDED_BATCHES = 7680,  /* batches in flight from which on a source may have to give way: 15/16 of all */
	KV_CROWDED_RECORDS = 15360, /* request records in use from which on it may: 15/16 of all */
	KV_ROUND_BATCHES = 64,	    /* batches in one round of an engine */
	KV_ROUND_REQUESTS = 256,    /* requests from which on an engine takes no further batch of a pair in a round */
	KV_INLINE_MAX = 8	    /* bytes of key or value that travel inside a record */
};

/* How requests get from XDP to the host. */
enum kv_transport {
	KV_TRANSPORT_RING = 0,	  /* struct kv_queue_pair, mapped by both sides */
	KV_TRANSPORT_RINGBUF = 1, /* a BPF ring buffer per engine; responses go through the mapped queue pair */
	KV_TRANSPORT_AF_XDP = 2	  /* the frame itself through a socket, with or without records behind it */
};

/*
 * A request as the processing engine sees it (the paper's Figure 8a): 32 bytes with key and value inside when both
 * are at most KV_INLINE_MAX bytes, zero padded. For a longer key or value, the packet's body lies behind the batch's
 * records, and the field holds the offset there.
 */
struct kv_request {
	__u64 header;	/*  0, header word */
	__u64 key_hash; /*  8 */
	__u64 key;	/* 16 */
	__u64 value;	/* 24 */
};
KV_ASSERT(sizeof(struct kv_request) == 32);

/*
 * A response: 16 bytes with the value inside when it is at most KV_INLINE_MAX bytes, else the value's offset behind the
 * batch's records.
 */
struct kv_response {
	__u64 header; /* 0, header word with result and value length filled in and key length 0 */
	__u64 value;  /* 8 */
};
KV_ASSERT(sizeof(struct kv_response) == 16);

/* One cache line, written by the communication engine only. Counters of batches. */
struct kv_request_control {
	__u32 published;  /*  0, batches appended; storing it hands over a batch */
	__u32 answered;	  /*  4, batches whose response has been taken */
	__u32 drain;	  /*  8, 1: the engine wakes the sender for every parked response */
	__u32 padding0;	  /* 12 */
	__u64 ready;	  /* 16, where each record is handed over separately: KV_READY() of the latest one */
	__u8 padding[40]; /* 24 */
};
KV_ASSERT(sizeof(struct kv_request_control) == 64);

/* One cache line, written by the processing engine only. */
struct kv_response_control {
	__u32 published;  /*  0, batches processed; storing it hands back a batch */
	__u16 alive;	  /*  4, 1 while an engine serves this queue pair, for a host door of the same process */
	__u16 engine_cpu; /*  6, the engine's core: a communication engine on the same core must not wait for it */
	__u64 ready;	  /*  8, as in struct kv_request_control */
	__u8 padding[48]; /* 16 */
};
KV_ASSERT(sizeof(struct kv_response_control) == 64);

/* One batch of requests, written by the communication engine. */
struct kv_batch_entry {
	__u8 count;	    /* 0, the paper's RC: requests in the batch; 0: the body is a whole frame for a host door */
	__u8 has_body;	    /* 1, 1 if the packet's body is behind the records */
	__u16 body_bytes;   /* 2, of the body or frame */
	__u32 first_record; /* 4, number of the record that it begins at; index = number % KV_RECORDS */
};
KV_ASSERT(sizeof(struct kv_batch_entry) == 8);

/* The responses to one batch, written by the processing engine or the host door. */
struct kv_answer_entry {
	__u16 wire_bytes;   /* 0, bytes on the wire, headers of the responses included; or of a whole frame, 0: none */
	__u16 records;	    /* 2, records that it takes, long values included */
	__u32 first_record; /* 4, number of its first record, counted apart from the requests' */
};
KV_ASSERT(sizeof(struct kv_answer_entry) == 8);

/* A batch in a BPF ring buffer begins with this, in front of its records, and body if it has one. */
struct kv_sample_head {
	__u8 count;	  /* 0, as in struct kv_batch_entry */
	__u8 has_body;	  /* 1 */
	__u16 body_bytes; /* 2 */
	__u16 pair;	  /* 4, number of the communication core that sent the batch */
	__u8 padding[26]; /* 6 */
};
KV_ASSERT(sizeof(struct kv_sample_head) == sizeof(struct kv_request));

/*
 * XDP metadata in front of a frame that goes to the host through AF_XDP. If records_offset is not 0, the frame has been
 * parsed: at that offset, behind the frame, are its struct kv_parked_batch, KV_OPAQUE_BYTES of opaques, and the
 * records.
 */
struct kv_frame_note {
	__u16 records_offset; /*  0, from the start of the frame; 0: not parsed */
	__u16 frame_bytes;    /*  2, of the frame itself */
	__u8 engine;	      /*  4 */
	__u8 count;	      /*  5, records */
	__u8 has_body;	      /*  6, as in struct kv_batch_entry; the body is the frame's */
	__u8 header_offset;   /*  7, offset of struct kv_packet_header: 4 behind a VLAN tag, else 0 */
};
KV_ASSERT(sizeof(struct kv_frame_note) == 8);

/* Shared memory of one communication core and one processing engine. Entry of a batch = its number % KV_BATCHES. */
struct kv_queue_pair {
	struct kv_request_control request_control;   /* 0 */
	__u8 padding0[64];			     /* 64: the adjacent-line prefetcher pairs lines */
	struct kv_response_control response_control; /* 128 */
	__u8 padding1[64];			     /* 192 */
	struct kv_batch_entry batches[KV_BATCHES];   /* 256 */
	struct kv_answer_entry answers[KV_BATCHES];
	struct kv_request requests[KV_RECORDS + KV_REQUEST_SLACK];
	struct kv_response responses[KV_RECORDS + KV_RESPONSE_SLACK];
};
KV_ASSERT(sizeof(struct kv_queue_pair) ==
	  256 + 16 * KV_BATCHES + 32 * (KV_RECORDS + KV_REQUEST_SLACK) + 16 * (KV_RECORDS + KV_RESPONSE_SLACK));
KV_ASSERT(32 * KV_BATCH_RECORDS_MAX >= 32 * KV_BATCH_MAX + KV_FRAME_MAX);
KV_ASSERT(16 * KV_BATCH_RECORDS_MAX >= 16 * KV_BATCH_MAX + KV_FRAME_MAX);

#ifndef KV_ABI_CDEF

/* Records that `bytes` behind a batch's records take, in the direction of requests, and of responses. */
#define KV_BODY_RECORDS(bytes) (((bytes) + 31u) / 32)
#define KV_VALUE_RECORDS(bytes) (((bytes) + 15u) / 16)
/* The word `ready`: the batch's number, and how many of its records are ready. */
#define KV_READY(batch, records) ((__u64)(batch) << 32 | (records))

#endif /* KV_ABI_CDEF */

#endif
