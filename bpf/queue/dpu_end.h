/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * dpu_end.h - the DPU's end of the queue pair (the host's end is dpukv_xdp/_core/queue/host_end.h).
 *
 * A queue pair belongs to one core, and bottom halves are off while a program runs: there is one producer of requests,
 * one consumer of responses and no lock. Every number that the host writes is checked before it is used.
 */
#ifndef KV_DPU_END_H
#define KV_DPU_END_H

#include "abi/dpu_queue.h"
#include "abi/queue_pair.h"
#include "base/side.h"

#define KV_BATCH_MASK (KV_BATCHES - 1)
#define KV_RECORD_MASK (KV_RECORDS - 1)
_Static_assert((KV_BATCHES & KV_BATCH_MASK) == 0 && (KV_RECORDS & KV_RECORD_MASK) == 0, "entries are picked by a mask");

/* The DPU's end of one queue pair. */
struct kv_dpu_end {
	struct kv_queue_pair *pair; /* shared with the engine */
	struct kv_dpu_queue *queue; /* private */
	struct kv_parked *parked;   /* private */
};

/* Where the parts of one batch of requests are. */
struct kv_request_batch {
	struct kv_request *records;
	__u32 *opaques;
	struct kv_parked_batch *parked;
};

/* Return the batches that are parked: published and not yet answered. */
static __always_inline __u32 kv_batches_in_use(const struct kv_dpu_queue *queue)
{
	return queue->published - queue->answered;
}

/*
 * Return whether the queue pair has no room for another batch of any size. With nothing in flight the next batch begins
 * at the start of the ring: a core that is not busy stays in a few cache lines.
 */
static __always_inline int kv_queue_is_full(struct kv_dpu_queue *queue)
{
	__u32 batches = kv_batches_in_use(queue);

	if (batches == 0) {
		queue->records_taken = 0;
		queue->records_freed = 0;
	}
	return batches >= KV_BATCHES || queue->records_taken - queue->records_freed > KV_RECORDS - KV_BATCH_RECORDS_MAX;
}

/* Return the place of the next batch of requests, behind the one published last. */
static __always_inline struct kv_request_batch kv_next_batch(const struct kv_dpu_end *end)
{
	__u64 record = end->queue->records_taken & KV_RECORD_MASK;

	KV_OPAQUE(record);
	record &= KV_RECORD_MASK;
	record += KV_SAMPLE_RECORDS;
	return (struct kv_request_batch){
		.records = &end->pair->requests[record],
		.opaques = &end->parked->opaques[record],
		.parked = &end->parked->batches[end->queue->published & KV_BATCH_MASK],
	};
}

/*
 * Return how many records are in front of a batch's body, or of its responses' long values. A batch that is processed
 * here keeps a distance that clang knows: another pointer would be too much for the stack.
 */
static __always_inline __u64 kv_records_in_front(__u32 request_count)
{
	return KV_PROCESS_HERE ? KV_BATCH_MAX : kv_copy_bytes(request_count, KV_BATCH_MAX - 1);
}

/* For comparison only: hand each request over separately; the host waits for each one. */
static __always_inline void kv_hand_over_each(struct kv_queue_pair *pair, struct kv_dpu_queue *queue,
					      __u32 request_count)
{
	__u32 ready = KV_UNKNOWN_ZERO(queue);
	__u32 batch = queue->published - 1;
	int i;

	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX; i++) {
		if (ready >= request_count)
			break;
		ready++;
		KV_PUBLISH_BARRIER();
		KV_WRITE_ONCE(pair->request_control.ready, KV_READY(batch, ready));
	}
}

/*
 * The paper's first call: hand the batch at kv_next_batch() to the host with one store. The caller has filled in the
 * records and opaques, and `body_bytes` behind the records, or 0.
 */
static __always_inline void send_request_queue_to_host(const struct kv_dpu_end *end, __u32 request_count,
						       __u32 body_bytes)
{
	struct kv_dpu_queue *queue = end->queue;
	__u32 number = queue->published & KV_BATCH_MASK;
	__u32 body_records = KV_BODY_RECORDS(body_bytes) + KV_SAMPLE_RECORDS;

	end->pair->batches[number] = (struct kv_batch_entry){
		.count = request_count,
		.has_body = body_bytes != 0,
		.body_bytes = body_bytes,
		.first_record = queue->records_taken,
	};
	end->parked->batches[number].count = request_count;
	end->parked->batches[number].body_records = body_records;
	queue->records_taken += request_count + body_records;
	KV_PUBLISH_BARRIER();
	queue->published++;
	KV_WRITE_ONCE(end->pair->request_control.published, queue->published);
	if (KV_TRANSFER_PER_REQUEST)
		kv_hand_over_each(end->pair, queue, request_count);
}

/* Return the unanswered batches that were finished when the engine's counter was last read. */
static __always_inline __u32 kv_known_finished(const struct kv_dpu_queue *queue)
{
	__u32 finished = queue->finished - queue->answered;

	return finished <= kv_batches_in_use(queue) ? finished : 0;
}

/*
 * Return whether the oldest parked batch is finished; a counter out of range counts as "no". The engine writes the
 * counter for each batch, so each read may wait for its cache line: read it once for all batches finished by then.
 */
static __always_inline int kv_oldest_is_finished(struct kv_queue_pair *pair, struct kv_dpu_queue *queue)
{
	__u32 seen, finished;

	if (kv_known_finished(queue))
		return 1;
	seen = KV_READ_ACQUIRE(pair->response_control.published);
	finished = seen - queue->answered;
	if (finished == 0 || finished > kv_batches_in_use(queue))
		return 0;
	queue->finished = seen;
	return 1;
}

/*
 * Return whether the batch of this source has to give way: the queue pair is nearly full, and a batch picked at random
 * from those in flight is the same source's. So each source is refused in proportion to what it holds, without being
 * counted (CHOKe: Pan, Prabhakar, Psounis 2000); what is left is for others.
 */
static __always_inline int kv_source_gives_way(const struct kv_dpu_end *end, __u32 source)
{
	const struct kv_dpu_queue *queue = end->queue;
	__u32 batches = kv_batches_in_use(queue);
	__u64 picked;

	if (batches < KV_CROWDED_BATCHES && queue->records_taken - queue->records_freed < KV_CROWDED_RECORDS)
		return 0;
	picked = queue->answered + (__u32)((__u64)bpf_get_prandom_u32() * batches >> 32);
	return end->parked->batches[picked & KV_BATCH_MASK].ip_destination == source;
}

/*
 * Return whether no engine serves the queue pair of a host door. An engine with unread finished batches counts as
 * alive. XDP, whose engines are in another process, goes by their heartbeats: queue/silence.h.
 */
static __always_inline int kv_engine_is_gone(const struct kv_queue_pair *pair, const struct kv_dpu_queue *queue)
{
	return !kv_known_finished(queue) && !KV_READ_ONCE(pair->response_control.alive);
}

/* Return 0 if there is room for another batch of this source, else the drop counter that says why not. */
static __always_inline __u32 kv_no_room(const struct kv_dpu_end *end, __u32 source)
{
	if (kv_queue_is_full(end->queue))
		return KV_COUNTER_DROP_QUEUE_FULL;
	return kv_source_gives_way(end, source) ? KV_COUNTER_DROP_SOURCE_SHARE : 0;
}

/*
 * Poll until the oldest batch is finished. Return 0 if the time runs out. After KV_STALLED_WAITS time-outs in a row,
 * return 0 at once until the engine makes progress: a dead engine must not cost one wait per frame.
 */
static __always_inline int kv_wait_for_oldest(struct kv_queue_pair *pair, struct kv_dpu_queue *queue)
{
	__u32 answered = queue->answered;
	__u64 deadline_ns, turn;

	if (queue->stalled && queue->stalled_at != answered)
		queue->stalled = 0;
	if (queue->stalled >= KV_STALLED_WAITS)
		return 0;
	KV_KEEP_LOOP
	for (turn = 0; turn < KV_WAIT_TURNS; turn++) {
		if (KV_READ_ONCE(pair->response_control.published) != answered)
			goto changed;
	}
	deadline_ns = bpf_ktime_get_ns() + KV_WAIT_NS;
	KV_KEEP_LOOP
	for (turn = 0; turn < KV_WAIT_CLOCK_TURNS; turn++) {
		if (KV_READ_ONCE(pair->response_control.published) != answered)
			goto changed;
		if (bpf_ktime_get_ns() > deadline_ns)
			break;
	}
	queue->counters[KV_COUNTER_WAIT_TIMEOUTS]++;
	queue->stalled++;
	queue->stalled_at = answered;
	return 0;

changed: /* the verifier walks what is done then once, not in each turn */
	return kv_oldest_is_finished(pair, queue);
}

/*
 * Free what the oldest batch takes: its response has been taken. The records are freed first: where kv_send() runs on
 * another core, kv_queue_is_full() sets both numbers as soon as no batch is in use.
 */
static __always_inline void kv_release_oldest(const struct kv_dpu_end *end)
{
	struct kv_dpu_queue *queue = end->queue;
	const struct kv_parked_batch *oldest = &end->parked->batches[queue->answered & KV_BATCH_MASK];

	queue->records_freed += oldest->count + oldest->body_records;
	KV_PUBLISH_BARRIER();
	queue->answered++;
	KV_WRITE_ONCE(end->pair->request_control.answered, queue->answered);
}

/*
 * Tell the engine whether to wake the sender for all parked responses. Each frame brings a batch and carries one
 * response, so the frames alone never reduce what a pause of the engine, or a response that no frame can hold, has left
 * parked; nor what busier times have, once the core waits for each response.
 */
static __always_inline void kv_drain(struct kv_queue_pair *pair, struct kv_dpu_queue *queue,
				     const struct kv_dpu_queue *own)
{
	__u32 draining = kv_known_finished(queue) > KV_BACKLOG_MAX || queue->refused == queue->answered + 1;

	if (KV_DEPTH_MIN != KV_DEPTH_MAX && own->has_time && kv_batches_in_use(queue) > 1)
		draining = 1;
	if (queue->draining == draining)
		return;
	queue->draining = draining;
	KV_WRITE_ONCE(pair->request_control.drain, draining);
}

/*
 * Return how many batches may stay parked. The depth grows by one after a calm stretch. A flush means that no frame
 * came to carry a response. If it follows soon after another flush, the pipeline is too deep for this load: the depth
 * falls to the number of responses that frames would have carried, and growing beyond that takes ever longer. A rare
 * flush only marks a pause in a busy stream; with more batches parked than the depth allows, the engine was late.
 */
static __always_inline __u32 kv_depth_now(struct kv_dpu_queue *queue, const struct kv_dpu_queue *own)
{
	__u32 wanted = KV_CALM_FRAMES;

	if (KV_DEPTH_MIN == KV_DEPTH_MAX)
		return KV_DEPTH_MAX;
	if (own->has_time)
		return KV_DEPTH_MIN;
	if (queue->depth >= queue->ceiling && queue->calm_wanted > KV_CALM_FRAMES)
		wanted = queue->calm_wanted;
	queue->since_flush++;
	if (++queue->calm >= wanted && queue->depth < KV_DEPTH_MAX) {
		if (queue->depth > queue->ceiling) {
			queue->ceiling = queue->depth;
			queue->calm_wanted = KV_CALM_FRAMES;
		}
		queue->depth++;
		queue->calm = 0;
	}
	return queue->depth < KV_DEPTH_MIN ? KV_DEPTH_MIN : queue->depth;
}

/* Adapt the depth to a flush that found `parked_batches` parked. */
static __always_inline void kv_depth_met_flush(struct kv_dpu_queue *queue, __u32 parked_batches)
{
	__u32 since_flush = queue->since_flush;

	queue->since_flush = 0;
	if (since_flush == 0) /* still the same flush */
		return;
	if (since_flush >= KV_CALM_FLUSH_FRAMES && queue->calm >= KV_CALM_FLUSH_FRAMES) /* a rare flush */
		return;
	if (parked_batches > queue->depth)
		return;
	queue->calm = 0;
	queue->depth = parked_batches - 1;
	queue->ceiling = queue->depth;
	queue->calm_wanted = queue->calm_wanted < KV_CALM_FRAMES ? KV_CALM_FRAMES : queue->calm_wanted * 2;
	if (queue->calm_wanted > KV_CALM_FRAMES_MAX)
		queue->calm_wanted = KV_CALM_FRAMES_MAX;
}

#endif
