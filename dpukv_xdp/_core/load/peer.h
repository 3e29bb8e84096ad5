/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* peer.h - load for stores with other protocols, for `dpukv compare`. */
#ifndef KV_PEER_H
#define KV_PEER_H

#include "abi/histogram.h"
#include "base/integers.h"

enum kv_peer_protocol {
	KV_PEER_RESP,	       /* Redis: one command per request, pipelined */
	KV_PEER_RESP_MGET,     /* Redis: a message's GETs are one MGET */
	KV_PEER_MEMCACHED,     /* memcached's text protocol: a message's GETs are one multi-get */
	KV_PEER_MEMCACHED_UDP, /* the same, a message in one datagram behind an 8-byte frame header */
	KV_PEER_PROTOCOLS
};

enum kv_peer_limit {
	KV_PEER_LINE_MAX = 512,	     /* bytes in a line of an answer, its key included */
	KV_PEER_BUFFER_BYTES = 16384 /* bytes of received but not yet parsed data per stream */
};

enum kv_peer_state { KV_PEER_RUNNING, KV_PEER_DRAINING, KV_PEER_STOPPED };

struct kv_peer_request {
	uint64_t key_hash; /* determines the expected value: KV_LOAD_VALUE_WORD() */
	uint32_t key_at;   /* offset of its key's text in the message */
	uint32_t padding;
};

/* One to KV_BATCH_MAX requests that are sent together, the GETs before the SETs. */
struct kv_peer_message {
	uint64_t at; /* offset of its first byte in the plan */
	uint32_t bytes;
	uint32_t first; /* index of its first request in the plan */
	uint32_t gets;
	uint32_t sets;
};

/* Prepared messages, sent repeatedly. The memory belongs to the caller. */
struct kv_peer_plan {
	uint8_t *bytes;
	struct kv_peer_message *messages;
	struct kv_peer_request *requests;
	uint64_t bytes_room;
	uint32_t message_count;
	uint32_t protocol; /* enum kv_peer_protocol */
	uint32_t key_size; /* bytes of a key; its text has twice as many hexadecimal digits */
	uint32_t value_bytes;
};

/* Write messages of `per_message` requests each, the last one with the rest: `keys` are plan->key_size bytes each. Sets
 * plan->message_count. Bytes written, -ENOBUFS if they do not fit, -EINVAL for a plan beyond the limits. */
int64_t kv_peer_encode(struct kv_peer_plan *plan, const uint8_t *keys, const uint64_t *key_hashes,
		       const uint8_t *is_get, uint32_t count, uint32_t per_message);

/* Parser state of the answer to one message; all zero before its first byte. */
struct kv_peer_answer {
	uint32_t position; /* requests answered so far */
	uint32_t bracket;  /* 1: the line before (MGET) or behind (multi-get) all values has been parsed */
	uint32_t complete;
	uint32_t hits;
	uint32_t misses;
	uint32_t stored;
	uint32_t corrupt; /* wrong values, and values that were not requested */
	uint32_t refused; /* requests that the server refused */
};

/*
 * Parse the complete items of `data` that belong to the answer to this message. Return the bytes used, or -EPROTO for
 * an answer that violates the protocol.
 */
int64_t kv_peer_parse(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
		      struct kv_peer_answer *answer, const uint8_t *data, uint32_t bytes);

/* Written by the generator's thread only; any thread may read it at any time. */
struct kv_peer_results {
	uint64_t requests_sent;
	uint64_t bytes_sent;
	uint64_t messages_sent;
	uint64_t messages; /* messages answered */
	uint64_t responses;
	uint64_t bytes;
	uint64_t hits;
	uint64_t misses;
	uint64_t stored;
	uint64_t corrupt;
	uint64_t refused;
	uint64_t late; /* answers to messages that had been given up */
	uint64_t lost; /* requests without an answer in time */
	uint64_t latency_sum_ns;
	uint64_t polls;
	uint64_t idle_ns;			/* time in polls that found nothing to do */
	uint64_t latency[KV_HISTOGRAM_BUCKETS]; /* requests by round trip of their message, see kv_histogram_bucket() */
};

struct kv_peer_load {
	struct kv_peer_plan plan;
	uint32_t state;		 /* enum kv_peer_state, set by any thread */
	uint32_t protocol_error; /* 1 after an answer that violates the protocol; its beginning is in `offending` */
	uint64_t messages_limit; /* messages to send in this run; 0: no limit */
	uint64_t timeout_ns;
	struct kv_peer_results results;
	uint8_t offending[64];
	struct kv_peer_load_state *own;
};

/* Create a generator. `sockets` are connected and non-blocking and stay the caller's. Each keeps `window` messages
 * outstanding; a datagram socket at most KV_BATCH_MAX. Return NULL and set errno on failure. */
struct kv_peer_load *kv_peer_load_create(const int32_t *sockets, uint32_t count, uint32_t window, int is_datagram);
void kv_peer_load_destroy(struct kv_peer_load *load);
/* Send the plan's messages until `state` says otherwise or the limit is reached, then wait for what is out. On the
 * generator's thread. 0, -EPROTO, -EPIPE when the server has hung up, -ETIMEDOUT when a stream stays silent, or what a
 * system call said. */
int kv_peer_load_run(struct kv_peer_load *load);

#endif
