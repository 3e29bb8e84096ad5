/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * stages.h - stage clocks: the time that one frame of KV_STAGE_FRAMES spends in each stage.
 *
 * They are in `own`, the private side of this core's queue pair with the first engine, and not on the stack: the
 * verifier tracks the stack and would walk every loop separately for "timed" and "not timed".
 */
#ifndef KV_STAGES_H
#define KV_STAGES_H

#include "abi/dpu_queue.h"
#include "base/side.h"

static __always_inline void kv_judge_gap(struct kv_dpu_queue *own, __u64 gap_ns);

/* Return a running mean after one more value. A mean of 0 starts at the value. */
static __always_inline __u64 kv_mean(__u64 mean, __u64 value)
{
	return mean ? mean - (mean >> KV_MEAN_SHIFT) + (value >> KV_MEAN_SHIFT) : value;
}

/* Begin a frame: decide whether its stages are timed, and judge the gap behind a timed frame. */
static __always_inline void kv_stage_start(struct kv_dpu_queue *own)
{
	own->stage_last_ns = 0;
	if (own->ended_ns) {
		kv_judge_gap(own, bpf_ktime_get_ns() - own->ended_ns);
		own->ended_ns = 0;
	}
	if (++own->sampled < KV_STAGE_FRAMES)
		return;
	own->sampled = 0;
	own->stage_last_ns = bpf_ktime_get_ns();
}

/* Count the current frame and its requests if its stages are timed. */
static __always_inline void kv_stage_count(struct kv_dpu_queue *own, __u32 request_count)
{
	if (!own->stage_last_ns)
		return;
	own->stage_frames++;
	own->stage_requests += request_count;
}

/* Add the time since the last call to `stage`, if the current frame is timed. */
static __always_inline void kv_stage_end(struct kv_dpu_queue *own, enum kv_stage stage)
{
	__u64 now_ns, passed_ns;

	if (!own->stage_last_ns)
		return;
	now_ns = bpf_ktime_get_ns();
	passed_ns = now_ns - own->stage_last_ns;
	own->stage_ns[stage] += passed_ns;
	own->stage_last_ns = now_ns;
	own->ended_ns = now_ns;
	if (stage == KV_STAGE_WAIT)
		own->wait_ns = kv_mean(own->wait_ns, passed_ns);
}

/*
 * Decide whether the core has time to wait for each response, so that none needs to stay parked. A gap between two
 * frames counts as long enough if a wait fits into it; while the core does wait, if any time is left when the next
 * frame comes. The share of long gaps decides, not their mean length: a burst is always followed by one long gap, for
 * example when a client waits for our answers.
 */
static __always_inline void kv_judge_gap(struct kv_dpu_queue *own, __u64 gap_ns)
{
	__u64 needed_ns = KV_GAP_NS;

	if (own->wait_ns == 0)
		return;
	if (!own->has_time)
		needed_ns += own->wait_ns + (own->wait_ns >> 2);
	own->fits -= own->fits >> KV_FITS_SHIFT;
	if (gap_ns > needed_ns)
		own->fits += KV_FITS_ALL >> KV_FITS_SHIFT;
	if (own->fits > KV_FITS_ALL / 2 + KV_FITS_ALL / 8)
		own->has_time = 1;
	else if (own->fits < KV_FITS_ALL / 2 - KV_FITS_ALL / 8)
		own->has_time = 0;
}

#endif
