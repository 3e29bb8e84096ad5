/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * host_queues.c - the host's end of its queues while the other end errs: counters out of range, samples too short,
 * entries and lengths that cannot be, records that change while they are read, answers that nobody takes, one core that
 * never pauses. And its work at the rings' ends, where batches run into the slack.
 *
 *   host_queues TEST    one of the names in `tests`
 *
 * Returns 0, or says on standard error what is wrong and returns 1.
 */
#include <pthread.h>
#include <sanitizer/asan_interface.h> /* its macros are empty in a build without the sanitizer */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi/all.h"
#include "base/hash.h"
#include "host.h"
#include "queue/ringbuf.h"
#include "store/hot_path.h"

#define RESPONSE_BYTES_MAX 1466
#define RING_BYTES (1u << 16)
#define FRAME_RECORDS KV_BODY_RECORDS(FRAME_BYTES)
#define FRAME_BYTES (KV_PACKET_HEADER_BYTES + KV_ITEM_HEADER_BYTES + 8)
#define PORT 9800
#define RING_FRAMES 64	/* frames of one ring that a communicator serves at once: KV_RING_FRAMES */
#define FRAMES_MANY 300 /* more than that, and more than there is room for answers */
#define CHANGES_TURNS 50000
#define BATCHES_MANY 500 /* batches of put_set_get(), more than there is room for responses */
#define LONG_KEY_BYTES 20
#define COUNT_OF(array) ((uint32_t)(sizeof(array) / sizeof((array)[0])))

#define CHECK(condition)                                                                     \
	do {                                                                                 \
		if (!(condition)) {                                                          \
			fprintf(stderr, "host_queues: line %d: %s\n", __LINE__, #condition); \
			exit(1);                                                             \
		}                                                                            \
	} while (0)

static struct kv_partition_table table = { .partitions = 1 };
static struct kv_engine engine;
static struct kv_queue_pair *pair;
static uint32_t next_record; /* number of the next request record, see put_next() */

/* No sockets here: a communicator takes its frames from mapped rings. */
uint32_t kv_socket_receive(struct kv_socket *socket, struct kv_frame *frames, uint32_t room)
{
	(void)socket, (void)frames, (void)room;
	return 0;
}

void kv_socket_send(struct kv_socket *socket, const struct kv_frame *frame)
{
	(void)socket, (void)frame;
}

void kv_socket_release(struct kv_socket *socket, const struct kv_frame *frame)
{
	(void)socket, (void)frame;
}

void kv_socket_flush(struct kv_socket *socket)
{
	(void)socket;
}

static void begin(struct kv_queue_pair *pairs, uint32_t pair_count, uint32_t partitions)
{
	struct kv_store_options options = { .item_count = 20000, .log_bytes = 8 << 20, .move_to_head = 32768 };

	table.partitions = partitions;
	for (uint32_t i = 0; i < partitions; i++) {
		table.owner[i] = i;
		engine.stores[i] = kv_store_create(&options);
		CHECK(engine.stores[i]);
	}
	engine.partitions = &table;
	engine.partition_count = partitions;
	engine.response_bytes_max = RESPONSE_BYTES_MAX;
	engine.pair_count = pair_count;
	for (uint32_t i = 0; i < pair_count; i++)
		engine.pairs[i].pair = &pairs[i];
	pair = pairs;
	CHECK(kv_engine_begin(&engine) == 0);
}

static struct kv_queue_pair *new_pairs(uint32_t count)
{
	struct kv_queue_pair *pairs = aligned_alloc(64, count * sizeof(*pairs));

	CHECK(pairs);
	memset(pairs, 0, count * sizeof(*pairs));
	return pairs;
}

/* ---- The other end: batches in, answers out ---- */

/* A batch as the parser leaves it: records, and the packet's body if a key or value is long. */
struct draft {
	uint32_t count;
	uint32_t has_body;
	uint32_t body_bytes;
	struct kv_request records[KV_BATCH_MAX];
	uint8_t body[KV_FRAME_MAX];
};

/* Append a request, as kv_parse_item() would. */
static void add_request(struct draft *draft, uint32_t operation, const void *key, uint32_t key_bytes, const void *value,
			uint32_t value_bytes)
{
	struct kv_request *record = &draft->records[draft->count++];
	uint32_t key_offset = draft->body_bytes + KV_ITEM_HEADER_BYTES;
	uint32_t value_offset = key_offset + KV_ROUNDUP8(key_bytes);

	*record = (struct kv_request){ .header = KV_HEADER(operation, 0, key_bytes, value_bytes),
				       .key_hash = kv_hash(key, key_bytes),
				       .key = key_offset,
				       .value = value_offset };
	draft->body_bytes = value_offset + KV_ROUNDUP8(value_bytes);
	CHECK(draft->body_bytes <= sizeof(draft->body));
	memcpy(draft->body + key_offset, key, key_bytes);
	memcpy(draft->body + value_offset, value, value_bytes);
	draft->has_body |= key_bytes > KV_INLINE_MAX || value_bytes > KV_INLINE_MAX;
	if (key_bytes <= KV_INLINE_MAX)
		record->key = kv_word_of(key, key_bytes);
	if (key_bytes <= KV_INLINE_MAX && value_bytes <= KV_INLINE_MAX)
		record->value = kv_word_of(value, value_bytes);
}

/* Make a batch of GETs of short keys that are in no store. */
static void make_gets(struct draft *draft, uint32_t requests)
{
	memset(draft, 0, sizeof(*draft));
	for (uint64_t key = 0; key < requests; key++)
		add_request(draft, KV_OP_GET, &key, sizeof(key), "", 0);
}

/* Publish a batch whose records begin at this number. */
static void put_batch(struct kv_queue_pair *to, const struct draft *draft, uint32_t first_record)
{
	struct kv_request *records = &to->requests[first_record % KV_RECORDS];
	uint32_t number = to->request_control.published;

	memcpy(records, draft->records, draft->count * sizeof(*records));
	if (draft->has_body)
		memcpy(records + draft->count, draft->body, draft->body_bytes);
	to->batches[number % KV_BATCHES] = (struct kv_batch_entry){
		.count = (uint8_t)draft->count,
		.has_body = (uint8_t)draft->has_body,
		.body_bytes = (uint16_t)(draft->has_body ? draft->body_bytes : 0),
		.first_record = first_record,
	};
	to->request_control.published = number + 1;
}

static const struct kv_answer_entry *answer_of(const struct kv_queue_pair *from, uint32_t number)
{
	return &from->answers[number % KV_BATCHES];
}

static const struct kv_response *responses_of(const struct kv_queue_pair *from, uint32_t number)
{
	return &from->responses[answer_of(from, number)->first_record % KV_RECORDS];
}

/* Take all answers. */
static void take_answers(struct kv_queue_pair *from)
{
	from->request_control.answered = from->response_control.published;
}

static void drain(void)
{
	while (kv_engine_turn(&engine))
		continue;
}

static uint32_t value_bytes_of(uint32_t seed)
{
	return KV_INLINE_MAX + 1 + seed % 1000 * 37 % 1400;
}

static void make_value(uint8_t *value, uint32_t seed)
{
	memset(value, 0, KV_FRAME_MAX);
	for (uint32_t i = 0; i < value_bytes_of(seed); i++)
		value[i] = (uint8_t)(seed * 31 + i * 7 + (i >> 8));
}

/* Make a batch of one SET of a long key with a long value, and one GET of it. */
static void make_set_get(struct draft *draft, uint32_t seed)
{
	uint8_t key[LONG_KEY_BYTES] = { 0 }, value[KV_FRAME_MAX];

	memcpy(key, &seed, sizeof(seed));
	make_value(value, seed);
	memset(draft, 0, sizeof(*draft));
	add_request(draft, KV_OP_SET, key, sizeof(key), value, value_bytes_of(seed));
	add_request(draft, KV_OP_GET, key, sizeof(key), "", 0);
}

static void put_set_get(struct kv_queue_pair *to, uint32_t seed, uint32_t first_record)
{
	struct draft draft;

	make_set_get(&draft, seed);
	put_batch(to, &draft, first_record);
}

/* Publish such a batch behind the one before, with its number as its seed. */
static void put_next(struct kv_queue_pair *to)
{
	uint32_t number = to->request_control.published;

	put_set_get(to, number, next_record);
	next_record = to->batches[number % KV_BATCHES].first_record + 2 +
		      KV_BODY_RECORDS(to->batches[number % KV_BATCHES].body_bytes);
}

static void check_set_get(const struct kv_queue_pair *from, uint32_t number, uint32_t seed)
{
	const struct kv_answer_entry *answer = answer_of(from, number);
	const struct kv_response *responses = responses_of(from, number);
	uint32_t value_bytes = value_bytes_of(seed), room = KV_ROUNDUP8(value_bytes);
	const uint8_t *values = (const uint8_t *)(responses + 2);
	uint8_t value[KV_FRAME_MAX];

	make_value(value, seed);
	CHECK(answer->wire_bytes == 2 * KV_ITEM_HEADER_BYTES + room);
	CHECK(answer->records == 2 + KV_VALUE_RECORDS(room));
	CHECK(responses[0].header == KV_HEADER(KV_OP_SET, KV_SUCCESS, 0, 0));
	CHECK(responses[1].header == KV_HEADER(KV_OP_GET, KV_SUCCESS, 0, value_bytes));
	CHECK(memcmp(values + responses[1].value, value, room) == 0);
}

/* Check the answers to batches of put_next() that have not been taken. */
static void check_parked(const struct kv_queue_pair *from)
{
	for (uint32_t number = from->request_control.answered; number != from->response_control.published; number++)
		check_set_get(from, number, number);
}

static uint32_t response_records_in_use(const struct kv_queue_pair *from)
{
	uint32_t records = 0;

	for (uint32_t number = from->request_control.answered; number != from->response_control.published; number++)
		records += answer_of(from, number)->records;
	return records;
}

/* Check that there is no room for one more batch's responses, and was before the last one. */
static void check_is_full(const struct kv_queue_pair *from)
{
	uint32_t in_use = response_records_in_use(from);
	uint32_t last = answer_of(from, from->response_control.published - 1)->records;

	CHECK(in_use <= KV_RECORDS && in_use + KV_BATCH_RECORDS_MAX > KV_RECORDS);
	CHECK(in_use - last + KV_BATCH_RECORDS_MAX <= KV_RECORDS);
}

/* Call `turn` with `answered` out of range: behind what is published, and too far before it. */
static void answer_out_of_range(struct kv_queue_pair *from, void (*turn)(void))
{
	uint32_t answered = from->request_control.answered, published = from->response_control.published;
	const uint32_t wrong[] = { published + 1, published + KV_BATCHES, published - KV_BATCHES - 1,
				   published + (1u << 31) };

	for (uint32_t i = 0; i < COUNT_OF(wrong); i++) {
		from->request_control.answered = wrong[i];
		turn();
		CHECK(from->response_control.published == published);
	}
	from->request_control.answered = answered;
}

static void check_idle_turn(void)
{
	CHECK(kv_engine_turn(&engine) == 0);
}

/* Go on with batch `number`, and with this number of a response record: so an engine before left the pair. */
static void resume_at(uint32_t number, uint32_t response_record)
{
	pair->request_control.published = pair->response_control.published = number;
	pair->request_control.answered = number - 1;
	pair->answers[(number - 1) % KV_BATCHES] = (struct kv_answer_entry){ 0, 1, response_record - 1 };
	CHECK(kv_engine_begin(&engine) == 0);
}

/* ---- A counter out of range is nothing, until it is in range again ---- */

static void turn_at(uint32_t published)
{
	pair->request_control.published = published;
	kv_engine_turn(&engine);
}

static void test_counter(void)
{
	uint64_t key = 1, value = 2;
	struct draft draft = { 0 };

	begin(new_pairs(1), 1, 1);
	add_request(&draft, KV_OP_SET, &key, sizeof(key), &value, sizeof(value));
	put_batch(pair, &draft, 0);
	turn_at(KV_BATCHES + 1);
	kv_engine_turn(&engine);
	CHECK(engine.stats.bad_batches == 1 && pair->response_control.published == 0);
	turn_at(-1u);
	CHECK(engine.stats.bad_batches == 2 && pair->response_control.published == 0);
	turn_at(1);
	CHECK(engine.stats.counts.sets == 1 && pair->response_control.published == 1);
	CHECK(KV_HEADER_RESULT(pair->responses[0].header) == KV_SUCCESS && engine.stats.bad_batches == 2);
	/* As many as a queue pair holds are in range. */
	take_answers(pair);
	while (pair->request_control.published != 1 + KV_BATCHES)
		put_batch(pair, &draft, 0);
	drain();
	CHECK(engine.stats.counts.sets == 1 + KV_BATCHES && pair->response_control.published == 1 + KV_BATCHES);
	CHECK(engine.stats.bad_batches == 2);
}

/* ---- Rounds: each queue pair has its share, and all have a turn ---- */

/* Take all answers, so that there is room for a whole round's, and publish two rounds of batches. */
static void fill(struct kv_queue_pair *to, uint32_t requests)
{
	struct draft draft;

	take_answers(to);
	make_gets(&draft, requests);
	while (to->request_control.published - to->response_control.published < 2 * KV_ROUND_BATCHES)
		put_batch(to, &draft, 0);
}

static void check_round(struct kv_queue_pair *pairs, uint32_t requests, uint32_t first, uint32_t second)
{
	uint32_t next = engine.next_pair;
	const __u32 *published = &pairs[next].response_control.published;
	const __u32 *published_second = &pairs[!next].response_control.published;
	uint32_t before = *published, before_second = *published_second;

	for (uint32_t i = 0; i < 2; i++)
		fill(&pairs[i], requests);
	CHECK(kv_engine_turn(&engine) == first + second);
	CHECK(*published - before == first && *published_second - before_second == second);
	drain();
}

/* Small batches fill the round before the last pairs have their turn: then the next one begins with one of those. */
static void check_turns(struct kv_queue_pair *pairs)
{
	uint32_t before[3];

	for (uint32_t i = 0; i < 3; i++)
		before[i] = pairs[i].response_control.published;
	for (uint32_t turn = 0; turn < 3; turn++) {
		for (uint32_t i = 0; i < 3; i++)
			fill(&pairs[i], 1);
		CHECK(kv_engine_turn(&engine) == KV_ROUND_BATCHES);
	}
	for (uint32_t i = 0; i < 3; i++)
		CHECK(pairs[i].response_control.published - before[i] == KV_ROUND_BATCHES);
	drain();
}

static void check_empty_batches(struct kv_queue_pair *from, uint32_t room)
{
	fill(from, 3);
	for (uint32_t i = 0; i < 2 * KV_ROUND_BATCHES; i += 2)
		from->batches[(from->response_control.published + i) % KV_BATCHES].count = 0;
	CHECK(kv_engine_turn(&engine) == room && engine.stats.bad_batches == room / 2);
	drain();
	CHECK(engine.stats.bad_batches == KV_ROUND_BATCHES);
	fill(from, 0);
	CHECK(kv_engine_turn(&engine) == room && engine.stats.bad_batches == KV_ROUND_BATCHES + room);
	drain();
	CHECK(engine.stats.bad_batches == 3 * KV_ROUND_BATCHES && kv_engine_turn(&engine) == 0);
}

static void test_rounds(void)
{
	struct kv_queue_pair *pairs = new_pairs(3);
	uint32_t full = KV_ROUND_REQUESTS / KV_BATCH_MAX, less_full = KV_ROUND_REQUESTS / (KV_BATCH_MAX - 1) + 1;
	uint32_t room = KV_RECORDS / KV_BATCH_RECORDS_MAX; /* batches of one pair whose responses have room */

	if (room > KV_ROUND_BATCHES)
		room = KV_ROUND_BATCHES;
	begin(pairs, 2, 1);
	/* The share of each, to the batch that goes over it. */
	check_round(pairs, KV_BATCH_MAX, full, full);
	check_round(pairs, KV_BATCH_MAX - 1, less_full, less_full);
	/* Of small batches, as many as have room for their responses, and as the round has. */
	check_round(pairs, 1, room, KV_ROUND_BATCHES - room);
	engine.pair_count = 3;
	engine.pairs[2].pair = &pairs[2];
	CHECK(kv_engine_begin(&engine) == 0);
	check_turns(pairs);
	/* Empty batches among others, and a round of nothing else. */
	check_empty_batches(&pairs[0], room);
	free(pairs);
}

/* ---- Samples of a BPF ring buffer ---- */

static uint8_t ring_data[2 * RING_BYTES] __attribute__((aligned(64)));
static uint64_t consumed, produced;
static struct kv_ringbuf ring_buffer;

static void begin_ring_buffer(void)
{
	ring_buffer = (struct kv_ringbuf){
		.consumer = &consumed, .producer = &produced, .data = ring_data, .bytes = RING_BYTES
	};
	engine.ring = &ring_buffer;
}

/* The data are mapped twice, so that no sample wraps: here a sample that would is written to both places. */
static void put_sample(const void *sample, uint32_t bytes)
{
	uint64_t start = produced & (RING_BYTES - 1), all = bytes + BPF_RINGBUF_HDR_SZ;

	memcpy(ring_data + start, &bytes, sizeof(bytes));
	memcpy(ring_data + start + BPF_RINGBUF_HDR_SZ, sample, bytes);
	if (start + all > RING_BYTES)
		memcpy(ring_data, ring_data + RING_BYTES, start + all - RING_BYTES);
	produced += (all + 7) & ~7ULL;
}

static uint32_t make_sample(uint8_t *sample, const struct draft *draft, uint32_t number)
{
	struct kv_sample_head head = { .count = (uint8_t)draft->count,
				       .has_body = (uint8_t)draft->has_body,
				       .body_bytes = (uint16_t)(draft->has_body ? draft->body_bytes : 0),
				       .pair = (uint16_t)number };
	uint32_t record_bytes = draft->count * (uint32_t)sizeof(draft->records[0]);

	memcpy(sample, &head, sizeof(head));
	memcpy(sample + sizeof(head), draft->records, record_bytes);
	memcpy(sample + sizeof(head) + record_bytes, draft->body, head.body_bytes);
	return (uint32_t)sizeof(head) + record_bytes + head.body_bytes;
}

static void test_samples(void)
{
	struct {
		struct kv_sample_head head;
		struct kv_request record;
	} sample = { .record.header = KV_HEADER(KV_OP_TEST, 0, 8, 0) };

	begin_ring_buffer();
	begin(new_pairs(1), 1, 1);
	/* Shorter than its count says: an answer without responses, and its room is given back. */
	sample.head.count = 2;
	put_sample(&sample, sizeof(sample));
	kv_engine_turn(&engine);
	CHECK(engine.stats.bad_batches == 1 && pair->response_control.published == 1 && consumed == produced);
	CHECK(pair->answers[0].wire_bytes == 0);
	/* From a core that there is not, or too short to say: nobody to answer. */
	sample.head.pair = 1;
	put_sample(&sample, sizeof(sample));
	put_sample(&sample, 2);
	put_sample(&sample, sizeof(sample.head) - 1);
	kv_engine_turn(&engine);
	CHECK(engine.stats.bad_batches == 4 && pair->response_control.published == 1 && consumed == produced);
	/* The next one has an entry of its own. */
	sample.head.count = 1;
	sample.head.pair = 0;
	put_sample(&sample, sizeof(sample));
	kv_engine_turn(&engine);
	CHECK(engine.stats.bad_batches == 4 && pair->response_control.published == 2 && consumed == produced);
	CHECK(answer_of(pair, 1)->wire_bytes == KV_ITEM_HEADER_BYTES);
	CHECK(responses_of(pair, 1)->header == KV_HEADER(KV_OP_TEST, KV_NOT_FOUND, 0, 0));
}

/* ---- The rings' ends: a batch that begins at any of the last indices runs into the slack ---- */

static const uint32_t numbers[] = { 1, KV_BATCHES, -2u, 0 };

/* The entries at the start, which the slack stands for, stay as they are. */
static void fill_start(uint8_t byte)
{
	memset(pair->requests, byte, KV_REQUEST_SLACK * sizeof(pair->requests[0]));
	memset(pair->responses, byte, KV_RESPONSE_SLACK * sizeof(pair->responses[0]));
}

static void check_start(uint8_t byte, uint32_t records)
{
	const uint8_t *responses = (const uint8_t *)pair->responses;

	for (uint32_t i = 0; i < records * sizeof(pair->responses[0]); i++)
		CHECK(responses[i] == byte);
}

/* Two batches at a time: the second one's responses follow those of the first one. */
static void check_at(uint32_t number, uint32_t request_record, uint32_t response_record, uint32_t seed)
{
	uint32_t second;

	resume_at(number, response_record);
	fill_start((uint8_t)seed);
	put_set_get(pair, seed, request_record);
	put_set_get(pair, seed + 1, request_record - KV_BATCH_RECORDS_MAX);
	CHECK(kv_engine_turn(&engine) == 2);
	CHECK(answer_of(pair, number)->first_record == response_record);
	CHECK(answer_of(pair, number + 1)->first_record == response_record + answer_of(pair, number)->records);
	check_set_get(pair, number, seed);
	check_set_get(pair, number + 1, seed + 1);
	second = answer_of(pair, number + 1)->first_record % KV_RECORDS;
	check_start((uint8_t)seed, second < KV_RESPONSE_SLACK ? second : KV_RESPONSE_SLACK);
}

/* Rings that go round several times by themselves, and numbers past 2^32, with some answers always parked. */
static void check_laps(uint32_t parked)
{
	uint32_t number = -2000u;

	resume_at(number, 0);
	next_record = -5000u;
	put_next(pair);
	kv_engine_turn(&engine);
	pair->request_control.answered = number; /* from here on all that is parked is from put_next() */
	for (uint32_t i = 0; i < 2000; i++) {
		for (uint32_t j = 0; j < 1 + i % 5; j++)
			put_next(pair);
		drain();
		CHECK(pair->response_control.published == pair->request_control.published);
		check_parked(pair);
		if (pair->response_control.published - pair->request_control.answered > parked)
			pair->request_control.answered = pair->response_control.published - parked;
	}
	CHECK(pair->response_control.published == number + 1 + 2000 * 3 && engine.stats.bad_batches == 0);
}

/* The longest request and the longest response, each from the last index on. */
static void check_longest(void)
{
	struct draft set = { 0 }, get = { 0 };
	uint8_t value[KV_VALUE_MAX];
	uint64_t key = 1;

	for (uint32_t i = 0; i < sizeof(value); i++)
		value[i] = (uint8_t)(i * 13 + (i >> 8));
	add_request(&set, KV_OP_SET, &key, sizeof(key), value, sizeof(value));
	add_request(&get, KV_OP_GET, &key, sizeof(key), "", 0);
	engine.response_bytes_max = KV_FRAME_MAX - KV_PACKET_HEADER_BYTES;
	resume_at(1, KV_RECORDS - 2); /* the SET's response takes one record */
	put_batch(pair, &set, KV_RECORDS - 1);
	put_batch(pair, &get, 0);
	CHECK(kv_engine_turn(&engine) == 2 && answer_of(pair, 2)->first_record == KV_RECORDS - 1);
	CHECK(responses_of(pair, 1)->header == KV_HEADER(KV_OP_SET, KV_SUCCESS, 0, 0));
	CHECK(responses_of(pair, 2)->header == KV_HEADER(KV_OP_GET, KV_SUCCESS, 0, KV_VALUE_MAX));
	CHECK(memcmp(responses_of(pair, 2) + 1, value, sizeof(value)) == 0);
	engine.response_bytes_max = RESPONSE_BYTES_MAX;
}

static void test_wrap(void)
{
	uint32_t seed = 0;

	begin(new_pairs(1), 1, 1);
	/* A record number just below 2^32 has the same index as one just below KV_RECORDS. */
	for (uint32_t i = 0; i < COUNT_OF(numbers); i++) {
		for (uint32_t before = 1; before <= KV_BATCH_RECORDS_MAX / 2; before++) {
			uint32_t end = i % 2 ? 0 : KV_RECORDS;

			check_at(numbers[i], end - before, KV_RECORDS / 2, seed++);
			check_at(numbers[i], 4096, end - before, seed++);
			check_at(numbers[i], end - before, end - before, seed++);
		}
	}
	CHECK(engine.stats.bad_batches == 0);
	check_longest();
	check_laps(1);
	check_laps(100);
}

/* ---- Answers that nobody takes: batches wait in the queue pair ---- */

static void test_no_room(void)
{
	struct kv_queue_pair *pairs = new_pairs(2);

	begin(pairs, 2, 1);
	for (uint32_t i = 0; i < BATCHES_MANY; i++)
		put_next(pair);
	CHECK(next_record < KV_RECORDS); /* as many as the other end can publish, too */
	drain();
	CHECK(pair->response_control.published < BATCHES_MANY);
	check_is_full(pair);
	/* Another pair is served, whether its turn comes first or second. */
	for (uint32_t i = 0; i < 4; i++) {
		put_set_get(&pairs[1], i, i * KV_BATCH_RECORDS_MAX);
		engine.next_pair = i % 2;
		CHECK(kv_engine_turn(&engine) == 1);
		check_set_get(&pairs[1], i, i);
	}
	answer_out_of_range(pair, check_idle_turn);
	check_parked(pair);
	/* As responses leave, some at a time, it goes on. */
	while (pair->response_control.published != BATCHES_MANY) {
		uint32_t before = pair->response_control.published;

		pair->request_control.answered += 15;
		drain();
		CHECK(pair->response_control.published > before);
		if (pair->response_control.published != BATCHES_MANY)
			check_is_full(pair);
		check_parked(pair);
	}
	CHECK(engine.stats.bad_batches == 0 && engine.stats.counts.sets == BATCHES_MANY + 4);
	free(pairs);
}

static uint32_t put_set_get_sample(uint32_t number, uint32_t seed)
{
	uint8_t sample[sizeof(struct kv_sample_head) + sizeof(struct draft)];
	struct draft draft;
	uint32_t bytes;

	make_set_get(&draft, seed);
	bytes = make_sample(sample, &draft, number);
	put_sample(sample, bytes);
	return bytes;
}

static void test_no_room_samples(void)
{
	struct kv_queue_pair *pairs = new_pairs(2);
	uint32_t sent = 0;
	uint64_t waits;

	begin_ring_buffer();
	begin(pairs, 2, 1);
	while (consumed == produced && sent < BATCHES_MANY) {
		for (uint32_t i = 0; i < 10; i++) /* several at a time: those of one round share the room */
			put_set_get_sample(0, sent++);
		drain();
	}
	check_is_full(pair);
	CHECK(pair->response_control.published < sent);
	/* A ring buffer is one queue: the other core's sample waits behind the one without room. */
	put_set_get_sample(1, 7);
	waits = consumed;
	check_idle_turn();
	answer_out_of_range(pair, check_idle_turn);
	CHECK(consumed == waits && pairs[1].response_control.published == 0);
	check_parked(pair);
	/* As responses leave, it goes on, and no sample is lost. */
	pair->request_control.answered += 60;
	drain();
	CHECK(consumed == produced && pair->response_control.published == sent);
	check_parked(pair);
	check_set_get(&pairs[1], 0, 7);
	CHECK(engine.stats.bad_batches == 0 && engine.stats.counts.sets == sent + 1);
	free(pairs);
}

/* ---- Hostile entries, records and samples ---- */

#define PICK(array) ((array)[noise() % COUNT_OF(array)])

static uint32_t noise(void)
{
	static uint64_t state = 88172645463325252ULL;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 32);
}

static void make_noise(struct kv_request *records, uint32_t count)
{
	static const uint32_t key_bytes[] = { 0, 1, 8, 9, KV_KEY_MAX };
	static const uint32_t value_bytes[] = { 0, 7, 8, 9, 1400, KV_VALUE_MAX, KV_VALUE_MAX + 1, 0xffffff };
	static const uint64_t offsets[] = { 0,
					    1,
					    8,
					    100,
					    KV_FRAME_MAX - KV_KEY_MAX,
					    KV_FRAME_MAX - 9,
					    KV_FRAME_MAX,
					    UINT16_MAX,
					    UINT32_MAX,
					    1ULL << 32,
					    1ULL << 63,
					    -1ULL << 12,
					    -1ULL };

	for (uint32_t i = 0; i < count; i++)
		records[i] = (struct kv_request){
			.header = KV_HEADER(noise() % 10, noise() & 0xff, PICK(key_bytes), PICK(value_bytes)),
			.key_hash = noise() % 64,
			.key = PICK(offsets),
			.value = PICK(offsets),
		};
}

/* Check that an answer agrees with its responses, whatever they are. */
static void check_is_sound(const struct kv_queue_pair *from, uint32_t number, uint32_t count)
{
	const struct kv_answer_entry *answer = answer_of(from, number);
	const struct kv_response *responses = responses_of(from, number);
	uint32_t wire_bytes = 0, values_bytes = 0;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t value_bytes = KV_HEADER_VALUE_BYTES(responses[i].header);

		CHECK(KV_HEADER_KEY_BYTES(responses[i].header) == 0 && value_bytes <= KV_VALUE_MAX);
		CHECK(KV_HEADER_RESULT(responses[i].header) <= KV_REJECTED);
		wire_bytes += KV_ITEM_HEADER_BYTES + KV_ROUNDUP8(value_bytes);
		if (value_bytes <= KV_INLINE_MAX)
			continue;
		CHECK(responses[i].value == values_bytes);
		values_bytes += KV_ROUNDUP8(value_bytes);
	}
	CHECK(answer->wire_bytes == wire_bytes && answer->records == count + KV_VALUE_RECORDS(values_bytes));
	CHECK(answer->records <= KV_BATCH_RECORDS_MAX);
}

static void check_hostile_entry(struct kv_batch_entry entry)
{
	uint32_t number = pair->request_control.published, count = entry.count <= KV_BATCH_MAX ? entry.count : 0;
	uint64_t bad_batches = engine.stats.bad_batches, requests = engine.stats.requests;

	pair->batches[number % KV_BATCHES] = entry;
	pair->request_control.published++;
	CHECK(kv_engine_turn(&engine) == 1 && pair->response_control.published == number + 1);
	CHECK(engine.stats.bad_batches - bad_batches == (count == 0) && engine.stats.requests - requests == count);
	check_is_sound(pair, number, count);
}

/* Every field at its extremes, over noise. Memory behind the requests is poisoned: no batch may reach that far. */
static void check_hostile_entries(void)
{
	static const uint8_t counts[] = { 0, 1, KV_BATCH_MAX, KV_BATCH_MAX + 1, 255 }, has_body[] = { 0, 1, 255 };
	static const uint16_t body_bytes[] = { 0, 1, KV_FRAME_MAX, KV_FRAME_MAX + 1, UINT16_MAX };
	static const uint32_t first_records[] = { 0, KV_RECORDS - 1, KV_RECORDS, 1u << 31, -1u };
	uint32_t combinations = COUNT_OF(counts) * COUNT_OF(has_body) * COUNT_OF(body_bytes) * COUNT_OF(first_records);

	for (uint32_t i = 0; i < 8 * combinations; i++) {
		struct kv_batch_entry entry = { .count = counts[i % 5],
						.has_body = has_body[i / 5 % 3],
						.body_bytes = body_bytes[i / 15 % 5],
						.first_record = first_records[i / 75 % 5] };

		make_noise(&pair->requests[entry.first_record % KV_RECORDS], KV_REQUEST_SLACK);
		ASAN_POISON_MEMORY_REGION(pair->responses, 64 * sizeof(pair->responses[0]));
		engine.response_bytes_max = i % 4 < 2 ? RESPONSE_BYTES_MAX : KV_FRAME_MAX - KV_PACKET_HEADER_BYTES;
		resume_at(i + 1, i % 2 ? 5000 : KV_RECORDS - 1);
		check_hostile_entry(entry);
		ASAN_UNPOISON_MEMORY_REGION(pair->responses, 64 * sizeof(pair->responses[0]));
	}
}

/* One request whose key or value is just inside its packet's body, or outside. */
static const struct {
	uint32_t operation, key_bytes, value_bytes;
	uint64_t key, value;
	uint32_t has_body, body_bytes, result;
} hostile_records[] = {
	{ KV_OP_GET, 0, 0, 0, 0, 1, 100, KV_ERROR },
	{ KV_OP_GET, 255, 0, 0, 0, 0, 0, KV_ERROR },
	{ KV_OP_GET, 255, 0, 0, 0, 0, KV_FRAME_MAX, KV_ERROR },
	{ KV_OP_GET, 255, 0, KV_FRAME_MAX - 255, 0, 1, KV_FRAME_MAX, KV_NOT_FOUND },
	{ KV_OP_GET, 255, 0, KV_FRAME_MAX - 254, 0, 1, KV_FRAME_MAX, KV_ERROR },
	{ KV_OP_GET, 255, 0, -255ULL, 0, 1, KV_FRAME_MAX, KV_ERROR },
	{ KV_OP_GET, 255, 0, 1ULL << 32, 0, 1, KV_FRAME_MAX, KV_ERROR },
	{ KV_OP_GET, 255, 0, 0, 0, 1, KV_FRAME_MAX + 1, KV_ERROR },
	{ KV_OP_TEST, 9, 0, 0, 0, 255, 9, KV_NOT_FOUND },
	{ KV_OP_TEST, 9, 0, 1, 0, 255, 9, KV_ERROR },
	{ KV_OP_DELETE, 9, 0, 10, 0, 1, 9, KV_ERROR },
	{ KV_OP_SET, 8, 9, 1, 0, 0, 0, KV_INSUFFICIENT_SPACE },
	{ KV_OP_SET, 8, 9, 1, 0, 0, UINT16_MAX, KV_INSUFFICIENT_SPACE },
	{ KV_OP_SET, 8, 9, 1, 0, 255, UINT16_MAX, KV_INSUFFICIENT_SPACE },
	{ KV_OP_SET, 8, 9, 1, 0, 1, 8, KV_INSUFFICIENT_SPACE },
	{ KV_OP_SET, 8, 9, 1, 1, 1, 9, KV_INSUFFICIENT_SPACE },
	{ KV_OP_SET, 8, 9, 1, -1ULL, 1, KV_FRAME_MAX, KV_INSUFFICIENT_SPACE },
	{ KV_OP_ADD, 8, 9, 1, KV_FRAME_MAX - 8, 1, KV_FRAME_MAX, KV_INSUFFICIENT_SPACE },
	{ KV_OP_ADD, 8, 9, 1, KV_FRAME_MAX - 9, 1, KV_FRAME_MAX, KV_SUCCESS },
	{ KV_OP_SET, 8, 9, 2, 0, 1, 9, KV_SUCCESS },
	{ KV_OP_SET, 9, 1, 0, 9, 1, 9, KV_INSUFFICIENT_SPACE },
	{ KV_OP_SET, 9, 1, 0, 9, 1, 10, KV_SUCCESS },
	{ KV_OP_SET, 8, 0xffffff, 3, 0, 1, KV_FRAME_MAX, KV_INSUFFICIENT_SPACE },
	{ KV_OP_SET, 8, RESPONSE_BYTES_MAX, 3, 0, 1, KV_FRAME_MAX, KV_INSUFFICIENT_SPACE },
	{ KV_OP_INCREMENT, 8, 9, 1, 0, 1, KV_FRAME_MAX, KV_ERROR },
	{ KV_OP_INCREMENT, 9, 8, 0, 2, 1, 9, KV_ERROR },
	{ 9, 9, 9, -1ULL, -1ULL, 255, UINT16_MAX, KV_NOT_SUPPORTED },
};

static void check_hostile_records(void)
{
	for (uint32_t i = 0; i < COUNT_OF(hostile_records); i++) {
		uint32_t number = i + 1, record = KV_RECORDS - 1;

		resume_at(number, 5000);
		kv_store_reset(engine.stores[0]);
		pair->requests[record] = (struct kv_request){
			.header = KV_HEADER(hostile_records[i].operation, 0, hostile_records[i].key_bytes,
					    hostile_records[i].value_bytes),
			.key_hash = 5,
			.key = hostile_records[i].key,
			.value = hostile_records[i].value,
		};
		check_hostile_entry((struct kv_batch_entry){ 1, (uint8_t)hostile_records[i].has_body,
							     (uint16_t)hostile_records[i].body_bytes, record });
		if (KV_HEADER_RESULT(responses_of(pair, number)->header) == hostile_records[i].result)
			continue;
		fprintf(stderr, "host_queues: hostile record %u: result %u\n", i,
			KV_HEADER_RESULT(responses_of(pair, number)->header));
		exit(1);
	}
}

/* A sample with this head, of this length, over noise. Memory behind it is poisoned. */
static void check_hostile_sample(struct kv_sample_head head, uint32_t bytes)
{
	static struct kv_request sample[1 + KV_BATCH_MAX + KV_BODY_RECORDS(KV_FRAME_MAX)];
	uint32_t number = pair->response_control.published, body_bytes = head.has_body ? head.body_bytes : 0;
	uint64_t bad_batches = engine.stats.bad_batches;
	int is_answered = bytes >= sizeof(head) && head.pair == 0;
	int is_good = is_answered && head.count >= 1 && head.count <= KV_BATCH_MAX &&
		      bytes >= sizeof(head) + head.count * sizeof(sample[0]) + body_bytes;

	make_noise(sample, COUNT_OF(sample));
	memcpy(sample, &head, sizeof(head));
	produced = consumed = ring_buffer.taken = ring_buffer.produced = 0;
	put_sample(sample, bytes);
	ASAN_POISON_MEMORY_REGION(ring_data + produced, sizeof(ring_data) - produced);
	CHECK(kv_engine_turn(&engine) == (uint32_t)is_answered && consumed == produced);
	ASAN_UNPOISON_MEMORY_REGION(ring_data, sizeof(ring_data));
	CHECK(pair->response_control.published == number + (uint32_t)is_answered);
	CHECK(engine.stats.bad_batches - bad_batches == (uint64_t)!is_good);
	if (is_answered)
		check_is_sound(pair, number, is_good ? head.count : 0);
}

static void check_hostile_samples(void)
{
	static const uint8_t counts[] = { 0, 1, 2, KV_BATCH_MAX, KV_BATCH_MAX + 1, 255 }, has_body[] = { 0, 1, 255 };
	static const uint16_t body_bytes[] = { 0, 1, KV_FRAME_MAX, KV_FRAME_MAX + 1, UINT16_MAX };
	static const uint16_t pairs[] = { 0, 0, 0, 1, UINT16_MAX };
	static const uint32_t sizes[] = { 0,
					  1,
					  31,
					  32,
					  63,
					  64,
					  65,
					  32 + 32 * KV_BATCH_MAX - 1,
					  32 + 32 * KV_BATCH_MAX,
					  32 + 32 * KV_BATCH_MAX + KV_FRAME_MAX - 1,
					  32 + 32 * KV_BATCH_MAX + KV_FRAME_MAX };

	begin_ring_buffer();
	for (uint32_t i = 0; i < 20000; i++) {
		struct kv_sample_head head = { .count = PICK(counts),
					       .has_body = PICK(has_body),
					       .body_bytes = PICK(body_bytes),
					       .pair = PICK(pairs) };

		check_hostile_sample(head, PICK(sizes));
		pair->request_control.answered = pair->response_control.published - (i % 3 != 0);
	}
}

static void test_hostile(void)
{
	begin(new_pairs(1), 1, 1);
	check_hostile_entries();
	engine.response_bytes_max = RESPONSE_BYTES_MAX;
	check_hostile_records();
	check_hostile_samples();
}

/* ---- An engine begins where another one left parked responses ---- */

static void restart(void)
{
	struct kv_engine_pair fresh = { .pair = pair };

	kv_engine_end(&engine);
	engine.pairs[0] = fresh;
	CHECK(kv_engine_begin(&engine) == 0);
}

static void restart_and_turn(void)
{
	restart();
	check_idle_turn();
}

static void check_restarts(uint32_t number, uint32_t response_record)
{
	resume_at(number, response_record);
	next_record = response_record;
	for (uint32_t i = 0; i < 300; i++) {
		put_next(pair);
		if (i % 3)
			kv_engine_turn(&engine);
		if (i == 0)
			restart(); /* the first batch waits for an engine */
		if (i == 1)
			pair->request_control.answered = number; /* all that is parked is from put_next() */
		if (i % 4 == 3)
			restart();
		if (i > 1)
			check_parked(pair);
		if (pair->response_control.published - pair->request_control.answered > 100)
			pair->request_control.answered += 7;
	}
	drain();
	CHECK(pair->response_control.published == number + 300);
	check_parked(pair);
}

static void test_restart(void)
{
	static const uint32_t response_records[] = { 0, 100, KV_RECORDS - 1, KV_RECORDS - 1000, -1000u };

	begin(new_pairs(1), 1, 1);
	for (uint32_t i = 0; i < COUNT_OF(numbers); i++)
		for (uint32_t j = 0; j < COUNT_OF(response_records); j++)
			check_restarts(numbers[i] - 100, response_records[j]);
	/* Without room, there is none for the next engine either, nor if `answered` is out of range. */
	take_answers(pair);
	for (uint32_t i = 0; i < BATCHES_MANY; i++)
		put_next(pair);
	drain();
	check_is_full(pair);
	restart_and_turn();
	answer_out_of_range(pair, restart_and_turn);
	check_parked(pair);
	while (pair->response_control.published != pair->request_control.published) {
		pair->request_control.answered += 20;
		restart();
		drain();
		check_parked(pair);
	}
	/* All answers taken, or a new queue pair: the next response begins at the start. */
	take_answers(pair);
	restart();
	put_next(pair);
	drain();
	check_parked(pair);
	CHECK(answer_of(pair, pair->response_control.published - 1)->first_record == 0);
	CHECK(engine.stats.bad_batches == 0);
}

/* ---- Rings of whole frames ---- */

static uint32_t write_frame(uint8_t *data, uint32_t opaque)
{
	struct kv_packet_header *header = (void *)data;
	struct kv_item_header *item = (void *)(header + 1);

	memset(data, 0, FRAME_BYTES);
	header->eth_type = __builtin_bswap16(KV_ETHERTYPE_IPV4);
	header->ip_version_ihl = KV_IP_VERSION_IHL;
	header->ip_protocol = KV_IP_PROTOCOL_UDP;
	header->ip_total_length = __builtin_bswap16(FRAME_BYTES - KV_ETH_BYTES);
	header->udp_length = __builtin_bswap16(FRAME_BYTES - KV_ETH_BYTES - KV_IP_BYTES);
	header->udp_destination_port = __builtin_bswap16(PORT);
	header->magic = KV_MAGIC_REQUEST;
	item->operation = KV_OP_GET;
	item->kv_length = 8u << 24;
	item->opaque = opaque;
	return FRAME_BYTES;
}

static struct kv_communicator *new_communicator(struct kv_queue_pair *rings, uint32_t count)
{
	struct kv_communicator *communicator = kv_communicator_create(1);

	CHECK(communicator);
	communicator->rings = rings;
	communicator->ring_count = count;
	communicator->first_port = PORT;
	CHECK(kv_communicator_begin(communicator, 0) == 0);
	return communicator;
}

static struct kv_communicator *begin_communicator(struct kv_queue_pair *rings, uint32_t count)
{
	struct kv_communicator *communicator = new_communicator(rings, count);

	begin(communicator->pairs, 1, 1);
	return communicator;
}

static void turn(struct kv_communicator *communicator)
{
	kv_communicator_receive(communicator);
	kv_engine_turn(&engine);
	kv_communicator_answer(communicator);
}

/* Publish a frame whose opaque is its number, behind the one before. */
static void put_frame(struct kv_queue_pair *ring)
{
	uint32_t number = ring->request_control.published;
	struct kv_batch_entry *entry = &ring->batches[number % KV_BATCHES];

	*entry = (struct kv_batch_entry){ .first_record = number * FRAME_RECORDS };
	entry->body_bytes = (uint16_t)write_frame((uint8_t *)&ring->requests[entry->first_record % KV_RECORDS], number);
	ring->request_control.published++;
}

/* Check the answer to a frame of put_frame(). */
static void check_frame(const struct kv_queue_pair *ring, uint32_t number)
{
	const struct kv_packet_header *header = (const void *)responses_of(ring, number);
	const struct kv_item_header *item = (const void *)(header + 1);

	CHECK(answer_of(ring, number)->wire_bytes == KV_PACKET_HEADER_BYTES + KV_ITEM_HEADER_BYTES);
	CHECK(header->magic == KV_MAGIC_RESPONSE && header->udp_source_port == __builtin_bswap16(PORT));
	CHECK(item->operation == KV_OP_GET && item->result == KV_NOT_FOUND && item->opaque == number);
}

static void check_parked_frames(const struct kv_queue_pair *ring)
{
	for (uint32_t number = ring->request_control.answered; number != ring->response_control.published; number++)
		check_frame(ring, number);
}

static void test_fair_rings(void)
{
	struct kv_queue_pair *rings = new_pairs(3);
	struct kv_communicator *communicator = begin_communicator(rings, 3);
	uint32_t least, most;

	for (uint32_t turns = 0; turns < 3000; turns++) {
		for (uint32_t i = 0; i < 3; i++) {
			take_answers(&rings[i]);
			while (rings[i].request_control.published - rings[i].response_control.published < RING_FRAMES)
				put_frame(&rings[i]);
		}
		turn(communicator);
	}
	least = most = rings[0].response_control.published;
	for (uint32_t i = 1; i < 3; i++) {
		uint32_t answered = rings[i].response_control.published;

		least = answered < least ? answered : least;
		most = answered > most ? answered : most;
	}
	CHECK(least > 1000 && most - least <= 2 * RING_FRAMES);
	kv_communicator_destroy(communicator);
	free(rings);
}

static void test_broken_rings(void)
{
	struct kv_queue_pair *ring = new_pairs(1);
	struct kv_communicator *communicator = begin_communicator(ring, 1);
	const __u64 *counters = communicator->queues[0].counters;

	put_frame(ring);
	turn(communicator);
	turn(communicator);
	CHECK(ring->response_control.published == 1);
	check_frame(ring, 0);
	/* Out of range, and back. */
	ring->request_control.published += KV_BATCHES + 1;
	turn(communicator);
	CHECK(ring->response_control.published == 1);
	ring->request_control.published -= KV_BATCHES + 1;
	put_frame(ring);
	turn(communicator);
	turn(communicator);
	CHECK(ring->response_control.published == 2);
	check_frame(ring, 1);
	/* A length that cannot be is dropped as such, and its entry comes back empty. */
	put_frame(ring);
	ring->batches[2].body_bytes = KV_FRAME_MAX + 1;
	turn(communicator);
	CHECK(ring->response_control.published == 3 && ring->answers[2].wire_bytes == 0);
	CHECK(counters[KV_COUNTER_DROP_FRAME_LENGTH] == 1 && counters[KV_COUNTER_PASSED] == 0);
	/* The longest frame, where the ring has the most slack to offer; it is longer than its headers say. */
	put_frame(ring);
	ring->batches[3] = (struct kv_batch_entry){ .count = 255, .body_bytes = KV_FRAME_MAX, .first_record = -1u };
	write_frame((uint8_t *)&ring->requests[KV_RECORDS - 1], 3);
	turn(communicator);
	CHECK(ring->response_control.published == 4 && ring->answers[3].wire_bytes == 0);
	CHECK(counters[KV_COUNTER_DROP_IP_HEADER] == 1 && counters[KV_COUNTER_PASSED] == 0);
	kv_communicator_destroy(communicator);
	free(ring);
}

/* More frames than are served at once: all have their answer, in their order. */
static void check_many_frames(struct kv_communicator *communicator, struct kv_queue_pair *ring)
{
	uint32_t first = ring->request_control.published;

	for (uint32_t i = 0; i < FRAMES_MANY; i++)
		put_frame(ring);
	for (uint32_t i = 0; i < FRAMES_MANY; i++) /* without a turn of the engine */
		kv_communicator_receive(communicator);
	CHECK(ring->response_control.published == first);
	CHECK(communicator->pairs[0].request_control.published - communicator->pairs[0].request_control.answered ==
	      RING_FRAMES);
	for (uint32_t i = 0; i < FRAMES_MANY && ring->response_control.published != first + FRAMES_MANY; i++) {
		turn(communicator);
		check_parked_frames(ring);
		take_answers(ring);
	}
	CHECK(ring->response_control.published == first + FRAMES_MANY);
}

static struct kv_communicator *serving;

static void turn_often(void)
{
	for (uint32_t i = 0; i < FRAMES_MANY; i++)
		turn(serving);
}

static void begin_again(struct kv_queue_pair *ring)
{
	kv_communicator_end(serving);
	kv_communicator_destroy(serving);
	serving = new_communicator(ring, 1);
	engine.pairs[0].pair = serving->pairs;
	CHECK(kv_engine_begin(&engine) == 0);
}

/* No room for answers: frames wait in the ring, also for the communicator after this one. */
static void check_waiting_frames(struct kv_queue_pair *ring)
{
	for (uint32_t i = 0; i < FRAMES_MANY; i++)
		put_frame(ring);
	turn_often();
	check_is_full(ring);
	answer_out_of_range(ring, turn_often);
	check_parked_frames(ring);
	while (ring->response_control.published != ring->request_control.published) {
		uint32_t before = ring->response_control.published;

		begin_again(ring);
		turn_often();
		CHECK(ring->response_control.published == before);
		check_parked_frames(ring);
		ring->request_control.answered += 7;
		turn_often();
		CHECK(ring->response_control.published > before);
		if (ring->response_control.published != ring->request_control.published)
			check_is_full(ring);
		check_parked_frames(ring);
	}
}

static void test_frames(void)
{
	struct kv_queue_pair *ring = new_pairs(1);
	uint32_t first = -(FRAMES_MANY / 2u);

	/* Numbers of frames, and of their records, pass 2^32, and records run into the slack. */
	ring->request_control.published = ring->response_control.published = first;
	ring->request_control.answered = first;
	serving = begin_communicator(ring, 1);
	check_many_frames(serving, ring);
	CHECK(serving->queues[0].counters[KV_COUNTER_FRAMES_RECEIVED] == FRAMES_MANY);
	check_waiting_frames(ring);
	CHECK(ring->response_control.published == first + 2 * FRAMES_MANY);
	take_answers(ring);
	check_many_frames(serving, ring);
	kv_communicator_destroy(serving);
	free(ring);
}

/* ---- Records that change while they are read ---- */

static volatile int is_over;

static void *change_hash(void *record)
{
	volatile __u64 *key_hash = &((struct kv_request *)record)->key_hash;

	while (!is_over) {
		*key_hash = 0;
		*key_hash = ~0ULL;
	}
	return NULL;
}

/* Whose partition it is, and which store is written, are looked up with the same hash: the other's stays empty. */
static void test_changes(void)
{
	struct kv_store_stats stats;
	pthread_t thread;

	begin(new_pairs(1), 1, 2);
	pair->requests[0].header = KV_HEADER(KV_OP_SET, 0, 8, 8);
	for (uint32_t i = 0; i < KV_BATCHES; i++)
		pair->batches[i] = (struct kv_batch_entry){ .count = 1 }; /* all have the same record */
	CHECK(pthread_create(&thread, NULL, change_hash, &pair->requests[0]) == 0);
	for (uint32_t turns = 0; turns < CHANGES_TURNS; turns++) {
		take_answers(pair);
		pair->request_control.published += KV_ROUND_BATCHES;
		drain();
	}
	is_over = 1;
	pthread_join(thread, NULL);
	kv_store_get_stats(engine.stores[0], &stats);
	CHECK(stats.count > 0 && engine.stats.counts.rejected > 0);
	kv_store_get_stats(engine.stores[1], &stats);
	CHECK(stats.count == 0 && stats.set_new == 0);
}

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	{ "counter", test_counter },	   { "rounds", test_rounds },
	{ "samples", test_samples },	   { "wrap", test_wrap },
	{ "no-room", test_no_room },	   { "no-room-samples", test_no_room_samples },
	{ "hostile", test_hostile },	   { "restart", test_restart },
	{ "fair-rings", test_fair_rings }, { "broken-rings", test_broken_rings },
	{ "frames", test_frames },	   { "changes", test_changes },
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc == 2 && i < sizeof(tests) / sizeof(tests[0]); i++) {
		if (strcmp(argv[1], tests[i].name) == 0) {
			tests[i].run();
			return 0;
		}
	}
	fprintf(stderr, "host_queues: which test?\n");
	return 1;
}
