/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* sender.h - the thread that lets overdue responses out. */
#ifndef KV_SENDER_H
#define KV_SENDER_H

#include "abi/limits.h"
#include "base/integers.h"

/* The sender of one communication core: wakes up to let overdue responses out. */
struct kv_sender {
	uint32_t wake; /* futex: engines count it up */
	uint32_t stop;
	uint32_t overdue[KV_ENGINES_MAX]; /* set by engine e: its oldest response waits too long */
	uint32_t cpu;
	uint32_t cpus; /* KV_CPUS of the loaded programs */
	uint32_t engines;
	int32_t program_fd;	 /* kv_flush */
	int32_t socket_fd;	 /* a packet socket bound to the interface */
	uint32_t polled_engines; /* the first ones are in XDP, where nobody can wake it: it looks for itself */
	uint64_t frames_sent;
	uint64_t send_failures; /* frames that the packet socket refused */
	uint64_t run_failures;	/* BPF_PROG_RUN calls that failed */
};

/* Wait for engines to report overdue responses and let them out, until `stop`. On a thread pinned to `cpu`. */
int kv_sender_run(struct kv_sender *sender);
/* Wake a sender, for example after setting `stop`. */
void kv_sender_wake(struct kv_sender *sender);

#endif
