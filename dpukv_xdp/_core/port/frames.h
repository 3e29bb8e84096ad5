/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* frames.h - the interface of a port: a host door receives frames from it and sends answers to it. */
#ifndef KV_FRAMES_H
#define KV_FRAMES_H

#include "base/integers.h"

struct kv_frame {
	uint8_t *data;
	uint8_t *reply; /* where its answer is built; for frames of a socket the same place */
	uint32_t bytes;
	uint32_t room; /* most bytes of the answer */
	uint64_t tag;  /* private to the port */
};

/* The functions of a port. */
struct kv_port {
	/* Receive up to `room` frames, without blocking. They belong to the caller until sent or released. */
	uint32_t (*receive)(void *source, struct kv_frame *frames, uint32_t room);
	/* Queue the answer to a frame received from this source. */
	void (*send)(void *source, const struct kv_frame *frame);
	/* Give a frame back unsent. */
	void (*release)(void *source, const struct kv_frame *frame);
	/* Send everything that is queued. */
	void (*flush)(void *source);
};

#endif
