// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * kv_receive.c - the communication engine in XDP: the program that serves requests, and the programs that send parked
 * responses when no frame comes to carry them.
 *
 * Follow a request: kv_receive -> door/receive.h -> queue/dpu_end.h (to the host and back) -> door/respond.h -> wire.
 * The settings of base/maps.h choose, for each engine's port, between that, processing here (service/process.h), and
 * handing the frame to a host door.
 */
#include "base/maps.h"
#include "door/drop.h"
#include "door/pass.h"
#include "door/receive.h"
#include "door/reject.h"
#include "door/reply.h"
#include "queue/silence.h"
#if KV_PROCESS_HERE
#include "service/process.h"
#endif

static __always_inline int kv_look_up(__u32 *index, struct kv_dpu_end *end);
static __always_inline int kv_serve(struct xdp_md *ctx, struct kv_packet *packet, const struct kv_dpu_end *end,
				    struct kv_dpu_queue *own);
static __always_inline int kv_serve_at_door(struct xdp_md *ctx, const struct kv_packet *packet,
					    const struct kv_dpu_end *end, struct kv_dpu_queue *own);
static __always_inline int kv_serve_here(struct xdp_md *ctx, const struct kv_packet *packet,
					 const struct kv_dpu_end *end, struct kv_dpu_queue *own);
static __always_inline int kv_serve_by_socket(struct xdp_md *ctx, const struct kv_packet *packet,
					      const struct kv_dpu_end *end, struct kv_dpu_queue *own);
static __always_inline int kv_serve_by_queue(struct xdp_md *ctx, const struct kv_packet *packet,
					     const struct kv_dpu_end *end, struct kv_dpu_queue *own);
static __always_inline int kv_serve_without_engine(struct xdp_md *ctx, const struct kv_dpu_end *end);
static __always_inline int kv_answer_here(struct xdp_md *ctx, const struct kv_packet *packet,
					  const struct kv_dpu_end *end, __u32 request_count, struct kv_dpu_queue *own);
static __always_inline int kv_answer_something(struct xdp_md *ctx, __u32 engine, const struct kv_dpu_end *end,
					       struct kv_dpu_queue *own);
static __always_inline int kv_drop_without_queue_pair(void);
static __always_inline int kv_answer_oldest(struct xdp_md *ctx, __u32 engine, const struct kv_dpu_end *end,
					    struct kv_dpu_queue *own);
static __always_inline void kv_be_slower(struct kv_dpu_queue *own);

/* XDP entry point: serve a frame, or leave it to the kernel's stack. */
int kv_receive(struct xdp_md *ctx)
{
	struct kv_packet packet = {};
	struct kv_dpu_queue *own;
	struct kv_dpu_end end;
	__u32 cpu = bpf_get_smp_processor_id();
	__u32 index = cpu;
	int verdict;

	if (cpu >= KV_CPUS) { /* possible only after a core was added at run time */
		verdict = kv_find_engine(ctx, &packet);
		return verdict == KV_PARSE_PASS ? XDP_PASS : kv_drop_without_queue_pair();
	}
	own = (struct kv_dpu_queue *)kv_dpu_queues.lookup(&index);
	if (!own)
		return XDP_ABORTED;
	kv_stage_start(own);
	if (KV_SLOWER_PERCENT)
		own->start_ns = bpf_ktime_get_ns();
	if (kv_find_engine(ctx, &packet) == KV_PARSE_PASS) {
		own->counters[KV_COUNTER_PASSED]++;
		return XDP_PASS;
	}
	index += KV_WITH_SETTING(packet.engine, "*=", KV_CPUS);
	if (!kv_look_up(&index, &end))
		return XDP_ABORTED;
	return kv_serve(ctx, &packet, &end, own);
}

/*
 * Serve a frame for one of our ports: the engine and the settings choose one of four ways, and a fifth if the engine is
 * on the host and silent. Return the XDP verdict.
 */
static __always_inline int kv_serve(struct xdp_md *ctx, struct kv_packet *packet, const struct kv_dpu_end *end,
				    struct kv_dpu_queue *own)
{
	int verdict;

	/* Hide whether there is a VLAN tag: the verifier would walk the program once with it and once without. */
	packet->header_offset = KV_UNKNOWN(end->queue, packet->header_offset) & KV_VLAN_BYTES;
	if (packet->engine >= KV_DPU_ENGINES) {
		if (kv_engine_is_silent(packet->engine, end->queue))
			return kv_serve_without_engine(ctx, end);
		return kv_serve_at_door(ctx, packet, end, own);
	}
	verdict = kv_check_headers(ctx, packet);
	if (verdict != KV_PARSE_OURS)
		return kv_drop(end->queue, verdict);
	kv_stage_end(own, KV_STAGE_RECEIVE);
	if (KV_PROCESS_HERE)
		return kv_serve_here(ctx, packet, end, own);
	if (kv_engine_is_silent(packet->engine, end->queue))
		return kv_serve_without_engine(ctx, end);
	if (KV_TRANSPORT == KV_TRANSPORT_AF_XDP)
		return kv_serve_by_socket(ctx, packet, end, own);
	return kv_serve_by_queue(ctx, packet, end, own);
}

/* Pass the whole frame, unparsed, to a host door. */
static __always_inline int kv_serve_at_door(struct xdp_md *ctx, const struct kv_packet *packet,
					    const struct kv_dpu_end *end, struct kv_dpu_queue *own)
{
	int verdict = kv_pass_frame(ctx, packet, end);

	return verdict == KV_PASSED_TO_RING ? kv_answer_something(ctx, packet->engine, end, own) : verdict;
}

/* Process the batch in this program and answer it in its own frame. */
static __always_inline int kv_serve_here(struct xdp_md *ctx, const struct kv_packet *packet,
					 const struct kv_dpu_end *end, struct kv_dpu_queue *own)
{
	__u32 body_bytes;
	int count = kv_take_requests(ctx, packet, end, &body_bytes);

	if (count <= 0)
		return kv_drop(end->queue, -count);
	kv_count_batch(end->queue, packet, count, own);
	return kv_answer_here(ctx, packet, end, count, own);
}

/* Pass the frame, with its records behind it, to the engine through an AF_XDP socket. */
static __always_inline int kv_serve_by_socket(struct xdp_md *ctx, const struct kv_packet *packet,
					      const struct kv_dpu_end *end, struct kv_dpu_queue *own)
{
	__u32 body_bytes;
	int count = kv_take_requests(ctx, packet, end, &body_bytes);

	if (count <= 0)
		return kv_drop(end->queue, -count);
	kv_be_slower(own);
	return kv_pass_records(ctx, packet, end, count, body_bytes, own);
}

/* Hand the batch to the engine through the queue pair or a BPF ring buffer, and use the frame for any response. */
static __always_inline int kv_serve_by_queue(struct xdp_md *ctx, const struct kv_packet *packet,
					     const struct kv_dpu_end *end, struct kv_dpu_queue *own)
{
	__u32 body_bytes;
	int count;

	count = kv_take_requests(ctx, packet, end, &body_bytes);
	if (count <= 0)
		return kv_drop(end->queue, -count);
	kv_count_batch(end->queue, packet, count, own);
	if (KV_TRANSPORT == KV_TRANSPORT_RINGBUF && kv_pass_batch(packet, end, count, body_bytes))
		return XDP_DROP;
	if (kv_send_batch(ctx, packet, end, count, body_bytes, own))
		return XDP_ABORTED;
	return kv_answer_something(ctx, packet->engine, end, own);
}

/*
 * Have the frame rejected or pass it on: no engine would process it. The kernel empties an array of programs when no
 * process has it any more; so for a server that was killed the tail call fails, and the kernel's stack refuses the
 * frame. Return the XDP verdict.
 */
static __always_inline int kv_serve_without_engine(struct xdp_md *ctx, const struct kv_dpu_end *end)
{
	if (KV_WHEN_SILENT == KV_SILENT_REJECT)
		kv_programs.call(ctx, KV_PROGRAM_REJECT);
	end->queue->counters[KV_COUNTER_PASSED_NO_ENGINE]++;
	return XDP_PASS;
}

/*
 * Tail call of kv_receive for a frame whose engine is silent: answer it with rejections. It is a program of its own so
 * that kv_receive stays short for the verifier.
 */
int kv_reject(struct xdp_md *ctx)
{
	struct kv_packet packet = {};
	struct kv_dpu_queue *own;
	struct kv_dpu_end end;
	__u32 index = bpf_get_smp_processor_id();
	int verdict;

	own = (struct kv_dpu_queue *)kv_dpu_queues.lookup(&index);
	if (!own)
		return XDP_ABORTED;
	if (kv_find_engine(ctx, &packet) == KV_PARSE_PASS)
		return XDP_ABORTED;
	index += KV_WITH_SETTING(packet.engine, "*=", KV_CPUS);
	if (!kv_look_up(&index, &end))
		return XDP_ABORTED;
	packet.header_offset = KV_UNKNOWN(end.queue, packet.header_offset) & KV_VLAN_BYTES;
	verdict = kv_check_headers(ctx, &packet); /* frames for a host door come unchecked */
	if (verdict != KV_PARSE_OURS)
		return kv_drop(end.queue, verdict);
	return kv_answer_rejected(ctx, &packet, end.queue, own);
}

/* Process a batch and turn the frame into its response. Only this core uses the queue pair, at both of its ends. */
static __always_inline int kv_answer_here(struct xdp_md *ctx, const struct kv_packet *packet,
					  const struct kv_dpu_end *end, __u32 request_count, struct kv_dpu_queue *own)
{
#if KV_PROCESS_HERE
	struct kv_dpu_queue *queue = end->queue;
	struct kv_parked_batch *parked = kv_next_batch(end).parked;
	int drop, verdict;

	kv_stage_end(own, KV_STAGE_PARSE);
	drop = kv_process_batch_here(ctx, packet->engine, request_count, end);
	kv_stage_end(own, KV_STAGE_PROCESS);
	if (drop > 0)
		return kv_drop(queue, drop);
	if (kv_prepare_batch(ctx, packet, parked))
		return XDP_ABORTED;
	verdict = kv_write_reply(ctx, end, queue->published, queue->records_taken);
	kv_stage_end(own, KV_STAGE_PREPARE);
	kv_be_slower(own);
	if (verdict == KV_TAIL_REFUSED) { /* park the finished batch: the sender's frames can grow */
		queue->records_taken += request_count + parked->body_records;
		queue->published++;
		KV_PUBLISH_BARRIER();
		KV_WRITE_ONCE(end->pair->response_control.published, queue->published);
		return XDP_DROP;
	}
	if (verdict == XDP_TX)
		queue->counters[KV_COUNTER_RESPONSES_WAITED]++;
	return verdict;
#else
	return XDP_ABORTED;
#endif
}

/*
 * Turn the current frame into the oldest finished response, if there is one. With more batches parked than the depth
 * allows, wait for it first, unless the engine needs this core to finish it. Return the XDP verdict.
 */
static __always_inline int kv_answer_something(struct xdp_md *ctx, __u32 engine, const struct kv_dpu_end *end,
					       struct kv_dpu_queue *own)
{
	struct kv_queue_pair *pair = end->pair;
	struct kv_dpu_queue *queue = end->queue;
	__u32 in_flight = kv_batches_in_use(queue);
	__u32 depth = kv_depth_now(queue, own);

	kv_be_slower(own);
	if (KV_SENDER_ONLY)
		return XDP_DROP;
	kv_drain(pair, queue, own);
	if (KV_READ_ONCE(queue->flushing))
		return XDP_DROP;
	if (kv_oldest_is_finished(pair, queue))
		return kv_answer_oldest(ctx, engine, end, own);
	if (in_flight <= depth || pair->response_control.engine_cpu == bpf_get_smp_processor_id())
		return XDP_DROP;
	own->waiting_engine = engine;
	kv_programs.call(ctx, KV_PROGRAM_WAIT);
	return XDP_DROP; /* the tail call failed: the batch stays parked for the sender */
}

/*
 * Tail call of kv_receive for a frame that waits for its response. Inside kv_receive the verifier would walk the
 * thousands of turns of the wait once for every path that leads there, and give up ("BPF program is too large").
 */
int kv_wait(struct xdp_md *ctx)
{
	struct kv_dpu_queue *own;
	struct kv_dpu_end end;
	__u32 index = bpf_get_smp_processor_id();
	int is_finished;

	own = (struct kv_dpu_queue *)kv_dpu_queues.lookup(&index);
	if (!own)
		return XDP_ABORTED;
	index += KV_WITH_SETTING(own->waiting_engine, "*=", KV_CPUS);
	if (!kv_look_up(&index, &end))
		return XDP_ABORTED;
	is_finished = kv_wait_for_oldest(end.pair, end.queue);
	if (KV_SLOWER_PERCENT)
		own->start_ns = bpf_ktime_get_ns();
	kv_stage_end(own, KV_STAGE_WAIT);
	if (!is_finished)
		return XDP_DROP;
	return kv_answer_oldest(ctx, own->waiting_engine, &end, own);
}

/* Turn the frame into the oldest finished response and count it. Return the XDP verdict. */
static __always_inline int kv_answer_oldest(struct xdp_md *ctx, __u32 engine, const struct kv_dpu_end *end,
					    struct kv_dpu_queue *own)
{
	__u32 in_flight = kv_batches_in_use(end->queue);
	int verdict = kv_reply(ctx, end, engine);

	kv_stage_end(own, KV_STAGE_PREPARE);
	kv_be_slower(own);
	if (verdict == XDP_TX)
		end->queue->counters[in_flight == 1 ? KV_COUNTER_RESPONSES_WAITED : KV_COUNTER_RESPONSES_CARRIED]++;
	return verdict;
}

/* ---- The sender's programs ---- */

/*
 * Sender entry point (BPF_PROG_RUN, on the core that owns the queue pair): build the oldest finished response in the
 * buffer, whose first four bytes are the queue pair's index. Return XDP_TX to have it sent, XDP_DROP for nothing to
 * send.
 */
int kv_flush(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct kv_dpu_queue *queue, *own;
	struct kv_dpu_end end;
	__u32 index, core, parked_batches;
	int is_found, verdict = XDP_DROP;

	if (data + sizeof(index) > data_end)
		return XDP_ABORTED;
	index = *(__u32 *)data;
	is_found = kv_look_up(&index, &end);
	core = index % KV_CPUS;
	own = (struct kv_dpu_queue *)kv_dpu_queues.lookup(&core);
	if (!is_found || !own)
		return XDP_ABORTED;
	queue = end.queue;
	/* Kernels before 6.3 run this with bottom halves on: the flag makes an interrupting kv_receive park only. */
	KV_WRITE_ONCE(queue->flushing, 1);
	parked_batches = kv_batches_in_use(queue);
	if (parked_batches && kv_oldest_is_finished(end.pair, queue)) {
		if (!own->has_time) /* if it has, kv_drain() asked for this flush */
			kv_depth_met_flush(queue, parked_batches);
		verdict = kv_reply(ctx, &end, KV_WITH_SETTING(index, "/=", KV_CPUS));
		if (verdict == XDP_TX)
			queue->counters[KV_COUNTER_RESPONSES_FLUSHED]++;
	}
	KV_PUBLISH_BARRIER();
	KV_WRITE_ONCE(queue->flushing, 0);
	return verdict;
}

/*
 * Entry point of a sender that sends all responses, in one long call (BPF_PROG_RUN with live frames, on any one core):
 * build the next queue pair's oldest finished response, or return XDP_DROP. kv_receive only parks in this mode, so that
 * each side of the private queue has one writer.
 */
int kv_send(struct xdp_md *ctx)
{
	__u32 index, zero = 0;
	struct kv_dpu_end end;
	__u32 *turn;
	int verdict;

	turn = kv_sender_turn.lookup(&zero);
	if (!turn)
		return XDP_ABORTED;
	index = *turn < KV_ENGINES * KV_CPUS ? *turn : 0;
	*turn = index + 1;
	if (!kv_look_up(&index, &end))
		return XDP_ABORTED;
	if (!kv_batches_in_use(end.queue) || !kv_oldest_is_finished(end.pair, end.queue))
		return XDP_DROP;
	verdict = kv_reply(ctx, &end, KV_WITH_SETTING(index, "/=", KV_CPUS));
	if (verdict == XDP_TX)
		end.queue->counters[KV_COUNTER_RESPONSES_FLUSHED]++;
	return verdict;
}

/* ---- Helpers ---- */

/* Look up the DPU's end of the queue pair of this index. Return 0 if there is none. */
static __always_inline int kv_look_up(__u32 *index, struct kv_dpu_end *end)
{
	end->queue = (struct kv_dpu_queue *)kv_dpu_queues.lookup(index);
	end->pair = (struct kv_queue_pair *)kv_queue_pairs.lookup(index);
	end->parked = (struct kv_parked *)kv_parked.lookup(index);
	return end->queue && end->pair && end->parked;
}

/*
 * Drop a frame on a core without counters of its own: count it on CPU 0's, in a counter that CPU 0 itself does not use.
 */
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

/* Emulate a slower core: wait for KV_SLOWER_PERCENT of the time since own->start_ns. */
static __always_inline void kv_be_slower(struct kv_dpu_queue *own)
{
	__u64 now_ns, until_ns;
	int turn;

	if (!KV_SLOWER_PERCENT)
		return;
	now_ns = bpf_ktime_get_ns();
	until_ns = now_ns + (now_ns - own->start_ns) * KV_SLOWER_PERCENT / 100;
	KV_KEEP_LOOP
	for (turn = 0; turn < KV_SLOWER_TURNS && now_ns < until_ns; turn++)
		now_ns = bpf_ktime_get_ns();
	own->start_ns = now_ns;
	if (own->ended_ns)
		own->ended_ns = now_ns;
}

/* ---- Map calls for headers: bcc rewrites them in its main file only ---- */

/* Redirect the frame to the AF_XDP socket of its receive queue. Return the verdict. */
static __always_inline int kv_redirect(struct xdp_md *ctx, struct kv_dpu_queue *queue)
{
#if KV_TRANSPORT == KV_TRANSPORT_AF_XDP || KV_HOST_FRAMES == KV_TRANSPORT_AF_XDP
	int verdict = kv_sockets.redirect_map(ctx->rx_queue_index, XDP_DROP);

	queue->counters[verdict == XDP_REDIRECT ? KV_COUNTER_REDIRECTED : KV_COUNTER_DROP_NO_SOCKET]++;
	return verdict;
#else
	return XDP_ABORTED;
#endif
}

/* Return an engine's BPF ring buffer, or NULL. */
static __always_inline void *kv_ring_of(__u32 engine)
{
#if KV_TRANSPORT == KV_TRANSPORT_RINGBUF
	return kv_request_rings.lookup(&engine);
#else
	return NULL;
#endif
}

/* Return an engine's heartbeat, or NULL. */
static __always_inline const struct kv_heartbeat *kv_heartbeat_of(__u32 engine)
{
	return kv_heartbeats.lookup(&engine);
}

#if KV_PROCESS_HERE
/* The store's tables, see store/dpu_store.h. */
static __always_inline void *kv_line_at(__u32 index)
{
	return kv_dpu_lines.lookup(&index);
}

static __always_inline void *kv_segment_at(__u32 index)
{
	return kv_dpu_segments.lookup(&index);
}

static __always_inline void *kv_short_line_at(__u32 index)
{
	return kv_dpu_short_lines.lookup(&index);
}

static __always_inline void *kv_store_at(__u32 index)
{
	return kv_dpu_stores.lookup(&index);
}

static __always_inline void *kv_partition_table_at(__u32 index)
{
	return kv_partitions.lookup(&index);
}
#endif
