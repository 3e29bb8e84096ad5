/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ticks.h - the cheapest clock of the core: TSC, or CNTVCT_EL0 as the paper's section 5 replaces it on ARM. */
#ifndef KV_TICKS_H
#define KV_TICKS_H

#include "base/integers.h"

/* Return the ticks per second of the host's clock. */
uint64_t kv_ticks_per_second(void);

#ifndef KV_ABI_CDEF

static inline uint64_t kv_ticks(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	uint64_t ticks;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
	return ticks;
#else
#error "no cycle counter known for this architecture"
#endif
}

#endif /* KV_ABI_CDEF */
#endif
