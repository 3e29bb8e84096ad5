/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * heartbeat.h - the sign of life of a processing engine, which says to the communication engine in XDP that somebody
 * still polls the queue pairs: a flag alone stays set when its process is killed.
 */
#ifndef KV_ABI_HEARTBEAT_H
#define KV_ABI_HEARTBEAT_H

#include "abi/words.h"

/* What XDP does with a well-formed frame for an engine that is silent. */
enum kv_when_silent {
	KV_SILENT_REJECT = 0, /* answer each request with KV_REJECTED */
	KV_SILENT_PASS = 1 /* pass the frame to the kernel's stack, which refuses it by ICMP unless a socket is bound */
};

/* A cache line for each engine. The engine's host core writes it, communication engines read it. */
struct kv_heartbeat {
	__u64 beat_ns;	  /*  0, CLOCK_MONOTONIC_COARSE of the latest sign of life; 0: no engine runs */
	__u8 padding[56]; /*  8 */
};
KV_ASSERT(sizeof(struct kv_heartbeat) == 64);

#endif
