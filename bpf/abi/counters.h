/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * counters.h - what the communication engine counts.
 */
#ifndef KV_ABI_COUNTERS_H
#define KV_ABI_COUNTERS_H

enum kv_counter {
	KV_COUNTER_FRAMES_RECEIVED,	/* frames that were ours and well formed */
	KV_COUNTER_REQUESTS_RECEIVED,	/* requests in them */
	KV_COUNTER_BYTES_RECEIVED,	/* bytes of those frames, Ethernet header included */
	KV_COUNTER_FRAMES_SENT,		/* response frames */
	KV_COUNTER_RESPONSES_SENT,	/* responses in them */
	KV_COUNTER_BYTES_SENT,		/* bytes of those frames */
	KV_COUNTER_QP_REQUEST_BYTES,	/* bytes handed to the engine: records, count, payload */
	KV_COUNTER_QP_RESPONSE_BYTES,	/* bytes handed back */
	KV_COUNTER_PASSED,		/* frames that are not ours, given to the kernel's stack */
	KV_COUNTER_REDIRECTED,		/* frames given to a host door, which counts what is in them */
	KV_COUNTER_RESPONSES_WAITED,	/* batches answered in their own frame */
	KV_COUNTER_RESPONSES_CARRIED,	/* batches answered in a later frame */
	KV_COUNTER_RESPONSES_FLUSHED,	/* batches answered by the sender because no frame followed */
	KV_COUNTER_WAIT_TIMEOUTS,	/* waits for the engine that ran out of turns */
	KV_COUNTER_TAIL_REFUSED,	/* responses left to the sender because the frame could not grow */
	KV_COUNTER_DROP_IP_HEADER,	/* IP options, or lengths that do not match the frame */
	KV_COUNTER_DROP_FRAGMENT,	/* first fragment of a larger datagram */
	KV_COUNTER_DROP_UDP_LENGTH,	/* UDP length does not match the IP length */
	KV_COUNTER_DROP_FRAME_LENGTH,	/* shorter than a packet header with one request, or over KV_FRAME_MAX */
	KV_COUNTER_DROP_MAGIC,		/* not a request */
	KV_COUNTER_DROP_TRUNCATED,	/* a request's key or value runs past the end */
	KV_COUNTER_DROP_BATCH_LENGTH,	/* more than KV_BATCH_MAX requests */
	KV_COUNTER_DROP_NO_ENGINE,	/* no processing engine serves the port */
	KV_COUNTER_DROP_QUEUE_FULL,	/* KV_SLOTS batches are waiting for the engine */
	KV_COUNTER_DROP_BAD_RESPONSE,	/* the engine's response breaks its own lengths */
	KV_COUNTER_DROP_NO_QUEUE_PAIR,	/* a core without a queue pair received the frame */
	KV_COUNTER_DROP_NO_SOCKET,	/* no AF_XDP socket serves the frame's receive queue */
	KV_COUNTER_DROP_RINGBUF_FULL,	/* the BPF ring buffer has no room for the batch */
	KV_COUNTER_DROP_PARTITION_BUSY, /* another core has used the partition for too long */
	KV_COUNTER_DROP_SUPER_PACKET,	/* datagrams that a kernel left or made one packet (GSO, GRO) */
	KV_COUNTERS
};

#endif
