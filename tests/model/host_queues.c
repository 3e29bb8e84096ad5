/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * host_queues.c - the host's end of its queues while the other end errs: counters out of range, samples too short,
 * lengths that cannot be, records that change while they are read, one core that never pauses.
 *
 *   host_queues TEST    one of the names in `tests`
 *
 * Returns 0, or says on standard error what is wrong and returns 1.
 */
#include <pthread.h>
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
#define FRAME_BYTES (KV_PACKET_HEADER_BYTES + KV_ITEM_HEADER_BYTES + 8)
#define PORT 9800
#define CHANGES_TURNS 200000

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

static void begin(struct kv_queue_pair *pairs, uint32_t partitions)
{
	struct kv_store_options options = { .item_count = 1000, .log_bytes = 1 << 20, .move_to_head = 32768 };

	table.partitions = partitions;
	for (uint32_t i = 0; i < partitions; i++) {
		table.owner[i] = i;
		engine.stores[i] = kv_store_create(&options);
		CHECK(engine.stores[i]);
	}
	engine.partitions = &table;
	engine.partition_count = partitions;
	engine.response_bytes_max = RESPONSE_BYTES_MAX;
	engine.pair_count = 1;
	engine.pairs[0].pair = pair = pairs;
	CHECK(kv_engine_begin(&engine) == 0);
}

static struct kv_queue_pair *new_pairs(uint32_t count)
{
	struct kv_queue_pair *pairs = aligned_alloc(64, count * sizeof(*pairs));

	CHECK(pairs);
	memset(pairs, 0, count * sizeof(*pairs));
	return pairs;
}

static struct kv_request_slot *next_slot(void)
{
	return &pair->requests[pair->request_control.published % KV_SLOTS];
}

static void publish(uint32_t ahead)
{
	pair->request_control.published += ahead;
	kv_engine_turn(&engine);
}

static int result_of(uint64_t header)
{
	return (int)(header >> 8 & 0xff);
}

/* ---- A counter out of range is nothing, until it is in range again ---- */

static void test_counter(void)
{
	uint64_t set = KV_HEADER(KV_OP_SET, 0, 8, 8);

	begin(new_pairs(1), 1);
	next_slot()->count = 1;
	next_slot()->records[0] = (struct kv_request){ .header = set, .key = 1, .value = 2 };
	publish(KV_SLOTS + 1);
	kv_engine_turn(&engine);
	CHECK(engine.stats.bad_batches == 1 && pair->response_control.published == 0);
	publish(-(uint32_t)(KV_SLOTS + 1) - 1);
	CHECK(engine.stats.bad_batches == 2 && pair->response_control.published == 0);
	publish(2);
	CHECK(engine.stats.counts.sets == 1 && pair->response_control.published == 1);
	CHECK(result_of(pair->responses[0].records[0].header) == KV_SUCCESS && engine.stats.bad_batches == 2);
}

/* ---- Rounds: each queue pair has its share, and all have a turn ---- */

static void fill(struct kv_queue_pair *from, uint32_t requests)
{
	while (from->request_control.published - from->response_control.published < KV_SLOTS) {
		struct kv_request_slot *slot = &from->requests[from->request_control.published++ % KV_SLOTS];

		slot->count = (uint8_t)requests;
		for (uint32_t i = 0; i < requests; i++)
			slot->records[i] = (struct kv_request){ .header = KV_HEADER(KV_OP_GET, 0, 8, 0), .key = i };
	}
}

static void drain(void)
{
	while (kv_engine_turn(&engine))
		continue;
}

static void check_round(struct kv_queue_pair *pairs, uint32_t count, uint32_t first, uint32_t second)
{
	uint32_t before = pairs[0].response_control.published, before_second = pairs[1].response_control.published;

	for (uint32_t i = 0; i < 2; i++)
		fill(&pairs[i], count);
	CHECK(kv_engine_turn(&engine) == first + second);
	CHECK(pairs[0].response_control.published - before == first);
	CHECK(pairs[1].response_control.published - before_second == second);
}

static void test_rounds(void)
{
	struct kv_queue_pair *pairs = new_pairs(2);
	uint32_t full = KV_ROUND_REQUESTS / KV_BATCH_MAX, less_full = KV_ROUND_REQUESTS / (KV_BATCH_MAX - 1) + 1;
	int first_is_next;

	engine.pairs[1].pair = &pairs[1];
	begin(pairs, 1);
	engine.pair_count = 2;
	CHECK(kv_engine_begin(&engine) == 0);
	/* The share of each, to the batch that goes over it. */
	check_round(pairs, KV_BATCH_MAX, full, full);
	drain();
	check_round(pairs, KV_BATCH_MAX - 1, less_full, less_full);
	/* Small batches fill the round before the second has its turn: then the next one begins with it. */
	drain();
	first_is_next = engine.next_pair == 0;
	for (uint32_t i = 0; i < 3; i++, first_is_next = !first_is_next)
		check_round(pairs, 1, first_is_next ? KV_SLOTS : 0, first_is_next ? 0 : KV_SLOTS);
	/* Empty batches among others, and a round of nothing else. */
	drain();
	fill(&pairs[0], 3);
	for (uint32_t i = 0; i < KV_SLOTS; i += 2)
		pairs[0].requests[i].count = 0;
	CHECK(kv_engine_turn(&engine) == KV_SLOTS && engine.stats.bad_batches == KV_SLOTS / 2);
	fill(&pairs[0], 0);
	CHECK(kv_engine_turn(&engine) == KV_SLOTS && engine.stats.bad_batches == KV_SLOTS / 2 + KV_SLOTS);
	CHECK(kv_engine_turn(&engine) == 0);
	free(pairs);
}

/* ---- Samples of a BPF ring buffer ---- */

static uint8_t ring_data[2 * RING_BYTES] __attribute__((aligned(64)));
static uint64_t consumed, produced;

static void put_sample(const void *sample, uint32_t bytes)
{
	uint8_t *header = ring_data + (produced & (RING_BYTES - 1));

	memcpy(header, &bytes, sizeof(bytes));
	memcpy(header + BPF_RINGBUF_HDR_SZ, sample, bytes);
	produced += (bytes + BPF_RINGBUF_HDR_SZ + 7) & ~7ULL;
}

static void test_samples(void)
{
	struct kv_ringbuf ring = { .consumer = &consumed, .producer = &produced, .data = ring_data };
	struct kv_request_slot *slot = calloc(1, sizeof(*slot));
	uint32_t one_record = offsetof(struct kv_request_slot, records) + sizeof(struct kv_request);

	ring.bytes = RING_BYTES;
	engine.ring = &ring;
	begin(new_pairs(1), 1);
	CHECK(slot);
	slot->records[0].header = KV_HEADER(KV_OP_TEST, 0, 8, 0);
	/* Shorter than its count says: an answer without responses, and its room is given back. */
	slot->count = 2;
	put_sample(slot, one_record);
	kv_engine_turn(&engine);
	CHECK(engine.stats.bad_batches == 1 && pair->response_control.published == 1 && consumed == produced);
	CHECK(pair->responses[0].wire_bytes == 0);
	/* From a core that there is not, or too short to say: nobody to answer. */
	slot->pair = 1;
	put_sample(slot, one_record);
	put_sample(slot, 2);
	kv_engine_turn(&engine);
	CHECK(engine.stats.bad_batches == 3 && pair->response_control.published == 1 && consumed == produced);
	/* The next one has its own slot. */
	slot->count = 1;
	slot->pair = 0;
	put_sample(slot, one_record);
	kv_engine_turn(&engine);
	CHECK(engine.stats.bad_batches == 3 && pair->response_control.published == 2 && consumed == produced);
	CHECK(KV_HEADER_OPERATION(pair->responses[1].records[0].header) == KV_OP_TEST);
	free(slot);
}

/* ---- Rings of whole frames ---- */

static uint32_t write_frame(uint8_t *data)
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
	return FRAME_BYTES;
}

static struct kv_communicator *begin_communicator(struct kv_queue_pair *rings, uint32_t count)
{
	struct kv_communicator *communicator = kv_communicator_create(1);

	CHECK(communicator);
	communicator->rings = rings;
	communicator->ring_count = count;
	communicator->first_port = PORT;
	begin(communicator->pairs, 1);
	CHECK(kv_communicator_begin(communicator, 0) == 0);
	return communicator;
}

static void turn(struct kv_communicator *communicator)
{
	kv_communicator_receive(communicator);
	kv_engine_turn(&engine);
	kv_communicator_answer(communicator);
}

static void put_frame(struct kv_queue_pair *ring)
{
	struct kv_request_slot *slot = &ring->requests[ring->request_control.published % KV_SLOTS];

	slot->frame_bytes = (uint16_t)write_frame(slot->payload);
	ring->request_control.published++;
}

static void test_fair_rings(void)
{
	struct kv_queue_pair *rings = new_pairs(3);
	struct kv_communicator *communicator = begin_communicator(rings, 3);
	uint32_t least, most;

	for (uint32_t turns = 0; turns < 3000; turns++) {
		for (uint32_t i = 0; i < 3; i++)
			while (rings[i].request_control.published - rings[i].response_control.published < KV_SLOTS)
				put_frame(&rings[i]);
		turn(communicator);
	}
	least = most = rings[0].response_control.published;
	for (uint32_t i = 1; i < 3; i++) {
		uint32_t answered = rings[i].response_control.published;

		least = answered < least ? answered : least;
		most = answered > most ? answered : most;
	}
	CHECK(least > 1000 && most - least <= 2 * KV_SLOTS);
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
	CHECK(ring->response_control.published == 1 && ring->responses[0].wire_bytes > 0);
	/* Out of range, and back. */
	ring->request_control.published += KV_SLOTS + 1;
	turn(communicator);
	CHECK(ring->response_control.published == 1);
	ring->request_control.published -= KV_SLOTS + 1;
	put_frame(ring);
	turn(communicator);
	turn(communicator);
	CHECK(ring->response_control.published == 2 && ring->responses[1].wire_bytes > 0);
	/* A length that cannot be is dropped as such, and its slot comes back empty. */
	put_frame(ring);
	ring->requests[2].frame_bytes = KV_FRAME_MAX + 1;
	turn(communicator);
	CHECK(ring->response_control.published == 3 && ring->responses[2].wire_bytes == 0);
	CHECK(counters[KV_COUNTER_DROP_FRAME_LENGTH] == 1 && counters[KV_COUNTER_PASSED] == 0);
	kv_communicator_destroy(communicator);
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

	begin(new_pairs(1), 2);
	for (uint32_t i = 0; i < KV_SLOTS; i++) {
		pair->requests[i].count = 1;
		pair->requests[i].records[0].header = KV_HEADER(KV_OP_SET, 0, 8, 8);
	}
	for (uint32_t turns = 0; turns < CHANGES_TURNS / KV_SLOTS; turns++) {
		struct kv_request *record = &next_slot()->records[0];

		is_over = 0;
		CHECK(pthread_create(&thread, NULL, change_hash, record) == 0);
		for (uint32_t i = 0; i < KV_SLOTS; i++) {
			publish(KV_SLOTS);
			kv_engine_turn(&engine);
		}
		is_over = 1;
		pthread_join(thread, NULL);
	}
	kv_store_get_stats(engine.stores[0], &stats);
	CHECK(stats.count > 0 && engine.stats.counts.rejected > 0);
	kv_store_get_stats(engine.stores[1], &stats);
	CHECK(stats.count == 0 && stats.set_new == 0);
}

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	{ "counter", test_counter },	       { "rounds", test_rounds },
	{ "samples", test_samples },	       { "fair-rings", test_fair_rings },
	{ "broken-rings", test_broken_rings }, { "changes", test_changes },
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
