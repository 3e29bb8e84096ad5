/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* wait.h - busy waiting for another thread. */
#ifndef KV_WAIT_H
#define KV_WAIT_H

#include <sched.h>

#include "base/integers.h"

/* Turns of waiting before a thread yields its core, perhaps to the thread that it waits for. */
#define KV_TURNS_TO_YIELD 256

/* Wait for one turn: pause, or yield the core after many turns. `turns` counts them. */
static inline void kv_wait_a_turn(uint32_t *turns)
{
	if (++*turns % KV_TURNS_TO_YIELD == 0)
		sched_yield();
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

#endif
