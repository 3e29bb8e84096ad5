/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* frames.h - where a host door gets frames from, and where it sends them. */
#ifndef KV_FRAMES_H
#define KV_FRAMES_H

#include "base/integers.h"

struct kv_frame {
	uint8_t *data;
	uint8_t *reply; /* where its answer is built: the same place, for a socket's frames */
	uint32_t bytes;
	uint32_t room; /* bytes that the answer may have */
	uint64_t tag;  /* where it came from: its port's own */
};

/* Where frames come from and go to: what any source of them can do. */
struct kv_port {
	/* Up to `room` frames that have come in; they are the caller's until sent or released. Never blocks. */
	uint32_t (*receive)(void *source, struct kv_frame *frames, uint32_t room);
	/* Queue an answer in the place of a frame received from this source. */
	void (*send)(void *source, const struct kv_frame *frame);
	/* Give a frame back unsent. */
	void (*release)(void *source, const struct kv_frame *frame);
	/* Have everything sent that is queued. */
	void (*flush)(void *source);
};

#endif
