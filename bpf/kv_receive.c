// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * kv_receive.c - the communication engine: the XDP program that serves requests, and the sender's program that lets out
 * responses which no frame came to carry.
 *
 * Follow a request: kv_receive -> parse.h -> queue.h (to the host and back) -> reply.h -> wire.
 */
#include "maps.h"
#include "parse.h"
#include "queue.h"
#include "reply.h"

static __always_inline int kv_receive_batch(struct xdp_md *ctx, const struct kv_packet *packet,
					    struct kv_queue_pair *pair, struct kv_dpu_queue *queue);
static __always_inline int kv_answer_something(struct xdp_md *ctx, struct kv_queue_pair *pair,
					       struct kv_dpu_queue *queue);
static __always_inline int kv_drop_without_queue_pair(void);

/* XDP entry point: serve a frame, or leave it to the kernel's stack. */
int kv_receive(struct xdp_md *ctx)
{
	struct kv_packet packet = {};
	struct kv_queue_pair *pair;
	struct kv_dpu_queue *queue;
	__u32 cpu = bpf_get_smp_processor_id();
	__u32 index = cpu;
	int verdict;

	verdict = kv_parse_headers(ctx, &packet);
	if (cpu >= KV_CPUS) /* possible only after a core was added at run time */
		return verdict == KV_PARSE_PASS ? XDP_PASS : kv_drop_without_queue_pair();
	if (verdict == KV_PARSE_OURS)
		index += packet.engine * KV_CPUS;
	queue = (struct kv_dpu_queue *)kv_dpu_queues.lookup(&index);
	pair = (struct kv_queue_pair *)kv_queue_pairs.lookup(&index);
	if (!queue || !pair)
		return XDP_ABORTED;
	if (verdict == KV_PARSE_OURS)
		return kv_receive_batch(ctx, &packet, pair, queue);
	if (verdict == KV_PARSE_PASS) {
		queue->counters[KV_COUNTER_PASSED]++;
		return XDP_PASS;
	}
	if (verdict >= 0 && verdict < KV_COUNTERS)
		queue->counters[verdict]++;
	return XDP_DROP;
}

/* Such a core has no counters of its own either: it counts among the first core's, where nobody else counts this. */
static __always_inline int kv_drop_without_queue_pair(void)
{
	struct kv_dpu_queue *queue;
	__u32 index = 0;

	queue = (struct kv_dpu_queue *)kv_dpu_queues.lookup(&index);
	if (!queue)
		return XDP_ABORTED;
	__sync_fetch_and_add(&queue->counters[KV_COUNTER_DROP_NO_QUEUE_PAIR], 1);
	return XDP_DROP;
}

/*
 * Sender entry point (BPF_PROG_RUN, on the core that owns the queue pair): build the oldest finished response in the
 * buffer. The first four bytes name the queue pair. XDP_TX = send the buffer; XDP_DROP = nothing to send.
 */
int kv_flush(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct kv_queue_pair *pair;
	struct kv_dpu_queue *queue;
	__u32 index, parked_batches;
	int verdict = XDP_DROP;

	if (data + sizeof(index) > data_end)
		return XDP_ABORTED;
	index = *(__u32 *)data;
	queue = (struct kv_dpu_queue *)kv_dpu_queues.lookup(&index);
	pair = (struct kv_queue_pair *)kv_queue_pairs.lookup(&index);
	if (!queue || !pair)
		return XDP_ABORTED;
	/* Kernels before 6.3 run us with bottom halves on: kv_receive, which may interrupt here, then only parks. */
	KV_WRITE_ONCE(queue->flushing, 1);
	parked_batches = kv_slots_in_use(queue);
	if (parked_batches && kv_oldest_is_finished(pair, queue)) {
		kv_depth_met_flush(queue, parked_batches);
		verdict = kv_reply_with_oldest(ctx, pair, queue);
		if (verdict == XDP_TX)
			queue->counters[KV_COUNTER_RESPONSES_FLUSHED]++;
	}
	KV_PUBLISH_BARRIER();
	KV_WRITE_ONCE(queue->flushing, 0);
	return verdict;
}

/* A well-formed packet of ours: into the request queue, and some finished response out with its frame. */
static __always_inline int kv_receive_batch(struct xdp_md *ctx, const struct kv_packet *packet,
					    struct kv_queue_pair *pair, struct kv_dpu_queue *queue)
{
	__u32 slot = queue->published & KV_SLOT_MASK;
	struct kv_packet_header *header;
	void *data, *data_end;
	__u32 has_payload = 0;
	__u32 shift;
	int count;

	if (!KV_READ_ONCE(pair->response_control.alive)) {
		queue->counters[KV_COUNTER_DROP_NO_ENGINE]++;
		return XDP_DROP;
	}
	if (kv_slots_in_use(queue) >= KV_SLOTS) {
		queue->counters[KV_COUNTER_DROP_QUEUE_FULL]++;
		return XDP_DROP;
	}
	count = kv_parse_requests(ctx, packet, queue, &pair->requests[slot], &queue->parked[slot], &has_payload);
	if (count <= 0) {
		count = -count & 0x3f;
		if (count < KV_COUNTERS)
			queue->counters[count]++;
		return XDP_DROP;
	}
	queue->counters[KV_COUNTER_QP_REQUEST_BYTES] += count * sizeof(struct kv_request) + 1;
	if (has_payload) {
		__u32 body_bytes = packet->body_bytes & KV_OFFSET_MASK;

		if (body_bytes == 0 || bpf_xdp_load_bytes(ctx, packet->header_offset + KV_PACKET_HEADER_BYTES,
							  pair->requests[slot].payload, body_bytes)) {
			queue->counters[KV_COUNTER_DROP_TRUNCATED]++;
			return XDP_DROP;
		}
		queue->counters[KV_COUNTER_QP_REQUEST_BYTES] += body_bytes;
	}
	send_request_queue_to_host(pair, queue, slot, count, has_payload);

	/* From here the host works, and we prepare: the paper's section 4.3. */
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	shift = packet->header_offset;
	KV_OPAQUE(shift);
	shift &= KV_VLAN_BYTES;
	header = data + shift;
	if ((void *)(header + 1) > data_end)
		return XDP_ABORTED;
	kv_prepare_reply(data, header, count, &queue->parked[slot]);
	queue->counters[KV_COUNTER_FRAMES_RECEIVED]++;
	queue->counters[KV_COUNTER_REQUESTS_RECEIVED] += count;
	queue->counters[KV_COUNTER_BYTES_RECEIVED] += packet->frame_bytes;
	return kv_answer_something(ctx, pair, queue);
}

/*
 * The frame at hand may carry one response: the oldest finished one. With more batches parked than the depth allows we
 * wait for it, unless the engine needs this very core to finish it.
 */
static __always_inline int kv_answer_something(struct xdp_md *ctx, struct kv_queue_pair *pair,
					       struct kv_dpu_queue *queue)
{
	__u32 in_flight = kv_slots_in_use(queue);
	__u32 depth = kv_depth_now(queue);
	int verdict;

	if (KV_READ_ONCE(queue->flushing))
		return XDP_DROP;
	if (!kv_oldest_is_finished(pair, queue)) {
		if (in_flight <= depth || pair->response_control.engine_cpu == bpf_get_smp_processor_id())
			return XDP_DROP;
		if (!kv_wait_for_oldest(pair, queue))
			return XDP_DROP;
	}
	verdict = kv_reply_with_oldest(ctx, pair, queue);
	if (verdict == XDP_TX)
		queue->counters[in_flight == 1 ? KV_COUNTER_RESPONSES_WAITED : KV_COUNTER_RESPONSES_CARRIED]++;
	return verdict;
}
