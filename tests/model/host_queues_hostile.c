/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * host_queues_hostile.c - the host's end of its queues while the other end is hostile: entries, records and samples
 * with fields that cannot be, and records that change while they are read.
 *
 *   host_queues_hostile TEST    one of the names in `tests`
 *
 * Returns 0, or says on standard error what is wrong and returns 1.
 */
#include <pthread.h>
#include <sanitizer/asan_interface.h> /* its macros are empty in a build without the sanitizer */

#include "host_queues.h"

#define CHANGES_TURNS 50000

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
		fprintf(stderr, "hostile record %u: result %u\n", i,
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

static const struct test tests[] = {
	{ "hostile", test_hostile },
	{ "changes", test_changes },
};

int main(int argc, char **argv)
{
	return run_test(tests, COUNT_OF(tests), argc, argv);
}
