/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* communicate.h - the host's communication engine. */
#ifndef KV_COMMUNICATE_H
#define KV_COMMUNICATE_H

#include "abi/dpu_queue.h"
#include "port/frames.h"
#include "port/socket.h"
#include "queue/sender.h"

/* One communication engine: its source of frames, and its own queue pair with every engine. The caller of
 * kv_communicator_create() fills in the other fields before kv_host_run(). */
struct kv_communicator {
	struct kv_socket *socket;    /* source of frames: an AF_XDP socket, or */
	struct kv_queue_pair *rings; /* `ring_count` mapped rings of whole frames, one per core, or */
	const struct kv_port *port;  /* another port, */
	void *source;		     /* with this source */
	struct kv_sender *senders;   /* senders of the cores with rings */
	uint64_t flush_after_ticks;  /* as in struct kv_engine */
	uint32_t ring_count;
	uint32_t ring_engine; /* engine that the rings belong to */
	uint32_t engines;
	uint32_t first_port;	     /* UDP port of engine 0 */
	uint32_t address;	     /* network order, 0 = any */
	uint32_t broadcast;	     /* of the interface's subnet, network order, 0 = none */
	uint64_t mac;		     /* of the interface, first byte lowest, 0 = any */
	uint32_t frames_max;	     /* most frames with one engine: the others' frames need memory, too */
	uint32_t noted;		     /* 1: a struct kv_frame_note is in front of every frame */
	uint32_t send_after_parse;   /* 1: send a batch's responses after the next batch has been parsed, as in MICA */
	struct kv_queue_pair *pairs; /* [engines] */
	struct kv_dpu_queue *queues; /* [engines], the private side with the counters; stages in the first one */
	struct kv_parked *parked;    /* [engines], parked batches */
	struct kv_communicator_state *state;
};

/* Create a communication engine. Return NULL and set errno on failure. */
struct kv_communicator *kv_communicator_create(uint32_t engines);
void kv_communicator_destroy(struct kv_communicator *communicator);

/* The communication engine's part in a turn of a host core: steps 1 and 2 for received frames, step 4 for finished
 * batches. Each returns a number of frames. */
int kv_communicator_begin(struct kv_communicator *communicator, uint32_t cpu);
uint32_t kv_communicator_receive(struct kv_communicator *communicator);
uint32_t kv_communicator_answer(struct kv_communicator *communicator);
void kv_communicator_idle(struct kv_communicator *communicator, uint64_t now_ticks);
void kv_communicator_end(struct kv_communicator *communicator);

#endif
