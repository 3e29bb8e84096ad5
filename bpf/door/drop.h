/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* drop.h - drop a frame and count the cause. */
#ifndef KV_DROP_H
#define KV_DROP_H

#include "abi/counters.h"
#include "abi/dpu_queue.h"
#include "base/side.h"

#define KV_COUNTER_MASK 0x3f
_Static_assert(KV_COUNTERS <= KV_COUNTER_MASK + 1, "a masked counter is any of them");

/* Count the cause, an enum kv_counter, and return XDP_DROP. */
static __always_inline int kv_drop(struct kv_dpu_queue *queue, __u32 counter)
{
	counter &= KV_COUNTER_MASK; /* for the verifier, which does not know that it is not negative */
	if (counter < KV_COUNTERS)
		queue->counters[counter]++;
	return XDP_DROP;
}

#endif
