/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * respond.h - step 4, respond: turn the current frame into the oldest finished response.
 */
#ifndef KV_RESPOND_H
#define KV_RESPOND_H

#include "door/drop.h"
#include "net/reply_headers.h"
#include "protocol/mica2.h"
#include "queue/dpu_end.h"

enum kv_reply_verdict { KV_TAIL_REFUSED = -1 };

static __always_inline struct kv_finished_batch kv_finished(const struct kv_dpu_end *end, __u32 number,
							    __u32 first_record);

/*
 * Turn the frame into the response to batch `number`, which begins at request record `first_record`. Return the XDP
 * verdict: XDP_TX, or XDP_DROP with the reason counted. If the frame cannot grow to the response's length, return
 * KV_TAIL_REFUSED; the response stays parked.
 */
static __always_inline int kv_write_reply(struct xdp_md *ctx, const struct kv_dpu_end *end, __u32 number,
					  __u32 first_record)
{
	struct kv_finished_batch batch = kv_finished(end, number, first_record);
	__u32 wire_bytes = KV_READ_ONCE(end->pair->answers[number & KV_BATCH_MASK].wire_bytes);
	__u32 shift = batch.parked->has_vlan_tag ? KV_VLAN_BYTES : 0;
	struct kv_dpu_queue *queue = end->queue;
	__u32 frame_bytes, request_count, written_bytes;
	void *data, *data_end;

	frame_bytes = shift + KV_PACKET_HEADER_BYTES + wire_bytes;
	if (frame_bytes > KV_FRAME_MAX)
		goto bad_response;
	if (kv_set_reply_length(ctx, frame_bytes)) {
		queue->counters[KV_COUNTER_TAIL_REFUSED]++;
		return KV_TAIL_REFUSED;
	}

	KV_OPAQUE(shift);
	shift &= KV_VLAN_BYTES;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	if (data + KV_VLAN_BYTES + KV_PACKET_HEADER_BYTES > data_end)
		goto bad_response;
	kv_write_packet_header(data, data + shift, batch.parked, wire_bytes);
	written_bytes = kv_write_responses(ctx, shift + KV_PACKET_HEADER_BYTES, queue, &batch);
	if (written_bytes == 0 || written_bytes != wire_bytes)
		goto bad_response;

	request_count = batch.parked->count;
	queue->counters[KV_COUNTER_FRAMES_SENT]++;
	queue->counters[KV_COUNTER_RESPONSES_SENT] += request_count;
	queue->counters[KV_COUNTER_BYTES_SENT] += frame_bytes;
	queue->counters[KV_COUNTER_QP_RESPONSE_BYTES] += request_count * sizeof(struct kv_response) + 1;
	return XDP_TX;

bad_response:
	return kv_drop(queue, KV_COUNTER_DROP_BAD_RESPONSE);
}

/* Return the parts of a finished batch. Where its responses are is the engine's word, and masked. */
static __always_inline struct kv_finished_batch kv_finished(const struct kv_dpu_end *end, __u32 number,
							    __u32 first_record)
{
	__u64 request = (first_record & KV_RECORD_MASK) + KV_SAMPLE_RECORDS;
	__u64 response = KV_READ_ONCE(end->pair->answers[number & KV_BATCH_MASK].first_record) & KV_RECORD_MASK;
	const struct kv_parked_batch *parked = &end->parked->batches[number & KV_BATCH_MASK];
	const struct kv_response *responses = &end->pair->responses[response];

	return (struct kv_finished_batch){
		.parked = parked,
		.requests = &end->pair->requests[request],
		.opaques = &end->parked->opaques[request],
		.responses = responses,
		.values = (const __u8 *)(responses + kv_records_in_front(parked->count)),
	};
}

/* Turn the frame into the oldest finished response and free what its batch takes. Return the XDP verdict. */
static __always_inline int kv_reply_with_oldest(struct xdp_md *ctx, const struct kv_dpu_end *end)
{
	int verdict = kv_write_reply(ctx, end, end->queue->answered, end->queue->records_freed);

	if (verdict == KV_TAIL_REFUSED) { /* the sender will send it: its frames can grow */
		end->queue->refused = end->queue->answered + 1;
		return XDP_DROP;
	}
	kv_release_oldest(end);
	return verdict;
}

#endif
