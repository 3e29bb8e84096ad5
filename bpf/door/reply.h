/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * reply.h - step 4 for each way that a batch can take: send the oldest response, or a host door's whole frame.
 */
#ifndef KV_REPLY_H
#define KV_REPLY_H

#include "base/maps.h"
#include "door/drop.h"
#include "door/respond.h"

static __always_inline int kv_reply_with_frame(struct xdp_md *ctx, const struct kv_dpu_end *end);

/*
 * Turn the current frame into the engine's oldest finished response, or into a host door's frame. Return the verdict.
 */
static __always_inline int kv_reply(struct xdp_md *ctx, const struct kv_dpu_end *end, __u32 engine)
{
	if (engine >= KV_DPU_ENGINES && KV_HOST_FRAMES == KV_TRANSPORT_RING)
		return kv_reply_with_frame(ctx, end);
	return kv_reply_with_oldest(ctx, end);
}

/* Turn the current frame into the one that a host door wrote. A length of 0 means that the door has no answer. */
static __always_inline int kv_reply_with_frame(struct xdp_md *ctx, const struct kv_dpu_end *end)
{
	struct kv_dpu_queue *queue = end->queue;
	const struct kv_answer_entry *answer = &end->pair->answers[queue->answered & KV_BATCH_MASK];
	__u64 frame_bytes = KV_READ_ONCE(answer->wire_bytes);
	__u64 record = KV_READ_ONCE(answer->first_record) & KV_RECORD_MASK;

	if (frame_bytes == 0) {
		kv_release_oldest(end);
		return XDP_DROP;
	}
	if (frame_bytes < KV_PACKET_HEADER_BYTES || frame_bytes > KV_FRAME_MAX) {
		kv_release_oldest(end);
		return kv_drop(queue, KV_COUNTER_DROP_BAD_RESPONSE);
	}
	if (kv_set_reply_length(ctx, frame_bytes)) {
		queue->refused = queue->answered + 1;
		return kv_drop(queue, KV_COUNTER_TAIL_REFUSED);
	}
	frame_bytes = kv_copy_bytes(frame_bytes, KV_OFFSET_MASK);
	if (bpf_xdp_store_bytes(ctx, 0, &end->pair->responses[record], frame_bytes))
		return XDP_ABORTED;
	queue->counters[KV_COUNTER_QP_RESPONSE_BYTES] += frame_bytes;
	kv_release_oldest(end);
	return XDP_TX;
}

#endif
