/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * host_end.h - the host's end of the queue pair (the DPU's end is bpf/queue/dpu_end.h).
 *
 * One engine thread consumes a queue pair's requests and produces its responses. Every number that the other end writes
 * is checked before it is used.
 */
#ifndef KV_HOST_END_H
#define KV_HOST_END_H

#include "abi/queue_pair.h"
#include "queue/sender.h"

/* Timer for responses that no frame comes to carry. */
struct kv_overdue {
	uint64_t since_ticks; /* time of the last response or wake-up, in ticks */
	uint32_t woken;	      /* 1: the sender has been woken for the batches that are parked now */
	uint32_t padding;
};

/* One queue pair of an engine, seen from the host's end. */
struct kv_engine_pair {
	struct kv_queue_pair *pair;
	struct kv_sender *sender; /* sender of the communication core at the other end; NULL if that end polls */
	uint32_t processed;	  /* batches processed */
	uint32_t published;	  /* batches handed back; fewer than processed while the emulated bus carries some */
	uint32_t seen;		  /* batches that are known to have arrived over the emulated bus */
	uint32_t refused;	  /* value of the last counter out of range that was counted as an error */
	struct kv_overdue overdue;
	uint64_t arrives_ticks[KV_SLOTS];
	uint64_t leaves_ticks[KV_SLOTS];
};

#ifndef KV_ABI_CDEF

#define KV_SLOT(counter) ((counter) % KV_SLOTS)

/* Return the batches ready to be processed. More than KV_SLOTS means that the counter is broken. */
static inline uint32_t kv_batches_ready(const struct kv_queue_pair *pair, uint32_t processed)
{
	return __atomic_load_n(&pair->request_control.published, __ATOMIC_ACQUIRE) - processed;
}

/* Return the requests in a slot's batch, or 0 if the count exceeds KV_BATCH_MAX. */
static inline uint32_t kv_batch_requests(const struct kv_request_slot *slot)
{
	uint32_t count = __atomic_load_n(&slot->count, __ATOMIC_RELAXED);

	return count <= KV_BATCH_MAX ? count : 0;
}

static inline uint32_t kv_batch_has_payload(const struct kv_request_slot *slot)
{
	return __atomic_load_n(&slot->has_payload, __ATOMIC_RELAXED);
}

/*
 * The paper's second call: hand the oldest batch's responses back with one store. `processed` includes this batch.
 */
static inline void send_response_queue_to_dpu(struct kv_queue_pair *pair, uint32_t processed)
{
	__atomic_store_n(&pair->response_control.published, processed, __ATOMIC_RELEASE);
}

/* Return the batches whose response the communication engine has taken. */
static inline uint32_t kv_batches_answered(const struct kv_queue_pair *pair)
{
	return __atomic_load_n(&pair->request_control.answered, __ATOMIC_RELAXED);
}

/* Restart the timer: responses have just been handed back. */
static inline void kv_overdue_restart(struct kv_overdue *overdue, uint64_t now_ticks)
{
	overdue->since_ticks = now_ticks;
	overdue->woken = 0;
}

/*
 * Wake the sender of the pair's core if a response has been parked for too long. Return whether it was woken.
 * `published` is the number of batches handed back; `here` is the core that this runs on: the communication engine of
 * the same core cannot wait for a response, so it is overdue at once.
 */
static inline int kv_overdue_wake(struct kv_overdue *overdue, const struct kv_queue_pair *pair, uint32_t published,
				  struct kv_sender *sender, uint32_t engine, uint32_t here, uint64_t wait_ticks,
				  uint64_t now_ticks)
{
	if (kv_batches_answered(pair) == published)
		return 0;
	if (!overdue->woken && __atomic_load_n(&pair->request_control.drain, __ATOMIC_RELAXED))
		wait_ticks = 0;
	if (sender->cpu == here && !overdue->woken)
		wait_ticks = 0;
	if (now_ticks - overdue->since_ticks < wait_ticks)
		return 0;
	overdue->since_ticks = now_ticks;
	overdue->woken = 1;
	__atomic_store_n(&sender->overdue[engine], 1, __ATOMIC_RELEASE);
	kv_sender_wake(sender);
	return 1;
}

#endif /* KV_ABI_CDEF */
#endif
