/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* wait.h - waiting for another thread in a loop. */
#ifndef KV_WAIT_H
#define KV_WAIT_H

#include <sched.h>

#include "base/integers.h"

/* Turns of waiting before a thread gives up its core, perhaps to the one it waits for. */
#define KV_TURNS_TO_YIELD 256

/* Give way to the thread that is waited for; `turns` counts. */
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
