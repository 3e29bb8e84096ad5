// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * engine.c - step 3, process: the processing engine on the host, behind its queue pairs.
 *
 * A round takes ready batches from the queue pairs, from each up to its share. While a request is executed, the item of
 * a later request is prefetched, the bucket of one still later, and the record of one behind that: the latency of
 * memory is hidden by work and paid about once per round. Each batch is handed back as soon as it is done.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/ticks.h"
#include "queue/bus.h"
#include "queue/host_end.h"
#include "queue/ringbuf.h"
#include "service/engine.h"
#include "service/semantics.h"
#include "store/hot_path.h"
#include "store/short_items.h"

#define KV_READY_TURNS 1000000 /* polls for a separately transferred record before the batch counts as bad */

/* One batch, wherever its requests are. The other end may still write there, so checked numbers are kept here. */
struct kv_taken_batch {
	const struct kv_request *records;
	struct kv_engine_pair *from;
	uint32_t count;	     /* requests; 0: the batch is broken and gets an empty answer */
	uint32_t body_bytes; /* of the packet's body behind the records; 0: there is none */
};

/* The batches of one round. */
struct kv_round {
	uint32_t batches;
	struct kv_taken_batch taken[KV_ROUND_BATCHES];
};

/* Requests between the prefetch of an item, bucket or record and its execution. */
enum kv_ahead_requests { KV_ITEMS_AHEAD = 16, KV_BUCKETS_AHEAD = 32, KV_RECORDS_AHEAD = KV_BUCKETS_AHEAD + 16 };
_Static_assert((KV_ITEMS_AHEAD & (KV_ITEMS_AHEAD - 1)) == 0, "places are picked by a mask");

/* Kinds of rounds for which the loop over requests is compiled. */
enum kv_plain {
	KV_NOT_PLAIN = 0,     /* any engine */
	KV_PLAIN_INDEXED = 1, /* one exclusive store with index and log or allocator */
	KV_PLAIN_SHORT = 2    /* one exclusive inline store whose index and log the round before did not use */
};

/* Position of one prefetching step in the round. */
struct kv_cursor {
	const struct kv_request *next;
	const struct kv_request *end; /* end of the current batch */
	uint32_t batches;	      /* batches begun */
};

/* A key's likely place in the index. */
struct kv_place {
	uint64_t key_hash;
	__u64 *word;
};

struct kv_ahead {
	const struct kv_round *round;
	struct kv_cursor buckets;
	struct kv_cursor items;
	uint32_t executed;			/* requests */
	struct kv_place places[KV_ITEMS_AHEAD]; /* places of the requests whose items have been prefetched */
};

static void kv_round_from_pairs(struct kv_engine *engine, struct kv_round *round);
static void kv_round_from_pair(struct kv_engine *engine, struct kv_engine_pair *from, struct kv_round *round);
static void kv_wake_sender(struct kv_engine *engine, struct kv_engine_pair *from, uint64_t now_ticks);
static void kv_round_from_ring(struct kv_engine *engine, struct kv_round *round);
static int kv_take_sample(struct kv_engine *engine, const struct kv_sample_head *sample, uint32_t sample_bytes,
			  struct kv_taken_batch *batch);
static void kv_round_process(struct kv_engine *engine, const struct kv_round *round);
static enum kv_plain kv_round_kind(struct kv_engine *engine);
KV_INLINED void kv_round_run(struct kv_engine *engine, const struct kv_round *round, int plain);
KV_INLINED void kv_ahead_start(struct kv_engine *engine, struct kv_ahead *ahead, int plain);
KV_INLINED struct kv_place kv_ahead_step(struct kv_engine *engine, struct kv_ahead *ahead, int plain);
static inline uint32_t kv_partition_of(const struct kv_engine *engine, uint64_t key_hash);
KV_INLINED struct kv_store *kv_store_of(const struct kv_engine *engine, uint64_t key_hash, int plain);
KV_INLINED void kv_batch_process(struct kv_engine *engine, struct kv_ahead *ahead, const struct kv_taken_batch *batch,
				 int plain);
static void kv_engine_set_alive(struct kv_engine *engine, uint16_t alive);

int kv_engine_begin(struct kv_engine *engine)
{
	if (engine->pair_count > KV_HOST_PAIRS_MAX || !engine->partitions || engine->partition_count == 0 ||
	    engine->partition_count > KV_PARTITIONS_MAX)
		return -EINVAL;
	engine->partition_step = UINT32_MAX / engine->partition_count + 1;
	for (uint32_t i = 0; i < engine->partition_count; i++) {
		if (!engine->stores[i])
			return -EINVAL;
	}
	for (uint32_t i = 0; i < engine->pair_count; i++) {
		struct kv_engine_pair *state = &engine->pairs[i];

		state->processed = state->published = state->seen = state->pair->response_control.published;
		state->refused = state->processed;
		state->in_round = 0;
		kv_responses_begin(state);
	}
	kv_engine_set_alive(engine, 1);
	return 0;
}

void kv_engine_end(struct kv_engine *engine)
{
	kv_engine_beat(engine, 0);
	kv_engine_set_alive(engine, 0);
}

/* Show XDP a sign of life; 0 shows that no engine runs any more. */
void kv_engine_beat(struct kv_engine *engine, uint64_t now_ns)
{
	if (engine->heartbeat)
		__atomic_store_n(&engine->heartbeat->beat_ns, now_ns, __ATOMIC_RELEASE);
}

/* Process one round. Return how many batches it had. */
uint32_t kv_engine_turn(struct kv_engine *engine)
{
	struct kv_round round;

	round.batches = 0;
	if (engine->ring)
		kv_round_from_ring(engine, &round);
	else
		kv_round_from_pairs(engine, &round);
	kv_round_process(engine, &round);
	if (engine->ring)
		kv_ringbuf_release(engine->ring);
	return round.batches;
}

/* Wake the senders of responses that have been parked for too long. */
void kv_engine_idle(struct kv_engine *engine, uint64_t now_ticks)
{
	for (uint32_t i = 0; i < engine->pair_count; i++)
		kv_wake_sender(engine, &engine->pairs[i], now_ticks);
}

/*
 * Take ready batches from all queue pairs. The next round begins behind the first pair that gave some to this one,
 * which may have filled it: so busy pairs get equal shares, whichever others are idle.
 */
static void kv_round_from_pairs(struct kv_engine *engine, struct kv_round *round)
{
	uint32_t next = engine->next_pair;

	for (uint32_t i = 0; i < engine->pair_count && round->batches < KV_ROUND_BATCHES; i++) {
		struct kv_engine_pair *from = &engine->pairs[next];
		int is_first = round->batches == 0;

		next = next + 1 < engine->pair_count ? next + 1 : 0;
		if (__builtin_expect(kv_batches_ready(from->pair, from->processed) != 0, 0))
			kv_round_from_pair(engine, from, round);
		else if (from->published != from->processed)
			kv_bus_deliver(from, kv_ticks());
		if (is_first && round->batches)
			engine->next_pair = next;
	}
}

/*
 * Take a queue pair's ready batches, up to its share of the round and to the room for their responses: without room
 * they wait in the queue pair. A counter out of range counts as "none ready" until it is in range again.
 */
static void kv_round_from_pair(struct kv_engine *engine, struct kv_engine_pair *from, struct kv_round *round)
{
	uint32_t ready = kv_batches_ready(from->pair, from->processed);
	uint32_t requests = 0, room;

	if (ready > KV_BATCHES) {
		engine->stats.bad_batches += from->refused != from->processed + ready;
		from->refused = from->processed + ready;
		return;
	}
	if (kv_bus_is_emulated(&engine->bus)) {
		uint64_t now_ticks = kv_ticks();

		kv_bus_deliver(from, now_ticks);
		ready = kv_bus_batches_ready(&engine->bus, engine->transfer_per_request, from, ready, now_ticks);
	}
	room = kv_response_room(from);
	if (ready > room)
		ready = room;
	if (room == 0)
		kv_wake_sender(engine, from, kv_ticks());
	for (uint32_t i = 0; i < ready && round->batches < KV_ROUND_BATCHES && requests < KV_ROUND_REQUESTS; i++) {
		const struct kv_batch_entry *entry = &from->pair->batches[KV_ENTRY(from->processed + i)];
		struct kv_taken_batch *batch = &round->taken[round->batches++];

		*batch = (struct kv_taken_batch){ kv_batch_records(from->pair, entry), from, kv_batch_requests(entry),
						  kv_batch_has_body(entry) ? kv_batch_body_bytes(entry) : 0 };
		requests += batch->count;
		from->in_round++;
	}
}

/* Wake the sender of the pair's core if responses have been parked for too long. */
static void kv_wake_sender(struct kv_engine *engine, struct kv_engine_pair *from, uint64_t now_ticks)
{
	engine->stats.wakeups += kv_overdue_wake(from, engine->id, engine->cpu, engine->flush_after_ticks, now_ticks);
}

/*
 * Take batches of all cores from the BPF ring buffer, until one has no room for its responses: it stays there. A sample
 * that is too short becomes a broken batch.
 */
static void kv_round_from_ring(struct kv_engine *engine, struct kv_round *round)
{
	uint32_t requests = 0, sample_bytes;

	while (round->batches < KV_ROUND_BATCHES && requests < KV_ROUND_REQUESTS) {
		struct kv_taken_batch *batch = &round->taken[round->batches];
		uint64_t before = engine->ring->taken;
		const void *sample = kv_ringbuf_next(engine->ring, &sample_bytes);

		if (!sample)
			break;
		if (!kv_take_sample(engine, sample, sample_bytes, batch)) {
			engine->stats.bad_batches++;
			continue;
		}
		if (kv_response_room(batch->from) <= batch->from->in_round) {
			engine->ring->taken = before;
			kv_wake_sender(engine, batch->from, kv_ticks());
			break;
		}
		batch->from->in_round++;
		requests += batch->count;
		round->batches++;
	}
}

/* Take a batch from its sample. Return 0 if it does not say for which core it is. */
static int kv_take_sample(struct kv_engine *engine, const struct kv_sample_head *sample, uint32_t sample_bytes,
			  struct kv_taken_batch *batch)
{
	const struct kv_request *records = (const struct kv_request *)(sample + 1);
	struct kv_sample_head head;

	if (sample_bytes < sizeof(head))
		return 0;
	memcpy(&head, sample, sizeof(head)); /* read once: its writer may change it at any time */
	if (head.pair >= engine->pair_count)
		return 0;
	*batch = (struct kv_taken_batch){ records, &engine->pairs[head.pair], head.count,
					  head.has_body ? head.body_bytes : 0 };
	if (head.count > KV_BATCH_MAX ||
	    sample_bytes < sizeof(head) + head.count * sizeof(*records) + batch->body_bytes)
		batch->count = 0;
	return 1;
}

/*
 * Process the round's batches. `plain`, here and below, is a constant of enum kv_plain: except KV_NOT_PLAIN it means
 * that the engine has one store that no other thread uses, takes all requests, and gets whole batches. The usual case
 * then checks none of this per request.
 */
static void kv_round_process(struct kv_engine *engine, const struct kv_round *round)
{
	uint64_t start_ticks, now_ticks;

	if (round->batches == 0)
		return;
	start_ticks = kv_ticks();
	switch (kv_round_kind(engine)) {
	case KV_PLAIN_INDEXED:
		kv_round_run(engine, round, KV_PLAIN_INDEXED);
		break;
	case KV_PLAIN_SHORT:
		kv_round_run(engine, round, KV_PLAIN_SHORT);
		break;
	default:
		kv_round_run(engine, round, KV_NOT_PLAIN);
	}
	now_ticks = kv_ticks();
	for (uint32_t i = 0; i < round->batches; i++)
		engine->stats.wakeups +=
			kv_hand_on(round->taken[i].from, engine->id, engine->cpu, engine->flush_after_ticks, now_ticks);
	engine->stats.batches += round->batches;
	engine->stats.busy_ticks += now_ticks - start_ticks;
}

/* Return the kind of the next round. Of an inline store only lines are prefetched until a round uses its index. */
static enum kv_plain kv_round_kind(struct kv_engine *engine)
{
	const struct kv_store *store = engine->stores[0];
	int used_index;

	if (engine->partition_count != 1 || !engine->takes_all || engine->transfer_per_request ||
	    kv_store_is_shared(store))
		return KV_NOT_PLAIN;
	if (!store->short_lines)
		return KV_PLAIN_INDEXED;
	used_index = store->indexed != engine->indexed;
	engine->indexed = store->indexed;
	return used_index ? KV_NOT_PLAIN : KV_PLAIN_SHORT;
}

/* Process the round's batches and hand each one back as soon as it is done. */
KV_INLINED void kv_round_run(struct kv_engine *engine, const struct kv_round *round, int plain)
{
	struct kv_ahead ahead = { .round = round };

	kv_ahead_start(engine, &ahead, plain);
	for (uint32_t i = 0; i < round->batches; i++) {
		const struct kv_taken_batch *batch = &round->taken[i];
		struct kv_engine_pair *state = batch->from;

		kv_batch_process(engine, &ahead, batch, plain);
		state->in_round--;
		if (kv_bus_is_emulated(&engine->bus))
			kv_bus_send(&engine->bus, engine->transfer_per_request, state, batch->count, kv_ticks());
		else
			send_response_queue_to_dpu(state->pair, state->published = state->processed);
	}
}

KV_INLINED int kv_is_inline(const struct kv_store *store, int plain);
KV_INLINED int kv_is_short(const struct kv_store *store, const struct kv_request *record, int plain);
KV_INLINED const struct kv_request *kv_cursor_next(const struct kv_round *round, struct kv_cursor *cursor);
static void kv_prefetch_records(const struct kv_round *round, uint32_t batch);
KV_INLINED void kv_prefetch_bucket(struct kv_engine *engine, struct kv_ahead *ahead, int plain);
KV_INLINED void kv_prefetch_item(const struct kv_engine *engine, struct kv_ahead *ahead, struct kv_place *place,
				 int plain);

/* Start prefetching: bring each step as far ahead as it will stay. */
KV_INLINED void kv_ahead_start(struct kv_engine *engine, struct kv_ahead *ahead, int plain)
{
	kv_prefetch_records(ahead->round, 0);
	for (uint32_t i = 0; i < KV_BUCKETS_AHEAD; i++)
		kv_prefetch_bucket(engine, ahead, plain);
	for (uint32_t i = 0; i < KV_ITEMS_AHEAD; i++)
		kv_prefetch_item(engine, ahead, &ahead->places[i], plain);
}

/* Advance by one request. Return the likely place of the item of the request to be executed now. */
KV_INLINED struct kv_place kv_ahead_step(struct kv_engine *engine, struct kv_ahead *ahead, int plain)
{
	struct kv_place *next = &ahead->places[ahead->executed++ % KV_ITEMS_AHEAD];
	struct kv_place place = *next;

	kv_prefetch_bucket(engine, ahead, plain);
	kv_prefetch_item(engine, ahead, next, plain);
	return place;
}

/* Prefetch the next request's bucket, and a record farther behind. Do nothing at the round's end. */
KV_INLINED void kv_prefetch_bucket(struct kv_engine *engine, struct kv_ahead *ahead, int plain)
{
	const struct kv_request *record = kv_cursor_next(ahead->round, &ahead->buckets);
	const struct kv_store *store;
	uint64_t key_hash;

	if (__builtin_expect(!record, 0))
		return;
	__builtin_prefetch(record + KV_RECORDS_AHEAD - KV_BUCKETS_AHEAD);
	key_hash = __atomic_load_n(&record->key_hash, __ATOMIC_RELAXED);
	store = kv_store_of(engine, key_hash, plain);
	if (kv_is_short(store, record, plain))
		kv_short_prefetch(store, key_hash);
	else
		kv_store_prefetch_bucket(store, key_hash, !plain && kv_store_is_shared(store));
	if (!plain && engine->partition_count > 1)
		engine->partition_requests[kv_partition_of(engine, key_hash)]++;
}

KV_INLINED void kv_prefetch_item(const struct kv_engine *engine, struct kv_ahead *ahead, struct kv_place *place,
				 int plain)
{
	const struct kv_request *record;
	const struct kv_store *store;

	if (plain == KV_PLAIN_SHORT)
		return;
	record = kv_cursor_next(ahead->round, &ahead->items);
	if (__builtin_expect(!record, 0))
		return;
	place->key_hash = __atomic_load_n(&record->key_hash, __ATOMIC_RELAXED);
	store = kv_store_of(engine, place->key_hash, plain);
	place->word = NULL;
	if (!kv_is_short(store, record, plain))
		place->word = kv_store_prefetch_item(store, place->key_hash, !plain && kv_store_is_shared(store));
	else if (kv_short_had_long(store, place->key_hash))
		kv_store_prefetch_bucket(store, place->key_hash, kv_store_is_shared(store));
}

KV_INLINED int kv_is_inline(const struct kv_store *store, int plain)
{
	return plain == KV_PLAIN_SHORT || (!plain && store->short_lines);
}

/* Return whether a request's key belongs into a line of an inline store. In a plain round all are treated so. */
KV_INLINED int kv_is_short(const struct kv_store *store, const struct kv_request *record, int plain)
{
	if (plain)
		return plain == KV_PLAIN_SHORT;
	return kv_short_has_key(store, KV_HEADER_KEY_BYTES(__atomic_load_n(&record->header, __ATOMIC_RELAXED)));
}

/* Return the next request of this step, or NULL at the round's end. */
KV_INLINED const struct kv_request *kv_cursor_next(const struct kv_round *round, struct kv_cursor *cursor)
{
	while (__builtin_expect(cursor->next == cursor->end, 0)) {
		const struct kv_taken_batch *batch;

		if (cursor->batches == round->batches)
			return NULL;
		batch = &round->taken[cursor->batches++];
		kv_prefetch_records(round, cursor->batches);
		cursor->next = batch->records;
		cursor->end = cursor->next + batch->count;
	}
	return cursor->next++;
}

/* Prefetch the first records of a batch; kv_prefetch_bucket() prefetches the later ones. */
static void kv_prefetch_records(const struct kv_round *round, uint32_t batch)
{
	if (batch >= round->batches)
		return;
	for (uint32_t i = 0; i < KV_RECORDS_AHEAD - KV_BUCKETS_AHEAD && i < round->taken[batch].count; i++)
		__builtin_prefetch(&round->taken[batch].records[i]);
}

/* Return KV_PARTITION() by two multiplications (Lemire, Kaser, Kurz 2019), exact for 16 bits: a division takes longer
 * than finding the item. */
static inline uint32_t kv_partition_of(const struct kv_engine *engine, uint64_t key_hash)
{
	uint32_t fraction = (uint32_t)(key_hash >> 48) * engine->partition_step;

	return (uint32_t)((uint64_t)fraction * engine->partition_count >> 32);
}

KV_INLINED struct kv_store *kv_store_of(const struct kv_engine *engine, uint64_t key_hash, int plain)
{
	if (plain || engine->partition_count == 1)
		return engine->stores[0];
	return engine->stores[kv_partition_of(engine, key_hash)];
}

/* The batch at work, and its responses as they grow. */
struct kv_batch {
	struct kv_engine *engine;
	const struct kv_taken_batch *taken;
	uint8_t *values;       /* memory for long values, behind the responses */
	__u64 *likely;	       /* where the index may have the request's item, see kv_store_get8() */
	uint32_t wire_bytes;   /* bytes of the responses so far on the wire */
	uint32_t values_bytes; /* bytes of their long values */
	uint32_t room;	       /* bytes on the wire that the next response may take */
};

static inline struct kv_request kv_take_request(const struct kv_request *record);
static int kv_engine_may(const struct kv_engine *engine, uint64_t key_hash, uint32_t reads);
KV_INLINED int kv_execute_get8(struct kv_batch *batch, struct kv_request request, __u64 *likely,
			       struct kv_response *response, int plain);
static int kv_record_is_ready(const struct kv_engine_pair *state, uint32_t index);
static uint64_t kv_execute_any(struct kv_batch *batch, struct kv_request request, struct kv_response *response);

/* Process one batch: turn its records into response records. */
KV_INLINED void kv_batch_process(struct kv_engine *engine, struct kv_ahead *ahead, const struct kv_taken_batch *taken,
				 int plain)
{
	struct kv_engine_pair *state = taken->from;
	struct kv_response *responses = &state->pair->responses[KV_RECORD(state->records_taken)];
	struct kv_batch batch = { .engine = engine, .taken = taken, .values = (uint8_t *)(responses + taken->count) };
	uint32_t is_broken = taken->count == 0;
	uint32_t executed = 0;

	for (uint32_t i = 0; i < taken->count; i++) {
		struct kv_response *response = &responses[i];
		struct kv_place place = kv_ahead_step(engine, ahead, plain);
		struct kv_request request;
		__u64 *likely;

		if (!plain && engine->transfer_per_request) {
			is_broken = is_broken || !kv_record_is_ready(state, i);
			if (is_broken)
				continue;
		}
		request = kv_take_request(&taken->records[i]);
		likely = place.key_hash == request.key_hash ? place.word : NULL;
		if (!kv_execute_get8(&batch, request, likely, response, plain)) {
			uint64_t header;

			batch.likely = likely;
			batch.room =
				kv_room_for_next(batch.wire_bytes, taken->count - 1 - i, engine->response_bytes_max);
			header = kv_execute_any(&batch, request, response);
			response->header = header;
			batch.wire_bytes += kv_response_wire_bytes(header);
		}
		executed++;
		/*
		 * Nobody polls this counter: it is stored for its cost alone. The other side waits for the whole batch.
		 */
		if (!plain && engine->transfer_per_request)
			__atomic_store_n(&state->pair->response_control.ready, KV_READY(state->processed, i + 1),
					 __ATOMIC_RELEASE);
	}
	engine->stats.requests += executed;
	engine->stats.bad_batches += is_broken;
	kv_answer(state, is_broken ? 0 : batch.wire_bytes, taken->count + KV_VALUE_RECORDS(batch.values_bytes));
}

/* Read a record once: the other end may change it, and the checked values must be the ones that are used. */
static inline struct kv_request kv_take_request(const struct kv_request *record)
{
	return (struct kv_request){
		.header = __atomic_load_n(&record->header, __ATOMIC_RELAXED),
		.key_hash = __atomic_load_n(&record->key_hash, __ATOMIC_RELAXED),
		.key = __atomic_load_n(&record->key, __ATOMIC_RELAXED),
		.value = __atomic_load_n(&record->value, __ATOMIC_RELAXED),
	};
}

/* Execute the common case: GET of an 8-byte key whose value fits into the record. Return 0 for any other case. */
KV_INLINED int kv_execute_get8(struct kv_batch *batch, struct kv_request request, __u64 *likely,
			       struct kv_response *response, int plain)
{
	struct kv_engine *engine = batch->engine;
	struct kv_store *store;
	const uint8_t *long_value;
	uint32_t value_bytes;
	__u64 value;
	int result;

	if (__builtin_expect(request.header != KV_HEADER(KV_OP_GET, 0, 8, 0), 0))
		return 0;
	if (!plain && !engine->takes_all && !kv_engine_may(engine, request.key_hash, 1))
		return 0;
	store = kv_store_of(engine, request.key_hash, plain);
	if (kv_is_inline(store, plain))
		result = kv_short_get8(store, request.key_hash, request.key, 8, &value, &value_bytes,
				       !plain && kv_store_is_shared(store));
	else
		result = kv_store_get8(store, request.key_hash, request.key, 8, likely, &value, &value_bytes,
				       &long_value, !plain && kv_store_is_shared(store));
	if (__builtin_expect(value_bytes > KV_INLINE_MAX || result == KV_SHORT_ASK_INDEX, 0))
		return 0;
	engine->stats.counts.gets++;
	response->value = value;
	response->header = KV_HEADER(KV_OP_GET, result, 0, value_bytes);
	batch->wire_bytes += KV_ITEM_HEADER_BYTES + KV_ROUNDUP8(value_bytes);
	return 1;
}

/*
 * Wait for a record of the next batch, where each is handed over separately. Return 0 if it does not come in time. All
 * records of a batch are ready once a later one's are announced.
 */
static int kv_record_is_ready(const struct kv_engine_pair *state, uint32_t index)
{
	const __u64 *ready = &state->pair->request_control.ready;

	for (uint32_t turn = 0; turn < KV_READY_TURNS; turn++) {
		if ((int64_t)(__atomic_load_n(ready, __ATOMIC_ACQUIRE) - KV_READY(state->processed, index)) > 0)
			return 1;
	}
	return 0;
}

/* ---- Any operation: semantics.h decides and calls the functions below ---- */

/* A request on a key, at work. */
struct kv_task {
	struct kv_batch *batch;
	const struct kv_request *request;
	struct kv_response *response;
	struct kv_store *store;
	const uint8_t *key;
	uint32_t key_bytes;
	uint32_t value_bytes; /* of the response */
};

static uint32_t kv_execute_task(struct kv_task *task, uint32_t operation);
static uint32_t kv_execute_get(struct kv_task *task);
static uint32_t kv_execute_set(struct kv_task *task, uint32_t operation);
static uint32_t kv_execute_increment(struct kv_task *task);
static const uint8_t *kv_value_of(const struct kv_task *task);
static const uint8_t *kv_body_of(const struct kv_taken_batch *batch, uint64_t offset, uint32_t bytes);

/* kv_execute() as a function of its own, kept out of the loop over the usual requests. */
static uint64_t kv_execute_any(struct kv_batch *batch, struct kv_request request, struct kv_response *response)
{
	return kv_execute(batch, &request, response);
}

static __always_inline struct kv_operation_counts *kv_counts_of(struct kv_batch *batch)
{
	return &batch->engine->stats.counts;
}

static __always_inline const struct kv_partition_table *kv_partitions_of(const struct kv_batch *batch)
{
	return batch->engine->partitions;
}

static __always_inline int kv_is_rejected(const struct kv_batch *batch, __u64 key_hash, __u32 reads)
{
	return !batch->engine->takes_all && !kv_engine_may(batch->engine, key_hash, reads);
}

/* Return whether the engine owns the key's partition, or the access mode lets other engines do this, too. */
static int kv_engine_may(const struct kv_engine *engine, uint64_t key_hash, uint32_t reads)
{
	const struct kv_partition_table *table = engine->partitions;

	/* Acquire: the partition's new owner sees all that the old one wrote, see kv_partition_move(). */
	if (__atomic_load_n(&table->owner[kv_partition_of(engine, key_hash)], __ATOMIC_ACQUIRE) == engine->id)
		return 1;
	return kv_mode_allows(table, reads);
}

static __always_inline __u32 kv_forget_items(struct kv_batch *batch)
{
	const struct kv_engine *engine = batch->engine;

	for (uint32_t i = 0; i < engine->partition_count; i++) {
		if (engine->takes_all || __atomic_load_n(&engine->partitions->owner[i], __ATOMIC_ACQUIRE) == engine->id)
			kv_store_reset(engine->stores[i]);
	}
	return KV_SUCCESS;
}

static __always_inline __u64 kv_execute_on_key(struct kv_batch *batch, const struct kv_request *request,
					       struct kv_response *response)
{
	uint32_t operation = KV_HEADER_OPERATION(request->header);
	struct kv_task task = { .batch = batch, .request = request, .response = response };
	uint32_t result;

	task.store = kv_store_of(batch->engine, request->key_hash, 0);
	task.key_bytes = KV_HEADER_KEY_BYTES(request->header);
	task.key = (const uint8_t *)&request->key;
	if (task.key_bytes > KV_INLINE_MAX)
		task.key = kv_body_of(batch->taken, request->key, task.key_bytes);
	if (!task.key) {
		kv_counts_of(batch)->errors++;
		return KV_HEADER(operation, KV_ERROR, 0, 0);
	}
	result = kv_execute_task(&task, operation);
	return KV_HEADER(operation, result, 0, task.value_bytes);
}

/* Execute a request whose key has been found. Return an enum kv_result; task->value_bytes is the response's. */
static uint32_t kv_execute_task(struct kv_task *task, uint32_t operation)
{
	struct kv_engine_stats *stats = &task->batch->engine->stats;
	uint64_t key_hash = task->request->key_hash;

	switch (operation) {
	case KV_OP_GET:
		return kv_execute_get(task);
	case KV_OP_TEST:
		stats->tests++;
		return kv_store_test(task->store, key_hash, task->key, task->key_bytes);
	case KV_OP_DELETE:
		stats->deletes++;
		return kv_store_delete(task->store, key_hash, task->key, task->key_bytes);
	case KV_OP_INCREMENT:
		stats->increments++;
		return kv_execute_increment(task);
	default:
		return kv_execute_set(task, operation);
	}
}

/* Return kv_refuse() of the request. */
static uint32_t kv_refuse_task(struct kv_task *task, uint32_t operation)
{
	return kv_refuse(task->batch, operation, task->request->header, &task->batch->room,
			 task->batch->engine->response_bytes_max);
}

static uint32_t kv_execute_get(struct kv_task *task)
{
	struct kv_batch *batch = task->batch;
	uint8_t *value = batch->values + batch->values_bytes;
	uint32_t result = kv_refuse_task(task, KV_OP_GET);

	if (result)
		return result;
	result = kv_store_get(task->store, task->request->key_hash, task->key, task->key_bytes, value,
			      kv_room_for_value(batch->room), &task->value_bytes);
	if (result != KV_SUCCESS) {
		task->value_bytes = 0;
		return result;
	}
	if (task->value_bytes <= KV_INLINE_MAX) {
		memcpy(&task->response->value, value, task->value_bytes);
		return result;
	}
	memset(value + task->value_bytes, 0, KV_ROUNDUP8(task->value_bytes) - task->value_bytes);
	task->response->value = batch->values_bytes;
	batch->values_bytes += KV_ROUNDUP8(task->value_bytes);
	return result;
}

/* SET and ADD. */
static uint32_t kv_execute_set(struct kv_task *task, uint32_t operation)
{
	const struct kv_request *request = task->request;
	uint32_t value_bytes = KV_HEADER_VALUE_BYTES(request->header);
	const uint8_t *value;
	uint32_t refusal;

	/* The common case: kv_refuse() has nothing to check here. */
	if (operation == KV_OP_SET && task->key_bytes <= KV_INLINE_MAX && value_bytes <= KV_INLINE_MAX) {
		kv_counts_of(task->batch)->sets++;
		if (task->store->short_lines)
			return kv_short_set8(task->store, request->key_hash, request->key, task->key_bytes,
					     request->value, value_bytes);
		return kv_store_set8(task->store, request->key_hash, request->key, task->key_bytes, task->batch->likely,
				     request->value, value_bytes);
	}
	refusal = kv_refuse_task(task, operation);
	if (refusal)
		return refusal;
	value = kv_value_of(task);
	if (!value) {
		kv_counts_of(task->batch)->errors++;
		return KV_INSUFFICIENT_SPACE;
	}
	if (operation == KV_OP_ADD)
		return kv_store_add(task->store, request->key_hash, task->key, task->key_bytes, value, value_bytes);
	return kv_store_set(task->store, request->key_hash, task->key, task->key_bytes, value, value_bytes);
}

static uint32_t kv_execute_increment(struct kv_task *task)
{
	uint32_t result = kv_refuse_task(task, KV_OP_INCREMENT);
	const uint8_t *value = kv_value_of(task);
	uint64_t increment, sum;

	if (result)
		return result;
	if (!value) {
		kv_counts_of(task->batch)->errors++;
		return KV_ERROR;
	}
	memcpy(&increment, value, sizeof(increment));
	result = kv_store_increment(task->store, task->request->key_hash, task->key, task->key_bytes, increment, &sum);
	if (result == KV_SUCCESS) {
		task->response->value = sum;
		task->value_bytes = sizeof(sum);
	}
	return result;
}

/* Return the request's value, or NULL if it would be outside its packet's body. */
static const uint8_t *kv_value_of(const struct kv_task *task)
{
	uint32_t value_bytes = KV_HEADER_VALUE_BYTES(task->request->header);

	/* Behind a long key even a short value stays in the body, see kv_parse_item(). */
	if (value_bytes > KV_INLINE_MAX || (value_bytes && task->key_bytes > KV_INLINE_MAX))
		return kv_body_of(task->batch->taken, task->request->value, value_bytes);
	return (const uint8_t *)&task->request->value;
}

/* Return a long key or value in the packet's body, or NULL if there is no body or they would be outside. */
static const uint8_t *kv_body_of(const struct kv_taken_batch *batch, uint64_t offset, uint32_t bytes)
{
	if (offset > batch->body_bytes || bytes > batch->body_bytes - offset)
		return NULL;
	return (const uint8_t *)(batch->records + batch->count) + offset;
}

static void kv_engine_set_alive(struct kv_engine *engine, uint16_t alive)
{
	for (uint32_t i = 0; i < engine->pair_count; i++) {
		engine->pairs[i].pair->response_control.engine_cpu = engine->cpu;
		__atomic_store_n(&engine->pairs[i].pair->response_control.alive, alive, __ATOMIC_RELEASE);
	}
}
