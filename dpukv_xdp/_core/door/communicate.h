/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* communicate.h - the host's communication engine. */
#ifndef KV_COMMUNICATE_H
#define KV_COMMUNICATE_H

#include "abi/dpu_queue.h"
#include "port/frames.h"
#include "port/socket.h"
#include "queue/sender.h"

/* One source of frames and what came of them; its own queue pair with every engine. Made by kv_communicator_create(),
 * which leaves the rest to be filled in before kv_host_run(). */
struct kv_communicator {
	struct kv_socket *socket;    /* frames come through AF_XDP, or */
	struct kv_queue_pair *rings; /* whole, through `ring_count` mapped rings, one for each core, or */
	const struct kv_port *port;  /* through another port than these, */
	void *source;		     /* from what this port calls its source */
	struct kv_sender *senders;   /* of those cores */
	uint64_t flush_after_ticks;  /* as in struct kv_engine */
	uint32_t ring_count;
	uint32_t ring_engine; /* whose rings they are */
	uint32_t engines;
	uint32_t first_port;	     /* engine 0's */
	uint32_t address;	     /* network order, 0 = any */
	uint32_t noted;		     /* 1: struct kv_frame_note stands in front of every frame */
	uint32_t send_after_parse;   /* 1: a batch's responses wait for the next batch's parsing, as in MICA */
	struct kv_queue_pair *pairs; /* [engines] */
	struct kv_dpu_queue *queues; /* [engines], the private side with the counters; stages in the first one */
	struct kv_communicator_state *state;
};

/* NULL and errno on failure. */
struct kv_communicator *kv_communicator_create(uint32_t engines);
void kv_communicator_destroy(struct kv_communicator *communicator);

/* The parts of a turn of a host core: steps 1 and 2 for what has come in, and step 4 for what is finished; each returns
 * the frames. */
int kv_communicator_begin(struct kv_communicator *communicator, uint32_t cpu);
uint32_t kv_communicator_receive(struct kv_communicator *communicator);
uint32_t kv_communicator_answer(struct kv_communicator *communicator);
void kv_communicator_idle(struct kv_communicator *communicator, uint64_t now_ticks);
void kv_communicator_end(struct kv_communicator *communicator);

#endif
