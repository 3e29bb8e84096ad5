/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* engine.h - the processing engine. */
#ifndef KV_ENGINE_H
#define KV_ENGINE_H

#include "abi/heartbeat.h"
#include "abi/operation_table.h"
#include "abi/partitions.h"
#include "queue/bus.h"
#include "queue/host_end.h"
#include "queue/ringbuf.h"
#include "store/operations.h"

enum kv_engine_limit {
	KV_HOST_PAIRS_MAX = KV_CPUS_MAX + KV_QUEUES_MAX /* queue pairs of one engine */
};

/* Counters of one engine. Its thread writes them; any thread may read them at any time. */
struct kv_engine_stats {
	uint64_t batches;
	uint64_t requests;
	struct kv_operation_counts counts;
	uint64_t tests;
	uint64_t deletes;
	uint64_t increments;
	uint64_t bad_batches; /* batches with a counter or count out of range */
	uint64_t wakeups;     /* times a sender was woken for an overdue response */
	uint64_t busy_ticks;  /* ticks of the time stamp counter spent on batches */
};

struct kv_engine {
	const struct kv_partition_table *partitions;
	struct kv_store *stores[KV_PARTITIONS_MAX]; /* the engine's handle on each partition's store */
	uint32_t partition_count;		    /* partitions in the table; constant */
	uint32_t partition_step;		    /* 2^32 / partition_count, rounded up; set by kv_engine_begin() */
	uint32_t takes_all; /* 1: it is the only engine, or all may read and write: the owner is not checked */
	struct kv_heartbeat *heartbeat; /* sign of life for XDP, or NULL */
	struct kv_ringbuf *ring;	/* source of requests instead of the pairs, or NULL */
	uint32_t id;
	uint32_t cpu; /* core that this engine runs on */
	uint32_t pair_count;
	uint32_t next_pair;	       /* pair that the next round begins with */
	uint32_t response_bytes_max;   /* response bytes of one packet, behind the packet header */
	uint32_t transfer_per_request; /* 1: wait for each record and hand each response back separately */
	uint64_t flush_after_ticks;    /* a response older than this is overdue */
	uint64_t indexed;	       /* kv_store.indexed of an inline store before its last plain round */
	struct kv_bus bus;
	struct kv_engine_stats stats;
	uint64_t partition_requests[KV_PARTITIONS_MAX]; /* requests by partition, counted if there are several */
	struct kv_engine_pair pairs[KV_HOST_PAIRS_MAX]; /* those of communication cores first, by number */
};

/*
 * The engine's part in the loop of a host core. kv_engine_begin() returns 0 or -EINVAL; kv_engine_turn() returns how
 * many batches it processed; kv_engine_idle() looks for overdue responses; kv_engine_beat()
 * shows that it lives.
 */
int kv_engine_begin(struct kv_engine *engine);
uint32_t kv_engine_turn(struct kv_engine *engine);
void kv_engine_idle(struct kv_engine *engine, uint64_t now_ticks);
void kv_engine_beat(struct kv_engine *engine, uint64_t now_ns);
void kv_engine_end(struct kv_engine *engine);

#endif
