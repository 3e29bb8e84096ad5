/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * reply.h - step 4 for each of the ways that a batch may have gone: the oldest response, or a host door's whole frame.
 */
#ifndef KV_REPLY_H
#define KV_REPLY_H

#include "base/maps.h"
#include "door/drop.h"
#include "door/respond.h"

static __always_inline int kv_reply_with_frame(struct xdp_md *ctx, struct kv_queue_pair *pair,
					       struct kv_dpu_queue *queue);

/* The frame at hand becomes the oldest finished response of the engine's queue pair, or what a host door made. */
static __always_inline int kv_reply(struct xdp_md *ctx, struct kv_queue_pair *pair, struct kv_dpu_queue *queue,
				    __u32 engine)
{
	if (engine >= KV_DPU_ENGINES && KV_HOST_FRAMES == KV_TRANSPORT_RING)
		return kv_reply_with_frame(ctx, pair, queue);
	return kv_reply_with_oldest(ctx, pair, queue);
}

/* A whole frame from a host door; none where it had nothing to say. */
static __always_inline int kv_reply_with_frame(struct xdp_md *ctx, struct kv_queue_pair *pair,
					       struct kv_dpu_queue *queue)
{
	__u32 slot = queue->answered & KV_SLOT_MASK;
	__u64 frame_bytes = KV_READ_ONCE(pair->responses[slot].wire_bytes);

	if (frame_bytes == 0) {
		kv_release_oldest(pair, queue);
		return XDP_DROP;
	}
	if (frame_bytes < KV_PACKET_HEADER_BYTES || frame_bytes > KV_FRAME_MAX) {
		queue->counters[KV_COUNTER_DROP_BAD_RESPONSE]++;
		kv_release_oldest(pair, queue);
		return XDP_DROP;
	}
	if (kv_set_length(ctx, frame_bytes)) {
		queue->counters[KV_COUNTER_TAIL_REFUSED]++;
		return XDP_DROP;
	}
	frame_bytes = kv_copy_bytes(frame_bytes, KV_OFFSET_MASK);
	if (bpf_xdp_store_bytes(ctx, 0, pair->responses[slot].payload, frame_bytes))
		return XDP_ABORTED;
	queue->counters[KV_COUNTER_QP_RESPONSE_BYTES] += frame_bytes;
	kv_release_oldest(pair, queue);
	return XDP_TX;
}

#endif
