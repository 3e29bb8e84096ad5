/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * pass.h - the ways to the host besides the mapped queue pair (queue/dpu_end.h): whole frames to a host door, frames
 * with their records behind them, and batches through a BPF ring buffer.
 */
#ifndef KV_PASS_H
#define KV_PASS_H

#include "base/maps.h"
#include "door/drop.h"
#include "door/receive.h"

/* Mask of a sample's length less 1. */
#define KV_SAMPLE_MASK 0x1fffu
_Static_assert((KV_SAMPLE_RECORDS + KV_BATCH_MAX) * sizeof(struct kv_request) + KV_FRAME_MAX <= KV_SAMPLE_MASK + 1,
	       "a masked length is any batch's");

/* Returned by kv_pass_frame(): the frame has been copied into the ring, and may now carry an answer back. */
enum kv_pass_verdict { KV_PASSED_TO_RING = -1 };

/* Defined in kv_receive.c: bcc rewrites map calls in its main file only ("unknown opcode 8d" elsewhere). */
static __always_inline int kv_redirect(struct xdp_md *ctx, struct kv_dpu_queue *queue);
static __always_inline void *kv_ring_of(__u32 engine);

static __always_inline int kv_write_note(struct xdp_md *ctx, const struct kv_frame_note *note);

/* Pass the whole frame, unparsed, to the host's communication engine. Return a verdict or KV_PASSED_TO_RING. */
static __always_inline int kv_pass_frame(struct xdp_md *ctx, const struct kv_packet *packet,
					 const struct kv_dpu_end *end)
{
	struct kv_dpu_queue *queue = end->queue;
	__u64 frame_bytes = packet->frame_bytes;
	__u32 refusal;

	if (frame_bytes == 0 || frame_bytes > KV_FRAME_MAX)
		return kv_drop(queue, kv_drop_of_long(ctx, packet->header_offset));
	if (KV_HOST_FRAMES == KV_TRANSPORT_AF_XDP) {
		struct kv_frame_note note = { .frame_bytes = frame_bytes, .engine = packet->engine };

		if (KV_TRANSPORT == KV_TRANSPORT_AF_XDP && kv_write_note(ctx, &note))
			return XDP_ABORTED;
		return kv_redirect(ctx, queue);
	}
	refusal = kv_no_room(end, packet->source);
	if (refusal)
		return kv_drop(queue, refusal);
	frame_bytes = kv_copy_bytes(frame_bytes, KV_OFFSET_MASK);
	if (bpf_xdp_load_bytes(ctx, 0, kv_next_batch(end).records - KV_SAMPLE_RECORDS, frame_bytes))
		return XDP_ABORTED;
	kv_next_batch(end).parked->ip_destination = packet->source;
	queue->counters[KV_COUNTER_REDIRECTED]++;
	queue->counters[KV_COUNTER_QP_REQUEST_BYTES] += frame_bytes;
	send_request_queue_to_host(end, 0, frame_bytes);
	return KV_PASSED_TO_RING;
}

/*
 * Pass the frame to the host with its records behind it; it comes back as the response. A frame that cannot grow far
 * enough goes without records, and the host parses and counts it. Return the XDP verdict.
 */
static __always_inline int kv_pass_records(struct xdp_md *ctx, const struct kv_packet *packet,
					   const struct kv_dpu_end *end, __u32 request_count, __u32 body_bytes,
					   struct kv_dpu_queue *own)
{
	struct kv_request_batch batch = kv_next_batch(end);
	struct kv_dpu_queue *queue = end->queue;
	__u32 parked_offset = KV_ROUNDUP8(packet->frame_bytes);
	__u32 opaques_offset = parked_offset + sizeof(*batch.parked);
	__u64 opaque_bytes, record_bytes, records;
	struct kv_frame_note note = {
		.frame_bytes = packet->frame_bytes,
		.engine = packet->engine,
		.count = request_count,
		.has_body = body_bytes != 0,
		.header_offset = packet->header_offset,
	};

	kv_stage_end(own, KV_STAGE_PARSE);
	if (kv_prepare_batch(ctx, packet, batch.parked))
		return XDP_ABORTED;
	kv_stage_end(own, KV_STAGE_PREPARE);
	/* Derive both lengths from the bounded number of records: clang would merge two comparisons into one. */
	records = kv_copy_bytes(request_count, KV_BATCH_MAX - 1);
	opaque_bytes = kv_copy_bytes(KV_OPAQUE_BYTES(request_count), KV_OPAQUE_BYTES(KV_BATCH_MAX) - 1);
	record_bytes = records * sizeof(struct kv_request);
	KV_OPAQUE(record_bytes);
	if (kv_set_length(ctx, opaques_offset + opaque_bytes + record_bytes) == 0) {
		if (bpf_xdp_store_bytes(ctx, parked_offset, batch.parked, sizeof(*batch.parked)) ||
		    bpf_xdp_store_bytes(ctx, opaques_offset, batch.opaques, opaque_bytes) ||
		    bpf_xdp_store_bytes(ctx, opaques_offset + opaque_bytes, batch.records, record_bytes))
			return XDP_ABORTED;
		note.records_offset = parked_offset;
		kv_count_batch(queue, packet, request_count, own);
		queue->counters[KV_COUNTER_QP_REQUEST_BYTES] += record_bytes + 1;
		queue->counters[KV_COUNTER_QP_REQUEST_BYTES] += body_bytes;
	}
	if (kv_write_note(ctx, &note))
		return XDP_ABORTED;
	return kv_redirect(ctx, queue);
}

/* Copy the next batch into the engine's ring buffer. Return 0, or another number if it was not taken. */
static __always_inline int kv_pass_batch(const struct kv_packet *packet, const struct kv_dpu_end *end,
					 __u32 request_count, __u32 body_bytes)
{
	struct kv_sample_head *sample = (struct kv_sample_head *)(kv_next_batch(end).records - KV_SAMPLE_RECORDS);
	__u64 sample_bytes;
	void *ring;
	long status;

	*sample = (struct kv_sample_head){
		.count = request_count,
		.has_body = body_bytes != 0,
		.body_bytes = body_bytes,
		.pair = bpf_get_smp_processor_id(),
	};
	ring = kv_ring_of(packet->engine);
	if (!ring)
		return -1;
	sample_bytes = sizeof(*sample) + request_count * sizeof(struct kv_request) + body_bytes;
	sample_bytes = kv_copy_bytes(sample_bytes, KV_SAMPLE_MASK);
	status = bpf_ringbuf_output(ring, sample, sample_bytes, BPF_RB_NO_WAKEUP);
	if (status)
		end->queue->counters[KV_COUNTER_DROP_RINGBUF_FULL]++;
	return status != 0;
}

static __always_inline int kv_write_note(struct xdp_md *ctx, const struct kv_frame_note *note)
{
	struct kv_frame_note *in_front;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*note)))
		return -1;
	in_front = (void *)(long)ctx->data_meta;
	if ((void *)(in_front + 1) > (void *)(long)ctx->data)
		return -1;
	*in_front = *note;
	return 0;
}

#endif
