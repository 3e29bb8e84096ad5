/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* host.h - a host core: the loop that its engines run in. */
#ifndef KV_HOST_H
#define KV_HOST_H

#include "abi/load.h"
#include "abi/partitions.h"
#include "door/communicate.h"
#include "service/engine.h"

enum kv_host_limit { KV_HOST_COMMUNICATORS_MAX = KV_QUEUES_MAX + KV_ENGINES_MAX };

/* One host core's polling loop: communication engines, processing engines, or both ("fused"). */
struct kv_host {
	uint32_t cpu;
	uint32_t stop; /* set by any thread to make kv_host_run() return */
	uint32_t engine_count;
	uint32_t communicator_count;
	struct kv_engine *engines[KV_ENGINES_MAX];
	struct kv_communicator *communicators[KV_HOST_COMMUNICATORS_MAX];
	uint64_t rounds;
	uint64_t total_ticks;
	uint64_t stall_ns; /* pause in each KV_STALL_PERIOD_MS, off the core; 0 for none. Any thread may set it */
	uint64_t stall_period_ticks; /* KV_STALL_PERIOD_MS in ticks; 0: not yet measured */
	uint64_t stalled_ticks;	     /* start of the last pause, in ticks */
	uint64_t beat_ns;	     /* latest heartbeat of its engines */
};

/* Run until `stop` is set. Call it on the core's own, pinned thread. */
int kv_host_run(struct kv_host *host);
/*
 * Give a partition to another engine while both are running. Unless all engines may write, the partition has no owner
 * until every host has finished two turns and with them all requests begun before: meanwhile requests are rejected.
 * Return 0, or -ETIMEDOUT if a host takes more than 200 ms: then the old owner has it again.
 */
int kv_partition_move(struct kv_partition_table *table, uint32_t partition, uint32_t engine,
		      struct kv_host *const *hosts, uint32_t host_count);

#endif
