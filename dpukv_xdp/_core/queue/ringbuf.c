// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* ringbuf.c - create and destroy an engine's end of a BPF ring buffer. */
#include "queue/ringbuf.h"

#include <stdlib.h>

struct kv_ringbuf *kv_ringbuf_create(int map_fd, uint32_t bytes)
{
	struct kv_ringbuf *ring = calloc(1, sizeof(*ring));
	int status = ring ? kv_ringbuf_open(ring, map_fd, bytes) : -ENOMEM;

	if (status == 0)
		return ring;
	free(ring);
	errno = -status;
	return NULL;
}

void kv_ringbuf_destroy(struct kv_ringbuf *ring)
{
	if (ring)
		kv_ringbuf_close(ring);
	free(ring);
}
