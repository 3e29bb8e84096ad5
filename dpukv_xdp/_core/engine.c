// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * engine.c - step 3, process: the host's native loop over its queue pairs.
 *
 * A round takes some batches that one queue pair has ready, asks for the index lines of all their requests, then for
 * the items, and only then executes: with 45 requests a batch the memory's latency is paid about once. Each batch is
 * handed back as soon as it is done.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "queue.h"
#include "store.h"
#include "ticks.h"

#define KV_IDLE_ROUNDS_TO_CLOCK 16 /* overdue responses are looked for once in so many idle rounds */
#define KV_ROUND_REQUESTS 64	   /* a round takes batches until it has so many requests */
#define KV_INLINE_REPLY_BYTES (KV_ITEM_HEADER_BYTES + KV_INLINE_MAX)

static uint32_t kv_engine_serve(struct kv_engine *engine, uint32_t cpu);
static uint32_t kv_engine_prefetch(struct kv_engine *engine, const struct kv_queue_pair *pair, uint32_t first,
				   uint32_t batches);
static uint32_t kv_engine_process(struct kv_engine *engine, struct kv_queue_pair *pair, uint32_t slot);
static void kv_engine_wake_overdue(struct kv_engine *engine, uint32_t cpu, uint64_t now_ticks);
static void kv_engine_set_alive(struct kv_engine *engine, uint16_t alive);

int kv_engine_run(struct kv_engine *engine)
{
	uint64_t start_ticks = kv_ticks();
	uint32_t idle_rounds = 0;

	if (engine->cpus > KV_CPUS_MAX || engine->engines == 0 || engine->id >= engine->engines || !engine->store)
		return -EINVAL;
	for (uint32_t cpu = 0; cpu < engine->cpus; cpu++)
		engine->state[cpu].processed = engine->pairs[cpu].response_control.published;
	kv_engine_set_alive(engine, 1);
	while (!__atomic_load_n(&engine->stop, __ATOMIC_RELAXED)) {
		uint32_t batches = 0;

		for (uint32_t cpu = 0; cpu < engine->cpus; cpu++)
			batches += kv_engine_serve(engine, cpu);
		engine->stats.rounds++;
		if (batches || ++idle_rounds % KV_IDLE_ROUNDS_TO_CLOCK)
			continue;
		engine->stats.total_ticks = kv_ticks() - start_ticks;
		for (uint32_t cpu = 0; cpu < engine->cpus; cpu++)
			kv_engine_wake_overdue(engine, cpu, start_ticks + engine->stats.total_ticks);
	}
	kv_engine_set_alive(engine, 0);
	engine->stats.total_ticks = kv_ticks() - start_ticks;
	return 0;
}

uint64_t kv_ticks_per_second(void)
{
	struct timespec start, end, pause = { .tv_nsec = 2000000 };
	uint64_t start_ticks, ticks, elapsed_ns;

	clock_gettime(CLOCK_MONOTONIC_RAW, &start);
	start_ticks = kv_ticks();
	nanosleep(&pause, NULL);
	clock_gettime(CLOCK_MONOTONIC_RAW, &end);
	ticks = kv_ticks() - start_ticks;
	elapsed_ns =
		(uint64_t)(end.tv_sec - start.tv_sec) * 1000000000 + (uint64_t)end.tv_nsec - (uint64_t)start.tv_nsec;
	return elapsed_ns ? ticks * 1000000000 / elapsed_ns : 0;
}

/* The batches that a queue pair has ready, or some of them. Returns how many. */
static uint32_t kv_engine_serve(struct kv_engine *engine, uint32_t cpu)
{
	struct kv_queue_pair *pair = &engine->pairs[cpu];
	struct kv_engine_pair *state = &engine->state[cpu];
	uint32_t batches = kv_batches_ready(pair, state->processed);
	uint64_t start_ticks;

	if (__builtin_expect(batches == 0, 1))
		return 0;
	if (batches > KV_SLOTS) {
		engine->stats.bad_batches++;
		state->processed += batches;
		return 0;
	}
	start_ticks = kv_ticks();
	batches = kv_engine_prefetch(engine, pair, state->processed, batches);
	for (uint32_t i = 0; i < batches; i++) {
		uint32_t wire_bytes = kv_engine_process(engine, pair, KV_SLOT(state->processed));

		send_response_queue_to_dpu(pair, ++state->processed, wire_bytes);
	}
	engine->stats.batches += batches;
	state->since_ticks = kv_ticks();
	state->woken = 0;
	engine->stats.busy_ticks += state->since_ticks - start_ticks;
	return batches;
}

/*
 * Two passes over the requests at hand: buckets, then items. Returns how many batches were taken: enough to hide the
 * memory's latency, and no more, because the first one's response waits for all.
 */
static uint32_t kv_engine_prefetch(struct kv_engine *engine, const struct kv_queue_pair *pair, uint32_t first,
				   uint32_t batches)
{
	const struct kv_store *store = engine->store;
	uint32_t taken = 0;

	for (uint32_t requests = 0; taken < batches && requests < KV_ROUND_REQUESTS; taken++) {
		const struct kv_request_slot *slot = &pair->requests[KV_SLOT(first + taken)];
		uint32_t count = kv_batch_requests(pair, KV_SLOT(first + taken));

		for (uint32_t r = 0; r < count; r++)
			kv_store_prefetch_bucket(store, slot->records[r].key_hash);
		requests += count;
	}
	for (uint32_t i = 0; i < taken; i++) {
		const struct kv_request_slot *slot = &pair->requests[KV_SLOT(first + i)];
		uint32_t count = kv_batch_requests(pair, KV_SLOT(first + i));

		for (uint32_t r = 0; r < count; r++)
			kv_store_prefetch_item(store, slot->records[r].key_hash);
	}
	return taken;
}

/* The responses of one batch as they grow. */
struct kv_reply {
	struct kv_response_slot *slot;
	uint32_t wire_bytes;	/* so far */
	uint32_t payload_bytes; /* so far */
	uint32_t room;		/* wire bytes that this response may take without pushing out a later one */
};

static void kv_reply_make_room(struct kv_reply *reply, uint32_t response_bytes_max, uint32_t responses_behind);
static uint64_t kv_execute(struct kv_engine *engine, const struct kv_request_slot *requests,
			   const struct kv_request *request, struct kv_reply *reply, struct kv_response *response);

/* One batch, in place: records in, records out. Returns the bytes its responses take on the wire. */
static uint32_t kv_engine_process(struct kv_engine *engine, struct kv_queue_pair *pair, uint32_t slot)
{
	const struct kv_request_slot *requests = &pair->requests[slot];
	struct kv_reply reply = { .slot = &pair->responses[slot] };
	uint32_t count = kv_batch_requests(pair, slot);

	if (count == 0)
		engine->stats.bad_batches++;
	for (uint32_t i = 0; i < count; i++) {
		const struct kv_request *request = &requests->records[i];
		struct kv_response *response = &reply.slot->records[i];
		uint64_t header = request->header;

		if (__builtin_expect(engine->engines == 1 && header == KV_HEADER(KV_OP_GET, 0, 8, 0), 1)) {
			const uint8_t *long_value;
			uint32_t value_bytes;
			__u64 value;
			int result = kv_store_get8(engine->store, request->key_hash, request->key, 8, &value,
						   &value_bytes, &long_value);

			if (__builtin_expect(value_bytes <= KV_INLINE_MAX, 1)) {
				engine->stats.gets++;
				response->value = value;
				response->header = KV_HEADER(KV_OP_GET, result, 0, value_bytes);
				reply.wire_bytes += KV_ITEM_HEADER_BYTES + KV_ROUNDUP8(value_bytes);
				continue;
			}
		}
		kv_reply_make_room(&reply, engine->response_bytes_max, count - 1 - i);
		response->header = kv_execute(engine, requests, request, &reply, response);
		reply.wire_bytes += KV_ITEM_HEADER_BYTES + KV_ROUNDUP8(KV_HEADER_VALUE_BYTES(response->header));
	}
	engine->stats.requests += count;
	return reply.wire_bytes;
}

/* What a response may take so that each one behind it still has room for a header and a short value. */
static void kv_reply_make_room(struct kv_reply *reply, uint32_t response_bytes_max, uint32_t responses_behind)
{
	uint32_t taken = reply->wire_bytes + responses_behind * KV_INLINE_REPLY_BYTES;

	reply->room = taken < response_bytes_max ? response_bytes_max - taken : 0;
}

static int kv_execute_get(struct kv_engine *engine, const struct kv_request *request, const uint8_t *key,
			  struct kv_reply *reply, struct kv_response *response, uint32_t *value_bytes);
static int kv_execute_set(struct kv_engine *engine, const struct kv_request_slot *requests,
			  const struct kv_request *request, const uint8_t *key);

/* Any operation on any lengths. Returns the response's header word; a value goes into the response or its payload. */
static uint64_t kv_execute(struct kv_engine *engine, const struct kv_request_slot *requests,
			   const struct kv_request *request, struct kv_reply *reply, struct kv_response *response)
{
	uint32_t operation = KV_HEADER_OPERATION(request->header);
	uint32_t key_bytes = KV_HEADER_KEY_BYTES(request->header);
	const uint8_t *key = (const uint8_t *)&request->key;
	uint32_t value_bytes = 0;
	int result;

	response->value = 0;
	/* Also a probe's empty key, whose hash is 0, has one owner: as in MICA2, the others answer this. */
	if (engine->engines > 1 && (request->key_hash >> 48) % engine->engines != engine->id) {
		engine->stats.rejected++;
		return KV_HEADER(operation, KV_REJECTED, 0, 0);
	}
	if (operation == KV_OP_NOOP_READ || operation == KV_OP_NOOP_WRITE) {
		engine->stats.noops++;
		return KV_HEADER(operation, KV_SUCCESS, 0, 0);
	}
	if (operation != KV_OP_GET && operation != KV_OP_SET) {
		engine->stats.not_supported++;
		return KV_HEADER(operation, KV_NOT_SUPPORTED, 0, 0);
	}
	if (key_bytes > KV_INLINE_MAX)
		key = kv_request_payload(requests, request->key, key_bytes);
	if (key_bytes == 0 || !key) {
		engine->stats.errors++;
		return KV_HEADER(operation, KV_ERROR, 0, 0);
	}
	if (operation == KV_OP_GET)
		result = kv_execute_get(engine, request, key, reply, response, &value_bytes);
	else
		result = kv_execute_set(engine, requests, request, key);
	return KV_HEADER(operation, result, 0, value_bytes);
}

static int kv_execute_get(struct kv_engine *engine, const struct kv_request *request, const uint8_t *key,
			  struct kv_reply *reply, struct kv_response *response, uint32_t *value_bytes)
{
	uint32_t room = KV_PAYLOAD_BYTES - reply->payload_bytes;
	uint8_t *value = reply->slot->payload + reply->payload_bytes;
	int result;

	engine->stats.gets++;
	if (reply->room < KV_INLINE_REPLY_BYTES)
		return KV_INSUFFICIENT_SPACE;
	if (room > ((reply->room - KV_ITEM_HEADER_BYTES) & ~7u))
		room = (reply->room - KV_ITEM_HEADER_BYTES) & ~7u;
	result = kv_store_get(engine->store, request->key_hash, key, KV_HEADER_KEY_BYTES(request->header), value, room,
			      value_bytes);
	if (result != KV_SUCCESS) {
		*value_bytes = 0;
		return result;
	}
	if (*value_bytes <= KV_INLINE_MAX) {
		memcpy(&response->value, value, *value_bytes);
		return result;
	}
	memset(value + *value_bytes, 0, KV_ROUNDUP8(*value_bytes) - *value_bytes);
	response->value = reply->payload_bytes;
	reply->payload_bytes += KV_ROUNDUP8(*value_bytes);
	return result;
}

static int kv_execute_set(struct kv_engine *engine, const struct kv_request_slot *requests,
			  const struct kv_request *request, const uint8_t *key)
{
	uint32_t key_bytes = KV_HEADER_KEY_BYTES(request->header);
	uint32_t value_bytes = KV_HEADER_VALUE_BYTES(request->header);
	const uint8_t *value = (const uint8_t *)&request->value;

	engine->stats.sets++;
	if (key_bytes <= KV_INLINE_MAX && value_bytes <= KV_INLINE_MAX)
		return kv_store_set8(engine->store, request->key_hash, request->key, key_bytes, request->value,
				     value_bytes);
	/* Behind a long key even a short value is left in the payload, see kv_parse_item(). */
	if (value_bytes > KV_INLINE_MAX || (value_bytes && key_bytes > KV_INLINE_MAX))
		value = kv_request_payload(requests, request->value, value_bytes);
	/* What a GET could never return in one frame is refused now. */
	if (!value || KV_ITEM_HEADER_BYTES + KV_ROUNDUP8(value_bytes) > engine->response_bytes_max) {
		engine->stats.errors++;
		return KV_INSUFFICIENT_SPACE;
	}
	return kv_store_set(engine->store, request->key_hash, key, key_bytes, value, value_bytes);
}

/* A response that no frame has come to carry for too long: tell the sender of its core. */
static void kv_engine_wake_overdue(struct kv_engine *engine, uint32_t cpu, uint64_t now_ticks)
{
	struct kv_engine_pair *state = &engine->state[cpu];
	uint64_t wait_ticks = engine->flush_after_ticks;

	if (!engine->senders || kv_batches_answered(&engine->pairs[cpu]) == state->processed)
		return;
	/* On the engine's own core the communication engine never waits: no use in hoping for the next frame. */
	if (cpu == engine->cpu && !state->woken)
		wait_ticks = 0;
	if (now_ticks - state->since_ticks < wait_ticks)
		return;
	state->since_ticks = now_ticks;
	state->woken = 1;
	engine->stats.wakeups++;
	__atomic_store_n(&engine->senders[cpu].overdue[engine->id], 1, __ATOMIC_RELEASE);
	kv_sender_wake(&engine->senders[cpu]);
}

static void kv_engine_set_alive(struct kv_engine *engine, uint16_t alive)
{
	for (uint32_t cpu = 0; cpu < engine->cpus; cpu++) {
		engine->pairs[cpu].response_control.engine_cpu = engine->cpu;
		__atomic_store_n(&engine->pairs[cpu].response_control.alive, alive, __ATOMIC_RELEASE);
	}
}
