/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ringbuf.h - the consumer's end of a BPF ring buffer (BPF_MAP_TYPE_RINGBUF), without libbpf's callbacks.
 *
 * Samples are taken one by one and released together with one store. One thread at a time may use it. The layout is the
 * kernel's: Documentation/bpf/ringbuf.rst and kernel/bpf/ringbuf.c.
 */
#ifndef KV_RINGBUF_H
#define KV_RINGBUF_H

#include "base/integers.h"

struct kv_ringbuf;

/* Create the host's end of a BPF ring buffer. Return NULL and set errno on failure. */
struct kv_ringbuf *kv_ringbuf_create(int map_fd, uint32_t bytes);
void kv_ringbuf_destroy(struct kv_ringbuf *ring);

#ifndef KV_ABI_CDEF

#include <errno.h>
#include <linux/bpf.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

struct kv_ringbuf {
	uint64_t *consumer; /* consumer position, on a page that the kernel reads */
	const uint64_t
		*producer; /* producer position, on a page; the data follow, mapped twice so that no sample wraps */
	const uint8_t *data;
	uint64_t taken;	   /* position behind the last sample taken; *consumer is the released part */
	uint64_t produced; /* the producer's position when it was last read */
	size_t bytes;	   /* bytes of the data; a power of two */
	size_t page_bytes;
};

static inline void kv_ringbuf_close(struct kv_ringbuf *ring);

/* Map the ring buffer of `bytes` bytes (the map's max_entries). Return 0 or a negative errno. */
static inline int kv_ringbuf_open(struct kv_ringbuf *ring, int map_fd, size_t bytes)
{
	size_t page_bytes = sysconf(_SC_PAGESIZE);
	void *consumer, *producer;

	*ring = (struct kv_ringbuf){ .bytes = bytes, .page_bytes = page_bytes };
	if (bytes == 0 || (bytes & (bytes - 1)) || bytes % page_bytes)
		return -EINVAL;
	consumer = mmap(NULL, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
	if (consumer == MAP_FAILED)
		return -errno;
	ring->consumer = consumer;
	producer = mmap(NULL, page_bytes + 2 * bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, map_fd, page_bytes);
	if (producer == MAP_FAILED) {
		int error = errno;

		kv_ringbuf_close(ring);
		return -error;
	}
	ring->producer = producer;
	ring->data = (const uint8_t *)producer + page_bytes;
	ring->taken = *ring->consumer;
	ring->produced = ring->taken;
	return 0;
}

/* Unmap the ring buffer, if it is mapped. */
static inline void kv_ringbuf_close(struct kv_ringbuf *ring)
{
	if (ring->producer)
		munmap((void *)ring->producer, ring->page_bytes + 2 * ring->bytes);
	if (ring->consumer)
		munmap(ring->consumer, ring->page_bytes);
	ring->producer = NULL;
	ring->consumer = NULL;
}

/*
 * Return the next sample, or NULL if there is none or its producer is still writing it. It stays valid until
 * kv_ringbuf_release(). Discarded samples are skipped.
 */
static inline const void *kv_ringbuf_next(struct kv_ringbuf *ring, uint32_t *bytes)
{
	for (;;) {
		const uint8_t *header = ring->data + (ring->taken & (ring->bytes - 1));
		uint32_t length;

		/* The producer writes its position for every sample: read it only when all known samples are taken. */
		if (ring->taken == ring->produced) {
			ring->produced = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
			if (ring->taken == ring->produced)
				return NULL;
		}
		length = __atomic_load_n((const uint32_t *)header, __ATOMIC_ACQUIRE);
		if (length & BPF_RINGBUF_BUSY_BIT)
			return NULL;
		*bytes = length & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
		ring->taken += (*bytes + BPF_RINGBUF_HDR_SZ + 7) & ~7ULL;
		if (!(length & BPF_RINGBUF_DISCARD_BIT))
			return header + BPF_RINGBUF_HDR_SZ;
	}
}

/* Release all samples taken with one store, or without one if there are none: the producer reads that cache line. */
static inline void kv_ringbuf_release(struct kv_ringbuf *ring)
{
	if (*ring->consumer != ring->taken)
		__atomic_store_n(ring->consumer, ring->taken, __ATOMIC_RELEASE);
}

#endif /* KV_ABI_CDEF */
#endif
