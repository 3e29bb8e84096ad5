/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * host_queues.c - the host's end of its queues: counters out of range, samples too short, answers that nobody takes, an
 * engine that begins where another one left, each queue pair's share of the rounds. And its work at the rings' ends,
 * where batches run into the slack.
 *
 *   host_queues TEST    one of the names in `tests`
 *
 * Returns 0, or says on standard error what is wrong and returns 1.
 */
#include "host_queues.h"

#define SHARES_PAIRS 16
#define SHARES_ROUNDS 600 /* as often as each of 2, 3, 4 or 5 pairs is first */
#define BATCHES_MANY 500  /* batches of put_set_get(), more than there is room for responses */

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

/* Small batches fill the round before the last pairs have their turn. Each pair is the first of one round in three. */
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
	/* A round takes as many small batches as have room for their responses, and no more than its own size. */
	check_round(pairs, 1, room, KV_ROUND_BATCHES - room);
	engine.pair_count = 3;
	engine.pairs[2].pair = &pairs[2];
	CHECK(kv_engine_begin(&engine) == 0);
	check_turns(pairs);
	/* Empty batches among others, and a round of nothing else. */
	check_empty_batches(&pairs[0], room);
	free(pairs);
}

/* ---- Shares: pairs that are always busy with small batches have the same one, however many they are ---- */

static void check_shares(struct kv_queue_pair *pairs, uint32_t count, uint32_t busy)
{
	uint32_t before[SHARES_PAIRS], mean = SHARES_ROUNDS * KV_ROUND_BATCHES / busy;

	engine.pair_count = count;
	engine.next_pair = 0;
	CHECK(kv_engine_begin(&engine) == 0);
	for (uint32_t i = 0; i < busy; i++)
		before[i] = pairs[i].response_control.published;
	for (uint32_t round = 0; round < SHARES_ROUNDS; round++) {
		for (uint32_t i = 0; i < busy; i++)
			fill(&pairs[i], 1);
		CHECK(kv_engine_turn(&engine) == KV_ROUND_BATCHES);
	}
	for (uint32_t i = 0; i < busy; i++) {
		uint32_t share = pairs[i].response_control.published - before[i];

		CHECK(share >= mean - mean / 10 && share <= mean + mean / 10);
	}
}

static void test_shares(void)
{
	struct kv_queue_pair *pairs = new_pairs(SHARES_PAIRS);

	begin(pairs, SHARES_PAIRS, 1);
	for (uint32_t busy = 2; busy <= 5; busy++) {
		check_shares(pairs, busy, busy);
		check_shares(pairs, busy + 1, busy);
		check_shares(pairs, SHARES_PAIRS, busy);
	}
	free(pairs);
}

/* ---- Samples of a BPF ring buffer ---- */

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

/* ---- A backlog: the communication engine asks for the sender, which an engine that is never idle wakes, too ---- */

static void check_busy_round(struct kv_sender *sender, uint32_t drain, uint32_t overdue, uint32_t wake)
{
	pair->request_control.drain = drain;
	put_next(pair);
	CHECK(kv_engine_turn(&engine) == 1);
	CHECK(sender->overdue[0] == overdue && sender->wake == wake);
}

static void test_drain(void)
{
	struct kv_sender sender = { .cpu = 1 };

	engine.pairs[0].sender = &sender;
	engine.flush_after_ticks = ~0ULL / 2;
	begin(new_pairs(1), 1, 1);
	check_busy_round(&sender, 0, 0, 0);
	check_busy_round(&sender, 1, 1, 1);
	/* Woken once for what is parked; again only when it has looked, and the time is over. */
	check_busy_round(&sender, 1, 1, 1);
	engine.flush_after_ticks = 0;
	check_busy_round(&sender, 1, 1, 1);
	sender.overdue[0] = 0;
	check_busy_round(&sender, 1, 1, 2);
	sender.overdue[0] = 0;
	check_busy_round(&sender, 0, 0, 2);
	CHECK(engine.stats.wakeups == 2);
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

static const struct test tests[] = {
	{ "counter", test_counter },
	{ "rounds", test_rounds },
	{ "shares", test_shares },
	{ "samples", test_samples },
	{ "wrap", test_wrap },
	{ "no-room", test_no_room },
	{ "no-room-samples", test_no_room_samples },
	{ "drain", test_drain },
	{ "restart", test_restart },
};

int main(int argc, char **argv)
{
	return run_test(tests, COUNT_OF(tests), argc, argv);
}
