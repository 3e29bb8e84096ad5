/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * counters.h - the communication engine's counters.
 */
#ifndef KV_ABI_COUNTERS_H
#define KV_ABI_COUNTERS_H

enum kv_counter {
	KV_COUNTER_FRAMES_RECEIVED,	/* well-formed frames for one of our ports */
	KV_COUNTER_REQUESTS_RECEIVED,	/* requests in those frames */
	KV_COUNTER_BYTES_RECEIVED,	/* bytes of those frames, Ethernet header included */
	KV_COUNTER_FRAMES_SENT,		/* response frames */
	KV_COUNTER_RESPONSES_SENT,	/* responses in those frames */
	KV_COUNTER_BYTES_SENT,		/* bytes of those frames, Ethernet header included */
	KV_COUNTER_QP_REQUEST_BYTES,	/* bytes handed to the engine: records, count, body */
	KV_COUNTER_QP_RESPONSE_BYTES,	/* bytes handed back by the engine: records, count, long values */
	KV_COUNTER_PASSED,		/* frames for other programs, passed to the kernel's stack */
	KV_COUNTER_REDIRECTED,		/* frames given to a host door, which counts their requests */
	KV_COUNTER_RESPONSES_WAITED,	/* batches answered in their own frame */
	KV_COUNTER_RESPONSES_CARRIED,	/* batches answered in a later frame */
	KV_COUNTER_RESPONSES_FLUSHED,	/* batches answered by the sender because no frame followed */
	KV_COUNTER_RESPONSES_REJECTED,	/* batches rejected in their own frame because their engine is silent */
	KV_COUNTER_PASSED_NO_ENGINE,	/* frames passed to the kernel's stack because their engine is silent */
	KV_COUNTER_WAIT_TIMEOUTS,	/* waits for the engine that ran out of time */
	KV_COUNTER_TAIL_REFUSED,	/* responses left to the sender: the frame could not grow */
	KV_COUNTER_DROP_IP_HEADER,	/* IP options, or lengths that do not match the frame */
	KV_COUNTER_DROP_FRAGMENT,	/* first fragment of a larger datagram */
	KV_COUNTER_DROP_UDP_LENGTH,	/* UDP length does not match the IP length */
	KV_COUNTER_DROP_FRAME_LENGTH,	/* shorter than a packet header with one request, or over KV_FRAME_MAX */
	KV_COUNTER_DROP_MAGIC,		/* the batch header's magic is not KV_MAGIC_REQUEST */
	KV_COUNTER_DROP_FOREIGN_MAC,	/* not sent to the interface's own MAC address */
	KV_COUNTER_DROP_MARTIAN,	/* from an address or a port that no client can have */
	KV_COUNTER_DROP_TRUNCATED,	/* a request's key or value runs past the end */
	KV_COUNTER_DROP_BATCH_LENGTH,	/* more than KV_BATCH_MAX requests */
	KV_COUNTER_DROP_NO_ENGINE,	/* no processing engine serves the port */
	KV_COUNTER_DROP_QUEUE_FULL,	/* the queue pair holds as many batches or records as it can */
	KV_COUNTER_DROP_SOURCE_SHARE,	/* the queue pair is nearly full, of this source's batches among others */
	KV_COUNTER_DROP_BAD_RESPONSE,	/* the engine's response contradicts its own lengths */
	KV_COUNTER_DROP_NO_QUEUE_PAIR,	/* received by a core that has no queue pair */
	KV_COUNTER_DROP_NO_SOCKET,	/* no AF_XDP socket serves the frame's receive queue */
	KV_COUNTER_DROP_RINGBUF_FULL,	/* the BPF ring buffer has no room for the batch */
	KV_COUNTER_DROP_PARTITION_BUSY, /* another core has held the partition for too long */
	KV_COUNTER_DROP_SUPER_PACKET,	/* several datagrams that a kernel kept or merged in one packet (GSO, GRO) */
	KV_COUNTERS
};

#endif
