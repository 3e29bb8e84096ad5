/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* socket.h - one AF_XDP socket for one receive queue, through libxdp. */
#ifndef KV_SOCKET_H
#define KV_SOCKET_H

#include "port/frames.h"

enum kv_socket_mode { KV_SOCKET_COPY = 0, KV_SOCKET_ZERO_COPY = 1 };

/* Steps of opening a socket, in order; the meaning of an errno depends on the step. */
enum kv_socket_step {
	KV_SOCKET_ALLOCATE = 0, /* memory for frames, in this process */
	KV_SOCKET_CREATE,	/* socket(AF_XDP) */
	KV_SOCKET_REGISTER,	/* pin and register that memory (UMEM), fill and completion ring */
	KV_SOCKET_BIND,		/* receive and transmit ring, bind to the queue */
	KV_SOCKET_STEPS
};

struct kv_socket_stats {
	uint64_t received;
	uint64_t sent;		  /* frames whose chunks have been completed */
	uint64_t wakeups;	  /* system calls that made the kernel send or receive */
	uint64_t rx_dropped;	  /* frames dropped by the kernel: see XDP_STATISTICS in linux/if_xdp.h */
	uint64_t rx_ring_full;	  /* frames dropped because the receive ring was full */
	uint64_t fill_ring_empty; /* frames dropped because no chunk was free to receive into */
	uint64_t tx_invalid;	  /* answers that were empty, or not inside the chunk of their frame */
	uint64_t tx_dropped;	  /* frames refused by the device, or by a transmit ring that stayed full */
	uint32_t mode;		  /* mode that the kernel granted, enum kv_socket_mode */
	uint32_t fd;
	uint32_t chunks;      /* chunks, one frame each, in this socket's memory */
	uint32_t chunks_busy; /* chunks held by the caller, or by the kernel with a frame in them */
};

struct kv_socket;

/* A bound socket with `descriptors` receive descriptors (a power of two) and its own memory for frames, every fill
 * descriptor in place. It receives once its descriptor is in an XSKMAP at index `queue`. On failure NULL, errno, and
 * the step that failed in `*step`: dpukv_xdp/native/sockets.py has what they mean. One thread at a time may use it; the
 * statistics may be read from any. */
struct kv_socket *kv_socket_open(const char *interface, uint32_t queue, uint32_t descriptors, int zero_copy,
				 enum kv_socket_step *step);
void kv_socket_close(struct kv_socket *socket);
/* Receive up to `room` frames, without blocking. They belong to the caller until sent or released. */
uint32_t kv_socket_receive(struct kv_socket *socket, struct kv_frame *frames, uint32_t room);
/* Queue an answer, `bytes` long at `reply`, in the chunk of a frame received from this socket; kv_socket_flush() sends.
 * If the ring is full, what is in it is sent first. */
void kv_socket_send(struct kv_socket *socket, const struct kv_frame *frame);
/* Take up to `room` empty frames, to be filled and sent, or released. */
uint32_t kv_socket_take(struct kv_socket *socket, struct kv_frame *frames, uint32_t room);
/* Give a frame back unsent. */
void kv_socket_release(struct kv_socket *socket, const struct kv_frame *frame);
/* Submit all queued frames to the kernel and take completed chunks back. */
void kv_socket_flush(struct kv_socket *socket);
void kv_socket_get_stats(struct kv_socket *socket, struct kv_socket_stats *stats);

#endif
