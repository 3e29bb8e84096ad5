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
	uint32_t records_taken;	  /* number of the next response record */
	uint32_t records_freed;	  /* number of the oldest one in use, as far as is known */
	uint32_t in_round;	  /* batches of this pair in the current round that are not yet processed */
	uint32_t padding;
	struct kv_overdue overdue;
	uint64_t *arrives_ticks; /* [KV_BATCHES] where a bus is emulated, else NULL, as the next one */
	uint64_t *leaves_ticks;
};

#ifndef KV_ABI_CDEF

#define KV_ENTRY(number) ((number) % KV_BATCHES)
#define KV_RECORD(number) ((number) % KV_RECORDS)

/* Return the batches ready to be processed. More than KV_BATCHES means that the counter is broken. */
static inline uint32_t kv_batches_ready(const struct kv_queue_pair *pair, uint32_t processed)
{
	return __atomic_load_n(&pair->request_control.published, __ATOMIC_ACQUIRE) - processed;
}

/* Return the requests of a batch, or 0 if the count exceeds KV_BATCH_MAX. */
static inline uint32_t kv_batch_requests(const struct kv_batch_entry *entry)
{
	uint32_t count = __atomic_load_n(&entry->count, __ATOMIC_RELAXED);

	return count <= KV_BATCH_MAX ? count : 0;
}

/* Return the bytes of a batch's body or whole frame: not more than KV_FRAME_MAX, or 0. */
static inline uint32_t kv_batch_body_bytes(const struct kv_batch_entry *entry)
{
	uint32_t bytes = __atomic_load_n(&entry->body_bytes, __ATOMIC_RELAXED);

	return bytes <= KV_FRAME_MAX ? bytes : 0;
}

static inline uint32_t kv_batch_has_body(const struct kv_batch_entry *entry)
{
	return __atomic_load_n(&entry->has_body, __ATOMIC_RELAXED);
}

/* Return the records of a batch, or its frame. */
static inline const struct kv_request *kv_batch_records(const struct kv_queue_pair *pair,
							const struct kv_batch_entry *entry)
{
	return &pair->requests[KV_RECORD(__atomic_load_n(&entry->first_record, __ATOMIC_RELAXED))];
}

/*
 * The paper's second call: hand the oldest batch's responses back with one store. `processed` includes this batch.
 */
static inline void send_response_queue_to_dpu(struct kv_queue_pair *pair, uint32_t processed)
{
	__atomic_store_n(&pair->response_control.published, processed, __ATOMIC_RELEASE);
}

/* Return the batches whose response the communication engine has taken: their records may be written again. */
static inline uint32_t kv_batches_answered(const struct kv_queue_pair *pair)
{
	return __atomic_load_n(&pair->request_control.answered, __ATOMIC_ACQUIRE);
}

/* Return whether the communication engine asks for the sender, see kv_drain(). */
static inline int kv_is_draining(const struct kv_queue_pair *pair)
{
	return __atomic_load_n(&pair->request_control.drain, __ATOMIC_RELAXED) != 0;
}

/* Begin to number responses where the last of the `processed` batches ended. */
static inline void kv_responses_begin(struct kv_engine_pair *state)
{
	const struct kv_answer_entry *last = &state->pair->answers[KV_ENTRY(state->processed - 1)];

	state->records_taken = last->first_record + last->records;
	state->records_freed = state->records_taken - KV_RECORDS; /* all are in use until kv_response_room() looks */
}

/*
 * Return how many more batches may be processed before the communication engine takes some of their responses: each may
 * need KV_BATCH_RECORDS_MAX. With nothing in flight the next response begins at the start of the ring. An `answered`
 * out of range frees nothing.
 */
static inline uint32_t kv_response_room(struct kv_engine_pair *state)
{
	uint32_t answered = kv_batches_answered(state->pair);
	uint32_t unanswered = state->processed - answered;
	uint32_t in_use;

	if (unanswered == 0)
		state->records_taken = state->records_freed = 0;
	else if (unanswered <= KV_BATCHES)
		state->records_freed = state->pair->answers[KV_ENTRY(answered)].first_record;
	in_use = state->records_taken - state->records_freed;
	return in_use <= KV_RECORDS ? (KV_RECORDS - in_use) / KV_BATCH_RECORDS_MAX : 0;
}

/* Note the responses to the next batch, which take `records` from the next response record on. */
static inline void kv_answer(struct kv_engine_pair *state, uint32_t wire_bytes, uint32_t records)
{
	struct kv_answer_entry *answer = &state->pair->answers[KV_ENTRY(state->processed)];

	*answer = (struct kv_answer_entry){ (uint16_t)wire_bytes, (uint16_t)records, state->records_taken };
	state->records_taken += records;
	state->processed++;
}

/*
 * Wake the sender of the pair's core, if it has one, if a response has been parked for too long. Return whether it was
 * woken. `here` is the core that this runs on: the communication engine of the same core cannot wait for a response, so
 * it is overdue at once.
 */
static inline int kv_overdue_wake(struct kv_engine_pair *state, uint32_t engine, uint32_t here, uint64_t wait_ticks,
				  uint64_t now_ticks)
{
	struct kv_overdue *overdue = &state->overdue;
	struct kv_sender *sender = state->sender;

	if (!sender || kv_batches_answered(state->pair) == state->published)
		return 0;
	if (!overdue->woken && (kv_is_draining(state->pair) || sender->cpu == here))
		wait_ticks = 0;
	if (now_ticks - overdue->since_ticks < wait_ticks)
		return 0;
	overdue->since_ticks = now_ticks;
	overdue->woken = 1;
	if (__atomic_exchange_n(&sender->overdue[engine], 1, __ATOMIC_ACQ_REL))
		return 0; /* it has been woken and has not looked yet */
	kv_sender_wake(sender);
	return 1;
}

/*
 * Restart the timer: responses have just been handed back, and frames will carry them. Where the communication engine
 * asks for the sender, wake it instead, as above: who is busy all the time does not look for overdue responses.
 */
static inline int kv_hand_on(struct kv_engine_pair *state, uint32_t engine, uint32_t here, uint64_t wait_ticks,
			     uint64_t now_ticks)
{
	if (kv_is_draining(state->pair))
		return kv_overdue_wake(state, engine, here, wait_ticks, now_ticks);
	state->overdue.since_ticks = now_ticks;
	state->overdue.woken = 0;
	return 0;
}

#endif /* KV_ABI_CDEF */
#endif
