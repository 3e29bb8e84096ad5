/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * host_queues_frames.c - the host's end of rings of whole frames, which a communicator serves: frames that cannot be,
 * answers that nobody takes, one core that never pauses.
 *
 *   host_queues_frames TEST    one of the names in `tests`
 *
 * Returns 0, or says on standard error what is wrong and returns 1.
 */
#include "door/communicate.h"
#include "host_queues.h"

#define FRAME_RECORDS KV_BODY_RECORDS(FRAME_BYTES)
#define FRAME_BYTES (KV_PACKET_HEADER_BYTES + KV_ITEM_HEADER_BYTES + 8)
#define PORT 9800
#define RING_FRAMES 64	/* frames of one ring that a communicator serves at once: KV_RING_FRAMES */
#define RING_ENGINE 3	/* engine that the rings belong to */
#define FRAMES_MANY 300 /* more than that, and more than there is room for answers */

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
	header->ip_source[0] = 10;
	header->ip_destination[0] = 11;
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

static void check_fair_rings(uint32_t count, uint32_t busy)
{
	struct kv_queue_pair *rings = new_pairs(count);
	struct kv_communicator *communicator = begin_communicator(rings, count);
	uint32_t least, most;

	for (uint32_t turns = 0; turns < 1500; turns++) {
		for (uint32_t i = 0; i < busy; i++) {
			take_answers(&rings[i]);
			while (rings[i].request_control.published - rings[i].response_control.published < RING_FRAMES)
				put_frame(&rings[i]);
		}
		turn(communicator);
	}
	least = most = rings[0].response_control.published;
	for (uint32_t i = 1; i < busy; i++) {
		uint32_t answered = rings[i].response_control.published;

		least = answered < least ? answered : least;
		most = answered > most ? answered : most;
	}
	CHECK(least > 1000 && most - least <= 2 * RING_FRAMES);
	kv_communicator_destroy(communicator);
	free(rings);
}

static void test_fair_rings(void)
{
	check_fair_rings(3, 3);
}

static void test_fair_rings_idle(void)
{
	check_fair_rings(8, 3);
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

/* ---- Rings without room whose core never pauses: kv_communicator_idle() is not called ---- */

/* Turn many times, each with frames of the second ring. Return how often the first ring's sender was woken. */
static uint32_t wakes_beside_busy(struct kv_communicator *communicator)
{
	struct kv_queue_pair *busy = &communicator->rings[1];
	struct kv_sender *sender = &communicator->senders[0], *other = &communicator->senders[1];

	sender->wake = sender->overdue[RING_ENGINE] = 0;
	for (uint32_t turns = 0; turns < FRAMES_MANY; turns++) {
		uint32_t before = busy->response_control.published;

		take_answers(busy);
		while (busy->request_control.published - before < RING_FRAMES)
			put_frame(busy);
		turn(communicator);
		turn(communicator); /* one of two begins with this ring */
		CHECK(busy->response_control.published != before);
		CHECK(!sender->overdue[RING_ENGINE] || sender->wake);
		sender->overdue[RING_ENGINE] = 0; /* the sender has looked */
	}
	for (uint32_t i = 0; i < KV_ENGINES_MAX; i++)
		CHECK(sender->overdue[i] == 0 && other->overdue[i] == 0);
	CHECK(other->wake == 0);
	return sender->wake;
}

static void test_wake(void)
{
	struct kv_queue_pair *rings = new_pairs(2);
	struct kv_communicator *communicator = begin_communicator(rings, 2);
	struct kv_sender senders[2] = { { .cpu = 1 }, { .cpu = 2 } }; /* the communicator is on core 0 */

	for (uint32_t i = 0; i < FRAMES_MANY; i++)
		put_frame(&rings[0]);
	communicator->senders = senders;
	communicator->ring_engine = RING_ENGINE;
	CHECK(kv_communicator_begin(communicator, 0) == 0);
	/* Not before answers have been parked for too long; */
	communicator->flush_after_ticks = UINT64_MAX;
	CHECK(wakes_beside_busy(communicator) == 0);
	check_is_full(&rings[0]);
	/* or once, at once, if the other end asks for it; */
	rings[0].request_control.drain = 1;
	CHECK(wakes_beside_busy(communicator) == 1);
	CHECK(wakes_beside_busy(communicator) == 0);
	/* or each time that they have been. */
	rings[0].request_control.drain = 0;
	communicator->flush_after_ticks = 1;
	CHECK(wakes_beside_busy(communicator) > 1);
	/* On the same core at once, and again for the next answers. */
	communicator->flush_after_ticks = UINT64_MAX;
	senders[0].cpu = 0;
	CHECK(wakes_beside_busy(communicator) == 0);
	rings[0].request_control.answered += 7;
	CHECK(wakes_beside_busy(communicator) == 1);
	check_is_full(&rings[0]);
	check_parked_frames(&rings[0]);
	/* A ring with room does not need it. */
	communicator->flush_after_ticks = 1;
	senders[0].wake = 0;
	while (rings[0].response_control.published != FRAMES_MANY) {
		take_answers(&rings[0]);
		turn(communicator);
	}
	CHECK(senders[0].wake == 0);
	kv_communicator_destroy(communicator);
	free(rings);
}

static const struct test tests[] = {
	{ "fair-rings", test_fair_rings },
	{ "fair-rings-idle", test_fair_rings_idle },
	{ "broken-rings", test_broken_rings },
	{ "frames", test_frames },
	{ "wake", test_wake },
};

int main(int argc, char **argv)
{
	return run_test(tests, COUNT_OF(tests), argc, argv);
}
