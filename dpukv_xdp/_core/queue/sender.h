/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* sender.h - the thread that sends overdue responses. */
#ifndef KV_SENDER_H
#define KV_SENDER_H

#include "abi/limits.h"
#include "base/integers.h"

/* The sender of one communication core. */
struct kv_sender {
	uint32_t wake; /* futex, incremented by engines to wake the sender */
	uint32_t stop;
	uint32_t overdue[KV_ENGINES_MAX]; /* [e] is set by engine e: its oldest response has been parked for too long */
	uint32_t cpu;
	uint32_t cpus; /* KV_CPUS of the loaded programs */
	uint32_t engines;
	int32_t program_fd;	 /* kv_flush */
	int32_t socket_fd;	 /* a packet socket bound to the interface */
	uint32_t polled_engines; /* so many first engines are in XDP and cannot wake the sender: it polls for them */
	uint64_t frames_sent;
	uint64_t send_failures; /* frames that the packet socket refused */
	uint64_t run_failures;	/* BPF_PROG_RUN calls that failed */
};

/*
 * Wait for engines to report overdue responses and send these, until `stop` is set. Call it on a thread pinned to
 * `cpu`.
 */
int kv_sender_run(struct kv_sender *sender);
/* Wake the sender, for example after setting `stop`. */
void kv_sender_wake(struct kv_sender *sender);

#endif
