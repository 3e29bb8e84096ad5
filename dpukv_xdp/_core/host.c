// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * host.c - the loop of one host core.
 *
 * A turn receives, processes and answers, for all communication and processing engines of the core. With both kinds it
 * runs every batch to completion ("fused"); with processing engines alone it is the host's end of their queue pairs,
 * served round robin.
 */
#include <errno.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/ticks.h"
#include "host.h"

#define KV_IDLE_ROUNDS_TO_CLOCK 16 /* idle rounds between two searches for overdue responses */
#define KV_TURNS_TO_BEAT 64	   /* turns between two looks at the clock; one takes some 10 us at most */
#define KV_TURNS_TO_SEE 2	   /* the turn in progress when counting begins, and a whole one after it */
#define KV_MOVES_PER_SECOND_MIN 5  /* a move may take 200 ms: much less than clients' time-outs */

static int kv_hosts_wait(struct kv_host *const *hosts, uint32_t host_count, uint64_t deadline_ticks);
static int kv_host_begin(struct kv_host *host);
static void kv_host_beat(struct kv_host *host);
static uint32_t kv_host_turn(struct kv_host *host);
static void kv_host_stall(struct kv_host *host, uint64_t stall_ns);
static void kv_host_end(struct kv_host *host, uint32_t engines, uint32_t communicators);

int kv_host_run(struct kv_host *host)
{
	uint64_t start_ticks = kv_ticks();
	uint32_t idle_rounds = 0;
	int status = kv_host_begin(host);

	if (status)
		return status;
	kv_host_beat(host); /* XDP may send the first batch at once */
	while (!__atomic_load_n(&host->stop, __ATOMIC_RELAXED)) {
		uint64_t stall_ns = __atomic_load_n(&host->stall_ns, __ATOMIC_RELAXED);
		uint32_t work = kv_host_turn(host);

		if (host->rounds % KV_TURNS_TO_BEAT == 0)
			kv_host_beat(host);
		if (__builtin_expect(stall_ns != 0, 0))
			kv_host_stall(host, stall_ns);
		__atomic_store_n(&host->rounds, host->rounds + 1, __ATOMIC_RELEASE);
		if (work || ++idle_rounds % KV_IDLE_ROUNDS_TO_CLOCK)
			continue;
		host->total_ticks = kv_ticks() - start_ticks;
		for (uint32_t i = 0; i < host->engine_count; i++)
			kv_engine_idle(host->engines[i], start_ticks + host->total_ticks);
		for (uint32_t i = 0; i < host->communicator_count; i++)
			kv_communicator_idle(host->communicators[i], start_ticks + host->total_ticks);
	}
	kv_host_end(host, host->engine_count, host->communicator_count);
	host->total_ticks = kv_ticks() - start_ticks;
	return 0;
}

int kv_partition_move(struct kv_partition_table *table, uint32_t partition, uint32_t engine,
		      struct kv_host *const *hosts, uint32_t host_count)
{
	uint64_t timeout_ticks = kv_ticks_per_second() / KV_MOVES_PER_SECOND_MIN; /* first: the call may sleep */
	uint8_t old_owner = table->owner[partition];

	if (host_count > KV_ENGINES_MAX)
		return -EINVAL;
	if (old_owner == engine)
		return 0;
	if (table->concurrent_write) {
		__atomic_store_n(&table->owner[partition], (uint8_t)engine, __ATOMIC_RELEASE);
		return 0;
	}
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0))
		return -errno;
	__atomic_store_n(&table->owner[partition], KV_OWNER_NONE, __ATOMIC_SEQ_CST);
	/* A barrier on the hosts' cores, too: their counts of turns may still be in store buffers. */
	syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
	if (kv_hosts_wait(hosts, host_count, kv_ticks() + timeout_ticks)) {
		__atomic_store_n(&table->owner[partition], old_owner, __ATOMIC_RELEASE);
		return -ETIMEDOUT;
	}
	__atomic_store_n(&table->owner[partition], (uint8_t)engine, __ATOMIC_RELEASE);
	return 0;
}

/* Wait until each host has begun and finished a turn after this call, all at the same time. */
static int kv_hosts_wait(struct kv_host *const *hosts, uint32_t host_count, uint64_t deadline_ticks)
{
	struct timespec pause = { .tv_nsec = 50000 };
	uint64_t rounds[KV_ENGINES_MAX]; /* each host core has at least one engine */

	for (uint32_t i = 0; i < host_count; i++)
		rounds[i] = __atomic_load_n(&hosts[i]->rounds, __ATOMIC_SEQ_CST);
	for (uint32_t i = 0; i < host_count; i++) {
		while (__atomic_load_n(&hosts[i]->rounds, __ATOMIC_ACQUIRE) < rounds[i] + KV_TURNS_TO_SEE) {
			if (__atomic_load_n(&hosts[i]->stop, __ATOMIC_RELAXED))
				break;
			if (kv_ticks() > deadline_ticks)
				return -ETIMEDOUT;
			nanosleep(&pause, NULL);
		}
	}
	return 0;
}

/* Begin all engines or none: an engine that began would report itself alive although nobody polls it. */
static int kv_host_begin(struct kv_host *host)
{
	uint32_t engines = 0, communicators = 0;
	int status = 0;

	if (host->engine_count > KV_ENGINES_MAX || host->communicator_count > KV_HOST_COMMUNICATORS_MAX)
		return -EINVAL;
	while (engines < host->engine_count && !(status = kv_engine_begin(host->engines[engines])))
		engines++;
	while (!status && communicators < host->communicator_count &&
	       !(status = kv_communicator_begin(host->communicators[communicators], host->cpu)))
		communicators++;
	if (status)
		kv_host_end(host, engines, communicators);
	return status;
}

/* Show that the engines live, once in each tick of the coarse clock, which costs little to read. */
static void kv_host_beat(struct kv_host *host)
{
	struct timespec now;
	uint64_t now_ns;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	now_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	if (now_ns == host->beat_ns)
		return;
	host->beat_ns = now_ns;
	for (uint32_t i = 0; i < host->engine_count; i++)
		kv_engine_beat(host->engines[i], now_ns);
}

/* Run one turn. Return the number of frames and batches: 0 = idle. */
static uint32_t kv_host_turn(struct kv_host *host)
{
	uint32_t work = 0;

	for (uint32_t i = 0; i < host->communicator_count; i++)
		work += kv_communicator_receive(host->communicators[i]);
	for (uint32_t i = 0; i < host->engine_count; i++)
		work += kv_engine_turn(host->engines[i]);
	for (uint32_t i = 0; i < host->communicator_count; i++)
		work += kv_communicator_answer(host->communicators[i]);
	return work;
}

/* Pause at most once in each period, as if the kernel gave the core to another process. */
static void kv_host_stall(struct kv_host *host, uint64_t stall_ns)
{
	const struct timespec pause = { .tv_nsec = (long)stall_ns };
	uint64_t now_ticks = kv_ticks();

	if (!host->stall_period_ticks) /* measured once: that sleeps, too */
		host->stall_period_ticks = kv_ticks_per_second() * KV_STALL_PERIOD_MS / 1000;
	if (now_ticks - host->stalled_ticks < host->stall_period_ticks)
		return;
	host->stalled_ticks = now_ticks;
	nanosleep(&pause, NULL);
}

/* End the first engines of each kind. */
static void kv_host_end(struct kv_host *host, uint32_t engines, uint32_t communicators)
{
	for (uint32_t i = 0; i < communicators; i++)
		kv_communicator_end(host->communicators[i]);
	for (uint32_t i = 0; i < engines; i++)
		kv_engine_end(host->engines[i]);
}
