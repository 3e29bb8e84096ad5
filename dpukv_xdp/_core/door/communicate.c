// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * communicate.c - the communication engine on the host: steps 1, 2 and 4 of a request in a host core's loop.
 *
 * It is the same communication engine as in XDP, compiled from the same headers (bpf/door, net, protocol and queue) for
 * frames in memory. Like a communication core it has a queue pair of its own with every engine; when the engine runs on
 * the same core, the loop in host.c serves both ends one after the other. Frames come from a port: an AF_XDP socket,
 * mapped rings that XDP fills with whole frames, or what udp.c and dpdk.c have.
 */
#define KV_HOST_SIDE 1
#include "door/receive.h"
#include "door/respond.h"

#include <errno.h>
#include <stdlib.h>

#include "base/ticks.h"
#include "door/communicate.h"
#include "queue/host_end.h" /* the host's end: this file serves the rings of whole frames */

#define KV_BURST_FRAMES \
	16 /* frames received at once, so few that their records stay in the nearest caches until they are answered */
#define KV_STAGE_TURNS 16 /* one turn of 16 that have frames has its stages timed */
#define KV_RING_FRAMES 64 /* frames of one ring that are being served at once; the others wait in the ring */
#define KV_FRAME_RECORDS KV_VALUE_RECORDS(KV_FRAME_MAX) /* response records that an answer's room takes */

/*
 * One mapped ring of whole frames. Answers become ready in any order and are handed back in the order of the requests;
 * `end.processed` counts frames received.
 */
struct kv_frame_ring {
	struct kv_engine_pair end;
	uint8_t is_done[KV_RING_FRAMES]; /* by number % KV_RING_FRAMES */
};

struct kv_communicator_state {
	const struct kv_port *port;
	void *source; /* the port's source of frames */
	struct kv_side side;
	struct kv_frame_ring rings[KV_CPUS_MAX];
	struct kv_frame *held[KV_ENGINES_MAX];	/* [KV_BATCHES] for each engine: frames whose batches are with it */
	struct kv_frame ready[KV_BURST_FRAMES]; /* frames that are answers ready to be sent */
	uint32_t ready_count;
	uint32_t first_ring; /* ring that frames are taken from first */
	uint32_t cpu;
	uint32_t turns; /* turns with frames since the last one that was timed */
};

static const struct kv_port socket_port, ring_port;

static void kv_accept(struct kv_communicator *communicator, const struct kv_frame *frame);
static uint32_t kv_send_ready(struct kv_communicator *communicator);
static uint32_t kv_answer_engine(struct kv_communicator *communicator, uint32_t engine);
static void kv_time_turn(struct kv_communicator *communicator);
static void kv_wake_for_ring(struct kv_communicator *communicator, uint32_t index, uint64_t now_ticks);

struct kv_communicator *kv_communicator_create(uint32_t engines)
{
	struct kv_communicator *communicator;
	int has_memory;

	if (engines == 0 || engines > KV_ENGINES_MAX) {
		errno = EINVAL;
		return NULL;
	}
	communicator = calloc(1, sizeof(*communicator));
	if (!communicator)
		return NULL;
	communicator->engines = engines;
	communicator->frames_max = KV_BATCHES;
	communicator->state = calloc(1, sizeof(*communicator->state));
	communicator->pairs = aligned_alloc(64, engines * sizeof(*communicator->pairs));
	communicator->queues = calloc(engines, sizeof(*communicator->queues));
	communicator->parked = calloc(engines, sizeof(*communicator->parked));
	has_memory = communicator->state && communicator->pairs && communicator->queues && communicator->parked;
	for (uint32_t i = 0; has_memory && i < engines; i++) {
		communicator->state->held[i] = calloc(KV_BATCHES, sizeof(struct kv_frame));
		has_memory = communicator->state->held[i] != NULL;
	}
	if (!has_memory) {
		kv_communicator_destroy(communicator);
		errno = ENOMEM;
		return NULL;
	}
	memset(communicator->pairs, 0, engines * sizeof(*communicator->pairs));
	return communicator;
}

void kv_communicator_destroy(struct kv_communicator *communicator)
{
	if (!communicator)
		return;
	for (uint32_t i = 0; communicator->state && i < communicator->engines; i++)
		free(communicator->state->held[i]);
	free(communicator->parked);
	free(communicator->queues);
	free(communicator->pairs);
	free(communicator->state);
	free(communicator);
}

int kv_communicator_begin(struct kv_communicator *communicator, uint32_t cpu)
{
	struct kv_communicator_state *state = communicator->state;

	if (!!communicator->socket + !!communicator->rings + !!communicator->port != 1 ||
	    communicator->ring_count > KV_CPUS_MAX)
		return -EINVAL;
	state->port = communicator->port;
	state->source = communicator->source;
	if (communicator->socket) {
		state->port = &socket_port;
		state->source = communicator->socket;
	} else if (communicator->rings) {
		state->port = &ring_port;
		state->source = communicator;
	}
	state->cpu = cpu;
	state->side = (struct kv_side){
		.engines = communicator->engines,
		.first_port = communicator->first_port,
		.address = communicator->address,
		.broadcast = communicator->broadcast,
		.mac = communicator->mac,
	};
	for (uint32_t i = 0; i < communicator->ring_count; i++) {
		struct kv_queue_pair *ring = &communicator->rings[i];
		struct kv_engine_pair *end = &state->rings[i].end;

		end->pair = ring;
		end->sender = communicator->senders ? &communicator->senders[i] : NULL;
		end->processed = end->published = ring->response_control.published;
		kv_responses_begin(end);
		ring->response_control.engine_cpu = cpu;
		__atomic_store_n(&ring->response_control.alive, 1, __ATOMIC_RELEASE);
	}
	return 0;
}

void kv_communicator_end(struct kv_communicator *communicator)
{
	for (uint32_t i = 0; i < communicator->ring_count; i++)
		__atomic_store_n(&communicator->rings[i].response_control.alive, 0, __ATOMIC_RELEASE);
}

/* Receive a burst of frames and hand its batches to the engines. Return the number of frames. */
uint32_t kv_communicator_receive(struct kv_communicator *communicator)
{
	struct kv_communicator_state *state = communicator->state;
	struct kv_dpu_queue *own = &communicator->queues[0];
	struct kv_frame frames[KV_BURST_FRAMES];
	uint32_t count;

	if (state->turns >= KV_STAGE_TURNS)
		own->stage_last_ns = bpf_ktime_get_ns();
	count = state->port->receive(state->source, frames, KV_BURST_FRAMES);
	if (count)
		kv_time_turn(communicator);
	else
		own->stage_last_ns = 0;
	for (uint32_t i = 0; i < count; i++)
		kv_accept(communicator, &frames[i]);
	kv_stage_end(own, KV_STAGE_PARSE);
	if (communicator->send_after_parse)
		count += kv_send_ready(communicator);
	return count;
}

/* Turn finished batches into answers; send them now or after the next burst. Return the number of frames. */
uint32_t kv_communicator_answer(struct kv_communicator *communicator)
{
	struct kv_dpu_queue *own = &communicator->queues[0];
	uint32_t count = 0;

	if (own->stage_last_ns) /* skip the engines' turn, which they time themselves */
		own->stage_last_ns = bpf_ktime_get_ns();
	for (uint32_t engine = 0; engine < communicator->engines; engine++)
		count += kv_answer_engine(communicator, engine);
	kv_stage_end(own, KV_STAGE_PREPARE);
	if (!communicator->send_after_parse)
		kv_send_ready(communicator);
	return count;
}

/* Wake the senders of rings whose answers have been parked for too long. */
void kv_communicator_idle(struct kv_communicator *communicator, uint64_t now_ticks)
{
	for (uint32_t i = 0; i < communicator->ring_count; i++)
		kv_wake_for_ring(communicator, i, now_ticks);
}

static void kv_wake_for_ring(struct kv_communicator *communicator, uint32_t index, uint64_t now_ticks)
{
	struct kv_communicator_state *state = communicator->state;

	kv_overdue_wake(&state->rings[index].end, communicator->ring_engine, state->cpu,
			communicator->flush_after_ticks, now_ticks);
}

/* Start timing the stages of one turn in KV_STAGE_TURNS, before it receives its frames. */
static void kv_time_turn(struct kv_communicator *communicator)
{
	struct kv_communicator_state *state = communicator->state;
	struct kv_dpu_queue *own = &communicator->queues[0];

	if (!own->stage_last_ns) {
		state->turns++;
		return;
	}
	state->turns = 0;
	kv_stage_end(own, KV_STAGE_RECEIVE);
}

static void kv_read_note(const struct kv_frame *frame, struct kv_frame_note *note);
static int kv_take_noted(struct kv_communicator *communicator, const struct kv_frame *frame,
			 const struct kv_frame_note *note);
static void kv_drop_frame(struct kv_communicator *communicator, const struct kv_frame *frame, uint32_t engine,
			  int counter);
static void kv_hold(struct kv_communicator *communicator, const struct kv_frame *frame, uint32_t engine);
static struct kv_dpu_end kv_end_of(struct kv_communicator *communicator, uint32_t engine);
static int kv_engine_takes(const struct kv_communicator *communicator, const struct kv_dpu_end *end);

/* Hand one frame's batch to its engine's request queue, or drop the frame and count the reason. */
static void kv_accept(struct kv_communicator *communicator, const struct kv_frame *frame)
{
	struct kv_communicator_state *state = communicator->state;
	struct kv_dpu_queue *own = &communicator->queues[0];
	struct xdp_md ctx = { frame->data, frame->data + frame->bytes, frame->data + frame->room, &state->side };
	struct kv_packet packet = {};
	struct kv_dpu_end end;
	uint32_t body_bytes;
	int verdict, count;

	if (communicator->noted) {
		struct kv_frame_note note;

		kv_read_note(frame, &note);
		if (note.records_offset && kv_take_noted(communicator, frame, &note))
			return;
		if (note.frame_bytes <= frame->bytes)
			ctx.data_end = ctx.data + note.frame_bytes;
	}
	if (kv_find_engine(&ctx, &packet) == KV_PARSE_PASS) {
		kv_drop_frame(communicator, frame, 0, frame->bytes ? KV_COUNTER_PASSED : KV_COUNTER_DROP_FRAME_LENGTH);
		return;
	}
	end = kv_end_of(communicator, packet.engine);
	verdict = kv_check_headers(&ctx, &packet);
	if (verdict == KV_PARSE_OURS)
		verdict = kv_engine_takes(communicator, &end);
	if (verdict != KV_PARSE_OURS) {
		kv_drop_frame(communicator, frame, packet.engine, verdict);
		return;
	}
	count = kv_take_requests(&ctx, &packet, &end, &body_bytes);
	if (count <= 0) {
		kv_drop_frame(communicator, frame, packet.engine, -count);
		return;
	}
	kv_hold(communicator, frame, packet.engine);
	kv_count_batch(end.queue, &packet, count, own);
	kv_send_batch(&ctx, &packet, &end, count, body_bytes, own);
}

/* Read the note once: its writer may change it at any time. */
static void kv_read_note(const struct kv_frame *frame, struct kv_frame_note *note)
{
	uint64_t word = KV_READ_ONCE(*((const uint64_t *)frame->data - 1));

	_Static_assert(sizeof(*note) == sizeof(word), "a note is one word");
	memcpy(note, &word, sizeof(word));
}

/* Take the records behind a frame that XDP has parsed. Return 0 if they contradict their lengths. */
static int kv_take_noted(struct kv_communicator *communicator, const struct kv_frame *frame,
			 const struct kv_frame_note *note)
{
	const uint8_t *parked = frame->data + note->records_offset;
	const uint8_t *opaques = parked + sizeof(struct kv_parked_batch);
	const uint8_t *records = opaques + KV_OPAQUE_BYTES(note->count);
	uint32_t body_offset = note->header_offset + KV_PACKET_HEADER_BYTES;
	uint32_t body_bytes = note->has_body ? note->frame_bytes - body_offset : 0;
	uint32_t record_bytes = note->count * (uint32_t)sizeof(struct kv_request);
	struct kv_dpu_queue *own = &communicator->queues[0];
	struct kv_request_batch batch;
	struct kv_dpu_end end;
	int verdict;

	if (note->engine >= communicator->engines || note->count == 0 || note->count > KV_BATCH_MAX ||
	    note->frame_bytes > KV_FRAME_MAX || note->frame_bytes > frame->bytes || body_offset > note->frame_bytes ||
	    records + record_bytes > frame->data + frame->bytes)
		return 0;
	end = kv_end_of(communicator, note->engine);
	verdict = kv_engine_takes(communicator, &end);
	if (verdict == KV_PARSE_OURS) {
		uint32_t refusal = kv_no_room(&end, ((const struct kv_parked_batch *)parked)->ip_destination);

		verdict = refusal ? (int)refusal : KV_PARSE_OURS;
	}
	if (verdict != KV_PARSE_OURS) {
		kv_drop_frame(communicator, frame, note->engine, verdict);
		return 1;
	}
	kv_hold(communicator, frame, note->engine);
	batch = kv_next_batch(&end);
	memcpy(batch.parked, parked, sizeof(*batch.parked));
	memcpy(batch.opaques, opaques, KV_OPAQUE_BYTES(note->count));
	memcpy(batch.records, records, record_bytes);
	memcpy(batch.records + kv_records_in_front(note->count), frame->data + body_offset, body_bytes);
	kv_stage_count(own, note->count);
	send_request_queue_to_host(&end, note->count, body_bytes);
	return 1;
}

/* Keep the frame of the engine's next batch. */
static void kv_hold(struct kv_communicator *communicator, const struct kv_frame *frame, uint32_t engine)
{
	uint32_t entry = communicator->queues[engine].published & KV_BATCH_MASK;

	communicator->state->held[engine][entry] = *frame;
}

/* Return KV_PARSE_OURS if the engine is there and may hold another frame, else the drop counter that says why not. */
static int kv_engine_takes(const struct kv_communicator *communicator, const struct kv_dpu_end *end)
{
	if (kv_engine_is_gone(end->pair, end->queue))
		return KV_COUNTER_DROP_NO_ENGINE;
	return kv_batches_in_use(end->queue) >= communicator->frames_max ? KV_COUNTER_DROP_QUEUE_FULL : KV_PARSE_OURS;
}

/* Return this communication engine's end of its queue pair with an engine. */
static struct kv_dpu_end kv_end_of(struct kv_communicator *communicator, uint32_t engine)
{
	return (struct kv_dpu_end){ &communicator->pairs[engine], &communicator->queues[engine],
				    &communicator->parked[engine] };
}

static void kv_drop_frame(struct kv_communicator *communicator, const struct kv_frame *frame, uint32_t engine,
			  int counter)
{
	if (counter >= 0 && counter < KV_COUNTERS)
		communicator->queues[engine].counters[counter]++;
	communicator->state->port->release(communicator->state->source, frame);
}

/* Turn every finished batch of one engine, oldest first, into an answer in its own frame. */
static uint32_t kv_answer_engine(struct kv_communicator *communicator, uint32_t engine)
{
	struct kv_communicator_state *state = communicator->state;
	struct kv_dpu_end end = kv_end_of(communicator, engine);
	struct kv_dpu_queue *queue = end.queue;
	uint32_t count = 0;

	while (kv_batches_in_use(queue) && kv_oldest_is_finished(end.pair, queue)) {
		struct kv_frame *frame = &state->held[engine][queue->answered & KV_BATCH_MASK];
		struct xdp_md ctx = { frame->reply, frame->reply, frame->reply + frame->room, &state->side };
		int verdict = kv_write_reply(&ctx, &end, queue->answered, queue->records_freed);

		kv_release_oldest(&end);
		count++;
		if (verdict != XDP_TX) {
			state->port->release(state->source, frame);
			continue;
		}
		queue->counters[KV_COUNTER_RESPONSES_WAITED]++;
		frame->data = frame->reply;
		frame->bytes = (uint32_t)(ctx.data_end - ctx.data);
		state->ready[state->ready_count++] = *frame;
		if (state->ready_count == KV_BURST_FRAMES)
			kv_send_ready(communicator);
	}
	return count;
}

static uint32_t kv_send_ready(struct kv_communicator *communicator)
{
	struct kv_communicator_state *state = communicator->state;
	struct kv_dpu_queue *own = &communicator->queues[0];
	uint32_t count = state->ready_count;

	if (count == 0)
		return 0;
	if (own->stage_last_ns)
		own->stage_last_ns = bpf_ktime_get_ns();
	for (uint32_t i = 0; i < count; i++)
		state->port->send(state->source, &state->ready[i]);
	state->ready_count = 0;
	state->port->flush(state->source);
	kv_stage_end(own, KV_STAGE_SEND);
	return count;
}

/* ---- Ports ---- */

static uint32_t kv_socket_port_receive(void *source, struct kv_frame *frames, uint32_t room)
{
	return kv_socket_receive(source, frames, room);
}

static void kv_socket_port_send(void *source, const struct kv_frame *frame)
{
	kv_socket_send(source, frame);
}

static void kv_socket_port_release(void *source, const struct kv_frame *frame)
{
	kv_socket_release(source, frame);
}

static void kv_socket_port_flush(void *source)
{
	kv_socket_flush(source);
}

static const struct kv_port socket_port = {
	.receive = kv_socket_port_receive,
	.send = kv_socket_port_send,
	.release = kv_socket_port_release,
	.flush = kv_socket_port_flush,
};

static uint32_t kv_take_frames(struct kv_communicator *communicator, uint32_t index, struct kv_frame *frames,
			       uint32_t room);

/* The next call begins behind the first ring that gave frames to this one: busy rings get equal shares. */
static uint32_t kv_ring_port_receive(void *source, struct kv_frame *frames, uint32_t room)
{
	struct kv_communicator *communicator = source;
	uint32_t ring = communicator->state->first_ring, count = 0;

	for (uint32_t i = 0; i < communicator->ring_count && count < room; i++) {
		uint32_t taken = kv_take_frames(communicator, ring, frames + count, room - count);

		ring = ring + 1 < communicator->ring_count ? ring + 1 : 0;
		if (count == 0 && taken)
			communicator->state->first_ring = ring;
		count += taken;
	}
	return count;
}

/*
 * Frames of one core; a frame's tag names its ring and number. Each has room for its answer from the start, so that
 * answers can be built in any order; without room, frames wait in the ring. A counter out of range counts as nothing,
 * until it is in range again. A frame whose length cannot be is none, which the parser drops and counts.
 */
static uint32_t kv_take_frames(struct kv_communicator *communicator, uint32_t index, struct kv_frame *frames,
			       uint32_t room)
{
	struct kv_frame_ring *ring = &communicator->state->rings[index];
	struct kv_queue_pair *pair = ring->end.pair;
	uint32_t ready = kv_batches_ready(pair, ring->end.processed);
	uint32_t count = 0, most;

	if (ready == 0 || ready > KV_BATCHES)
		return 0;
	most = kv_response_room(&ring->end);
	if (most == 0) /* kv_communicator_idle() does not look while other rings keep this core busy */
		kv_wake_for_ring(communicator, index, kv_ticks());
	if (most > KV_RING_FRAMES - (ring->end.processed - ring->end.published))
		most = KV_RING_FRAMES - (ring->end.processed - ring->end.published);
	for (; count < ready && count < room && count < most; count++) {
		const struct kv_batch_entry *entry = &pair->batches[KV_ENTRY(ring->end.processed)];

		ring->is_done[ring->end.processed % KV_RING_FRAMES] = 0;
		frames[count] = (struct kv_frame){
			.data = (uint8_t *)kv_batch_records(pair, entry),
			.reply = (uint8_t *)&pair->responses[KV_RECORD(ring->end.records_taken)],
			.bytes = kv_batch_body_bytes(entry),
			.room = KV_FRAME_MAX,
			.tag = (uint64_t)index << 32 | ring->end.processed,
		};
		kv_answer(&ring->end, 0, KV_FRAME_RECORDS);
	}
	return count;
}

/* Store the length of a frame's answer, 0 for none. Hand back all answered frames at the front. */
static void kv_ring_port_finish(struct kv_communicator *communicator, const struct kv_frame *frame,
				uint32_t frame_bytes)
{
	struct kv_frame_ring *ring = &communicator->state->rings[frame->tag >> 32];
	struct kv_engine_pair *end = &ring->end;
	uint32_t number = (uint32_t)frame->tag, published = end->published;

	end->pair->answers[KV_ENTRY(number)].wire_bytes = (uint16_t)frame_bytes;
	ring->is_done[number % KV_RING_FRAMES] = 1;
	while (end->published != end->processed && ring->is_done[end->published % KV_RING_FRAMES]) {
		ring->is_done[end->published % KV_RING_FRAMES] = 0;
		end->published++;
	}
	if (published != end->published) {
		send_response_queue_to_dpu(end->pair, end->published);
		kv_hand_on(end, communicator->ring_engine, communicator->state->cpu, communicator->flush_after_ticks,
			   kv_ticks());
	}
}

static void kv_ring_port_send(void *source, const struct kv_frame *frame)
{
	kv_ring_port_finish(source, frame, frame->bytes);
}

static void kv_ring_port_release(void *source, const struct kv_frame *frame)
{
	kv_ring_port_finish(source, frame, 0);
}

/* Nothing to flush: each answer has been handed back already. */
static void kv_ring_port_flush(void *source)
{
	(void)source;
}

static const struct kv_port ring_port = {
	.receive = kv_ring_port_receive,
	.send = kv_ring_port_send,
	.release = kv_ring_port_release,
	.flush = kv_ring_port_flush,
};
