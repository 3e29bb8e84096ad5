/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * queue.h - the host's end of the queue pair (the DPU's end is bpf/queue.h).
 *
 * One engine thread consumes a queue pair's requests and produces its responses. What the other end writes is never
 * trusted to be in range.
 */
#ifndef KV_HOST_QUEUE_H
#define KV_HOST_QUEUE_H

#include "kv_core.h"

#define KV_SLOT(counter) ((counter) % KV_SLOTS)

/* Batches ready to be processed; more than KV_SLOTS means that the counter is broken. */
static inline uint32_t kv_batches_ready(const struct kv_queue_pair *pair, uint32_t processed)
{
	return __atomic_load_n(&pair->request_control.published, __ATOMIC_ACQUIRE) - processed;
}

/* Requests in a slot's batch; more than KV_BATCH_MAX is not believed. */
static inline uint32_t kv_batch_requests(const struct kv_queue_pair *pair, uint32_t slot)
{
	uint32_t count = __atomic_load_n(&pair->requests[slot].count, __ATOMIC_RELAXED);

	return count <= KV_BATCH_MAX ? count : 0;
}

/*
 * The paper's second call: hand the oldest batch's responses back with one store. `processed` counts this batch too.
 */
static inline void send_response_queue_to_dpu(struct kv_queue_pair *pair, uint32_t processed, uint32_t wire_bytes)
{
	pair->responses[KV_SLOT(processed - 1)].wire_bytes = wire_bytes;
	__atomic_store_n(&pair->response_control.published, processed, __ATOMIC_RELEASE);
}

/* Batches whose response the communication engine has taken. */
static inline uint32_t kv_batches_answered(const struct kv_queue_pair *pair)
{
	return __atomic_load_n(&pair->request_control.answered, __ATOMIC_RELAXED);
}

/* Bytes of a long key or value in the slot's payload, or NULL if they would lie outside. */
static inline const uint8_t *kv_request_payload(const struct kv_request_slot *slot, uint64_t offset, uint32_t bytes)
{
	return offset <= KV_PAYLOAD_BYTES && bytes <= KV_PAYLOAD_BYTES - offset ? slot->payload + offset : NULL;
}

#endif
