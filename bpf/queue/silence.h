/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * silence.h - whether a processing engine still lives, judged by its heartbeat.
 */
#ifndef KV_SILENCE_H
#define KV_SILENCE_H

#include "abi/heartbeat.h"
#include "base/maps.h"
#include "queue/dpu_end.h"

/* Defined in kv_receive.c, with the other map calls for headers. */
static __always_inline const struct kv_heartbeat *kv_heartbeat_of(__u32 engine);

static __always_inline int kv_beat_is_missing(const struct kv_heartbeat *heartbeat);

/*
 * Return whether nobody polls the engine's queue pairs any more. The heartbeat is looked at once in a tick of the
 * kernel (1 to 10 ms): between two ticks this costs one load. An engine that has finished something counts as there
 * until all of that is answered, because the frames for it carry the answers.
 */
static __always_inline int kv_engine_is_silent(__u32 engine, struct kv_dpu_queue *queue)
{
	__u64 tick = bpf_jiffies64();

	if (tick != queue->looked_at_tick) {
		const struct kv_heartbeat *heartbeat = kv_heartbeat_of(engine);

		if (!heartbeat)
			return 1;
		queue->looked_at_tick = tick;
		queue->silent = kv_beat_is_missing(heartbeat);
	}
	return queue->silent && !kv_known_finished(queue);
}

/*
 * Return whether the latest heartbeat is older than KV_SILENT_NS, or as far in the future: an engine that had written
 * such a one could never be missed.
 */
static __always_inline int kv_beat_is_missing(const struct kv_heartbeat *heartbeat)
{
	__u64 beat_ns = KV_READ_ONCE(heartbeat->beat_ns);

	if (beat_ns == 0)
		return 1;
	return KV_SILENT_NS && bpf_ktime_get_coarse_ns() - beat_ns + KV_SILENT_NS > 2 * KV_SILENT_NS;
}

#endif
