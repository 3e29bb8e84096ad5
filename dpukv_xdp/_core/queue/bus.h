/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * bus.h - the emulated bus between DPU and host, for profiles of real DPUs on machines without one.
 *
 * A transfer occupies its direction of the bus in proportion to its bytes and arrives a fixed latency later. The engine
 * notices a batch when it polls, so that a busy engine sees less of the latency, as with DMA in the background.
 */
#ifndef KV_BUS_H
#define KV_BUS_H

#include "queue/host_end.h"

/* An emulated bus between DPU and host: delays in addition to the machine's own. All zero: no emulation. */
struct kv_bus {
	uint64_t latency_ticks; /* latency of each transfer, in ticks */
	uint64_t ticks_per_mib; /* inverse bandwidth of one direction */
	uint64_t free_ticks[2]; /* when the direction of requests, and that of responses, becomes idle */
	uint64_t transfers[2];
	uint64_t bytes[2];
};

#ifndef KV_ABI_CDEF

enum kv_bus_direction { KV_BUS_REQUESTS = 0, KV_BUS_RESPONSES = 1 };

static inline int kv_bus_is_emulated(const struct kv_bus *bus)
{
	return bus->latency_ticks || bus->ticks_per_mib;
}

/* Return when a transfer of `bytes` in `transfers` pieces that starts now will have arrived, in ticks. */
static inline uint64_t kv_bus_arrival(struct kv_bus *bus, enum kv_bus_direction direction, uint32_t transfers,
				      uint32_t bytes, uint64_t now_ticks)
{
	uint64_t *free_ticks = &bus->free_ticks[direction];

	if (*free_ticks < now_ticks)
		*free_ticks = now_ticks;
	*free_ticks += bytes * bus->ticks_per_mib >> 20;
	bus->transfers[direction] += transfers;
	bus->bytes[direction] += bytes;
	return *free_ticks + transfers * bus->latency_ticks;
}

/* Return how many of the batches handed over by the DPU have arrived, up to a round's. */
static inline uint32_t kv_bus_batches_ready(struct kv_bus *bus, int transfer_per_request, struct kv_engine_pair *state,
					    uint32_t handed_over, uint64_t now_ticks)
{
	const struct kv_queue_pair *pair = state->pair;
	uint32_t ready = 0;

	while (state->seen - state->processed < handed_over) {
		uint32_t entry = KV_ENTRY(state->seen);
		uint32_t count = kv_batch_requests(&pair->batches[entry]);

		state->arrives_ticks[entry] =
			kv_bus_arrival(bus, KV_BUS_REQUESTS, transfer_per_request ? count : 1,
				       count * (uint32_t)sizeof(struct kv_request) + 1, now_ticks);
		state->seen++;
	}
	while (ready < handed_over && ready < KV_ROUND_BATCHES &&
	       state->arrives_ticks[KV_ENTRY(state->processed + ready)] <= now_ticks)
		ready++;
	return ready;
}

/* Start the transfer of a processed batch's responses. */
static inline void kv_bus_send(struct kv_bus *bus, int transfer_per_request, struct kv_engine_pair *state,
			       uint32_t request_count, uint64_t now_ticks)
{
	state->leaves_ticks[KV_ENTRY(state->processed - 1)] =
		kv_bus_arrival(bus, KV_BUS_RESPONSES, transfer_per_request ? request_count : 1,
			       request_count * (uint32_t)sizeof(struct kv_response) + 1, now_ticks);
}

/* Hand back the responses that have arrived at the DPU. */
static inline void kv_bus_deliver(struct kv_engine_pair *state, uint64_t now_ticks)
{
	while (state->published != state->processed && state->leaves_ticks[KV_ENTRY(state->published)] <= now_ticks)
		send_response_queue_to_dpu(state->pair, ++state->published);
}

#endif /* KV_ABI_CDEF */
#endif
