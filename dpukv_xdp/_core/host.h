/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* host.h - what a host core's loop calls: the parts of one turn. */
#ifndef KV_HOST_H
#define KV_HOST_H

#include "kv_core.h"

/* engine.c. Serving begins and ends; a turn returns the batches it processed; the idle turn looks for overdue ones. */
int kv_engine_begin(struct kv_engine *engine);
uint32_t kv_engine_turn(struct kv_engine *engine);
void kv_engine_idle(struct kv_engine *engine, uint64_t now_ticks);
void kv_engine_end(struct kv_engine *engine);

/* communicate.c. Steps 1 and 2 for what has come in, and step 4 for what is finished; each returns the frames. */
int kv_communicator_begin(struct kv_communicator *communicator, uint32_t cpu);
uint32_t kv_communicator_receive(struct kv_communicator *communicator);
uint32_t kv_communicator_answer(struct kv_communicator *communicator);
void kv_communicator_idle(struct kv_communicator *communicator, uint64_t now_ticks);
void kv_communicator_end(struct kv_communicator *communicator);

#endif
