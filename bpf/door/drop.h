/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* drop.h - frames of ours that are not served. */
#ifndef KV_DROP_H
#define KV_DROP_H

#include "abi/counters.h"
#include "abi/dpu_queue.h"
#include "base/side.h"

#define KV_COUNTER_MASK 0x3f
_Static_assert(KV_COUNTERS <= KV_COUNTER_MASK + 1, "a masked counter is any of them");

/* Drop the frame at hand and count the cause, an enum kv_counter. */
static __always_inline int kv_drop(struct kv_dpu_queue *queue, __u32 counter)
{
	counter &= KV_COUNTER_MASK; /* for the verifier: it has lost track of the sign */
	if (counter < KV_COUNTERS)
		queue->counters[counter]++;
	return XDP_DROP;
}

#endif
