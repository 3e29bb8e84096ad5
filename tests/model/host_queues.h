/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * host_queues.h - what the programs host_queues*.c share: an engine behind its queue pairs, the other end that gives it
 * batches or samples, and checks of the answers.
 */
#ifndef HOST_QUEUES_H
#define HOST_QUEUES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi/all.h"
#include "base/hash.h"
#include "queue/ringbuf.h"
#include "service/engine.h"
#include "store/hot_path.h"

#define RESPONSE_BYTES_MAX 1466
#define RING_BYTES (1u << 16)
#define LONG_KEY_BYTES 20
#define COUNT_OF(array) ((uint32_t)(sizeof(array) / sizeof((array)[0])))

#define CHECK(condition)                                                                      \
	do {                                                                                  \
		if (!(condition)) {                                                           \
			fprintf(stderr, "%s: line %d: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                              \
		}                                                                             \
	} while (0)

static struct kv_partition_table table = { .partitions = 1 };
static struct kv_engine engine;
static struct kv_queue_pair *pair;
static uint32_t next_record; /* number of the next request record, see put_next() */

static inline void begin(struct kv_queue_pair *pairs, uint32_t pair_count, uint32_t partitions)
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

static inline struct kv_queue_pair *new_pairs(uint32_t count)
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
static inline void add_request(struct draft *draft, uint32_t operation, const void *key, uint32_t key_bytes,
			       const void *value, uint32_t value_bytes)
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
static inline void make_gets(struct draft *draft, uint32_t requests)
{
	memset(draft, 0, sizeof(*draft));
	for (uint64_t key = 0; key < requests; key++)
		add_request(draft, KV_OP_GET, &key, sizeof(key), "", 0);
}

/* Publish a batch whose records begin at this number. */
static inline void put_batch(struct kv_queue_pair *to, const struct draft *draft, uint32_t first_record)
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

static inline const struct kv_answer_entry *answer_of(const struct kv_queue_pair *from, uint32_t number)
{
	return &from->answers[number % KV_BATCHES];
}

static inline const struct kv_response *responses_of(const struct kv_queue_pair *from, uint32_t number)
{
	return &from->responses[answer_of(from, number)->first_record % KV_RECORDS];
}

/* Take all answers. */
static inline void take_answers(struct kv_queue_pair *from)
{
	from->request_control.answered = from->response_control.published;
}

static inline void drain(void)
{
	while (kv_engine_turn(&engine))
		continue;
}

static inline uint32_t value_bytes_of(uint32_t seed)
{
	return KV_INLINE_MAX + 1 + seed % 1000 * 37 % 1400;
}

static inline void make_value(uint8_t *value, uint32_t seed)
{
	memset(value, 0, KV_FRAME_MAX);
	for (uint32_t i = 0; i < value_bytes_of(seed); i++)
		value[i] = (uint8_t)(seed * 31 + i * 7 + (i >> 8));
}

/* Make a batch of one SET of a long key with a long value, and one GET of it. */
static inline void make_set_get(struct draft *draft, uint32_t seed)
{
	uint8_t key[LONG_KEY_BYTES] = { 0 }, value[KV_FRAME_MAX];

	memcpy(key, &seed, sizeof(seed));
	make_value(value, seed);
	memset(draft, 0, sizeof(*draft));
	add_request(draft, KV_OP_SET, key, sizeof(key), value, value_bytes_of(seed));
	add_request(draft, KV_OP_GET, key, sizeof(key), "", 0);
}

static inline void put_set_get(struct kv_queue_pair *to, uint32_t seed, uint32_t first_record)
{
	struct draft draft;

	make_set_get(&draft, seed);
	put_batch(to, &draft, first_record);
}

/* Publish such a batch behind the one before, with its number as its seed. */
static inline void put_next(struct kv_queue_pair *to)
{
	uint32_t number = to->request_control.published;

	put_set_get(to, number, next_record);
	next_record = to->batches[number % KV_BATCHES].first_record + 2 +
		      KV_BODY_RECORDS(to->batches[number % KV_BATCHES].body_bytes);
}

static inline void check_set_get(const struct kv_queue_pair *from, uint32_t number, uint32_t seed)
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
static inline void check_parked(const struct kv_queue_pair *from)
{
	for (uint32_t number = from->request_control.answered; number != from->response_control.published; number++)
		check_set_get(from, number, number);
}

static inline uint32_t response_records_in_use(const struct kv_queue_pair *from)
{
	uint32_t records = 0;

	for (uint32_t number = from->request_control.answered; number != from->response_control.published; number++)
		records += answer_of(from, number)->records;
	return records;
}

/* Check that there is no room for one more batch's responses, and was before the last one. */
static inline void check_is_full(const struct kv_queue_pair *from)
{
	uint32_t in_use = response_records_in_use(from);
	uint32_t last = answer_of(from, from->response_control.published - 1)->records;

	CHECK(in_use <= KV_RECORDS && in_use + KV_BATCH_RECORDS_MAX > KV_RECORDS);
	CHECK(in_use - last + KV_BATCH_RECORDS_MAX <= KV_RECORDS);
}

/* Call `turn` with `answered` out of range: behind what is published, and too far before it. */
static inline void answer_out_of_range(struct kv_queue_pair *from, void (*turn)(void))
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

static inline void check_idle_turn(void)
{
	CHECK(kv_engine_turn(&engine) == 0);
}

/* Go on with batch `number`, and with this number of a response record: so an engine before left the pair. */
static inline void resume_at(uint32_t number, uint32_t response_record)
{
	pair->request_control.published = pair->response_control.published = number;
	pair->request_control.answered = number - 1;
	pair->answers[(number - 1) % KV_BATCHES] = (struct kv_answer_entry){ 0, 1, response_record - 1 };
	CHECK(kv_engine_begin(&engine) == 0);
}

/* ---- Samples of a BPF ring buffer ---- */

static uint8_t ring_data[2 * RING_BYTES] __attribute__((aligned(64)));
static uint64_t consumed, produced;
static struct kv_ringbuf ring_buffer;

static inline void begin_ring_buffer(void)
{
	ring_buffer = (struct kv_ringbuf){
		.consumer = &consumed, .producer = &produced, .data = ring_data, .bytes = RING_BYTES
	};
	engine.ring = &ring_buffer;
}

/* The data are mapped twice, so that no sample wraps: here a sample that would is written to both places. */
static inline void put_sample(const void *sample, uint32_t bytes)
{
	uint64_t start = produced & (RING_BYTES - 1), all = bytes + BPF_RINGBUF_HDR_SZ;

	memcpy(ring_data + start, &bytes, sizeof(bytes));
	memcpy(ring_data + start + BPF_RINGBUF_HDR_SZ, sample, bytes);
	if (start + all > RING_BYTES)
		memcpy(ring_data, ring_data + RING_BYTES, start + all - RING_BYTES);
	produced += (all + 7) & ~7ULL;
}

static inline uint32_t make_sample(uint8_t *sample, const struct draft *draft, uint32_t number)
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

/* ---- A program of tests, one of which it runs ---- */

struct test {
	const char *name;
	void (*run)(void);
};

/* Return what main() returns: 0, or 1 if there is no such test. A test that fails exits. */
static inline int run_test(const struct test *tests, uint32_t count, int argc, char **argv)
{
	for (uint32_t i = 0; argc == 2 && i < count; i++) {
		if (strcmp(argv[1], tests[i].name) == 0) {
			tests[i].run();
			return 0;
		}
	}
	fprintf(stderr, "which test?\n");
	return 1;
}

#endif
