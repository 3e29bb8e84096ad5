/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * receive.h - steps 1 and 2: turn a well-formed frame into a batch in the request queue.
 */
#ifndef KV_RECEIVE_H
#define KV_RECEIVE_H

#include "base/stages.h"
#include "net/headers.h"
#include "net/reply_headers.h"
#include "protocol/mica2.h"
#include "queue/dpu_end.h"

static __always_inline int kv_prepare_batch(struct xdp_md *ctx, const struct kv_packet *packet,
					    struct kv_parked_batch *parked);
static __always_inline int kv_copy_body(struct xdp_md *ctx, const struct kv_packet *packet, void *body,
					struct kv_dpu_queue *queue);

/*
 * Parse the requests into the queue pair's next batch, unpublished. Return how many, or a negated drop counter.
 * `*body_bytes` becomes the length of the packet's body if that lies behind the records, else 0.
 */
static __always_inline int kv_take_requests(struct xdp_md *ctx, const struct kv_packet *packet,
					    const struct kv_dpu_end *end, __u32 *body_bytes)
{
	struct kv_request_batch batch;
	__u32 has_body = 0;
	int count, refusal;

	*body_bytes = 0;
	if (KV_PROCESS_HERE) /* nothing waits here that another source could have filled the queue pair with */
		refusal = kv_queue_is_full(end->queue) ? KV_COUNTER_DROP_QUEUE_FULL : 0;
	else
		refusal = kv_no_room(end, packet->source);
	if (refusal)
		return -refusal;
	batch = kv_next_batch(end);
	count = kv_parse_requests(ctx, packet, end->queue, batch.records, batch.opaques, &has_body);
	if (count <= 0 || !has_body)
		return count;
	*body_bytes = packet->body_bytes;
	/* Through AF_XDP the body travels in the frame itself. */
	if (KV_TRANSPORT != KV_TRANSPORT_AF_XDP &&
	    kv_copy_body(ctx, packet, batch.records + kv_records_in_front(count), end->queue))
		return -KV_COUNTER_DROP_TRUNCATED;
	return count;
}

/* Hand the next batch to the engine and prepare its response. Return 0, or -1 if the frame is too short. */
static __always_inline int kv_send_batch(struct xdp_md *ctx, const struct kv_packet *packet,
					 const struct kv_dpu_end *end, __u32 request_count, __u32 body_bytes,
					 struct kv_dpu_queue *own)
{
	struct kv_parked_batch *parked = kv_next_batch(end).parked;
	int overlaps = KV_PREPARE_OVERLAPS && !KV_SENDER_ONLY; /* kv_send() on another core may be faster than this */

	if (!overlaps) {
		kv_stage_end(own, KV_STAGE_PARSE);
		if (kv_prepare_batch(ctx, packet, parked))
			return -1;
		kv_stage_end(own, KV_STAGE_PREPARE);
	}
	send_request_queue_to_host(end, request_count, body_bytes);
	kv_stage_end(own, KV_STAGE_PARSE);
	/* The host works while the response is prepared: section 4.3 of the paper. */
	if (overlaps) {
		if (kv_prepare_batch(ctx, packet, parked))
			return -1;
		kv_stage_end(own, KV_STAGE_PREPARE);
	}
	end->queue->counters[KV_COUNTER_QP_REQUEST_BYTES] += request_count * sizeof(struct kv_request) + 1;
	return 0;
}

/* Store the response's addresses, taken from the frame. Return 0, or -1 if the frame is too short. */
static __always_inline int kv_prepare_batch(struct xdp_md *ctx, const struct kv_packet *packet,
					    struct kv_parked_batch *parked)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	__u32 shift = packet->header_offset;
	struct kv_packet_header *header;

	KV_OPAQUE(shift);
	shift &= KV_VLAN_BYTES;
	header = data + shift;
	/* The second comparison follows from the first one, but not for the verifier. */
	if ((void *)(header + 1) > data_end || data + KV_ETH_BYTES + KV_VLAN_BYTES > data_end)
		return -1;
	kv_prepare_reply(data, header, parked);
	return 0;
}

/* Copy the packet's body behind the records, for long keys and values. Return 0, or -1 on failure. */
static __always_inline int kv_copy_body(struct xdp_md *ctx, const struct kv_packet *packet, void *body,
					struct kv_dpu_queue *queue)
{
	__u64 body_bytes = kv_copy_bytes(packet->body_bytes, KV_OFFSET_MASK);

	if (bpf_xdp_load_bytes(ctx, packet->header_offset + KV_PACKET_HEADER_BYTES, body, body_bytes))
		return -1;
	queue->counters[KV_COUNTER_QP_REQUEST_BYTES] += body_bytes;
	return 0;
}

/* Count a received batch. */
static __always_inline void kv_count_batch(struct kv_dpu_queue *queue, const struct kv_packet *packet,
					   __u32 request_count, struct kv_dpu_queue *own)
{
	queue->counters[KV_COUNTER_FRAMES_RECEIVED]++;
	queue->counters[KV_COUNTER_REQUESTS_RECEIVED] += request_count;
	queue->counters[KV_COUNTER_BYTES_RECEIVED] += packet->frame_bytes;
	kv_stage_count(own, request_count);
}

#endif
