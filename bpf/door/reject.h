/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * reject.h - the answer to requests for an engine that is silent: KV_REJECTED for each, in the frame that brought them.
 */
#ifndef KV_REJECT_H
#define KV_REJECT_H

#include "door/drop.h"
#include "door/receive.h"

/* Turn a well-formed frame into its rejection and count it. Return the XDP verdict. */
static __always_inline int kv_answer_rejected(struct xdp_md *ctx, const struct kv_packet *packet,
					      struct kv_dpu_queue *queue, struct kv_dpu_queue *own)
{
	struct kv_parked_batch parked = {};
	__u32 wire_bytes, frame_bytes, shift = packet->header_offset;
	struct kv_packet_header *header;
	void *data, *data_end;
	int count;

	if (kv_prepare_batch(ctx, packet, &parked))
		return XDP_ABORTED;
	count = kv_reject_requests(ctx, packet, queue);
	if (count <= 0)
		return kv_drop(queue, -count);
	parked.count = count;
	wire_bytes = (__u32)count * KV_ITEM_HEADER_BYTES;
	KV_OPAQUE(shift);
	shift &= KV_VLAN_BYTES;
	frame_bytes = shift + KV_PACKET_HEADER_BYTES + wire_bytes;
	if (kv_set_length(ctx, frame_bytes)) /* never longer than the requests */
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	header = data + shift;
	/* The second comparison follows from the first one, but not for the verifier. */
	if ((void *)(header + 1) > data_end || data + KV_ETH_BYTES + KV_VLAN_BYTES > data_end)
		return XDP_ABORTED;
	kv_write_packet_header(data, header, &parked, wire_bytes);
	kv_count_batch(queue, packet, count, own);
	queue->counters[KV_COUNTER_RESPONSES_REJECTED]++;
	queue->counters[KV_COUNTER_FRAMES_SENT]++;
	queue->counters[KV_COUNTER_RESPONSES_SENT] += count;
	queue->counters[KV_COUNTER_BYTES_SENT] += frame_bytes;
	return XDP_TX;
}

#endif
