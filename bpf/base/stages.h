/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * stages.h - stage clocks: where the time of one frame in KV_STAGE_FRAMES goes.
 *
 * They stand in `own`, the private side of this core's queue pair with the first engine, and not on the stack: what is
 * known there ("no clock: 0") the verifier would follow separately through every loop.
 */
#ifndef KV_STAGES_H
#define KV_STAGES_H

#include "abi/dpu_queue.h"
#include "base/side.h"

static __always_inline void kv_judge_gap(struct kv_dpu_queue *own, __u64 gap_ns);

/* A running mean that starts at its first value. */
static __always_inline __u64 kv_mean(__u64 mean, __u64 value)
{
	return mean ? mean - (mean >> KV_MEAN_SHIFT) + (value >> KV_MEAN_SHIFT) : value;
}

/* A core's next frame: is it timed, and what was there between it and one that was? */
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

/* The frame at hand has so many requests: its stages, if they are timed, are theirs. */
static __always_inline void kv_stage_count(struct kv_dpu_queue *own, __u32 request_count)
{
	if (!own->stage_last_ns)
		return;
	own->stage_frames++;
	own->stage_requests += request_count;
}

/* What passed since the last call belongs to `stage`. */
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
 * Would a wait for each response fit between the frames? Then none need stay parked for a later one. While it waits, a
 * core has time if it has any left when the next frame comes. How many gaps are long enough says more than how long
 * they are: behind a burst there is always one, be it that of a client that waits for us.
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
