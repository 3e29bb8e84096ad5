/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* transfer_host.h - the host's end of the transfer primitives that `dpukv qp-bench` compares. */
#ifndef KV_TRANSFER_HOST_H
#define KV_TRANSFER_HOST_H

#include "abi/transfer.h"
#include "port/socket.h"

/* The host's end, the counterpart of one program in kv_transfer.c. */
enum kv_transfer_end {
	KV_TRANSFER_RING_RECEIVE,
	KV_TRANSFER_RING_SEND,
	KV_TRANSFER_RINGBUF_RECEIVE,
	KV_TRANSFER_SOCKET_RECEIVE,
	KV_TRANSFER_SOCKET_SEND,
	KV_TRANSFER_ENDS
};

struct kv_transfer {
	struct kv_transfer_control *control; /* mapped, as the next two */
	uint8_t *slots;			     /* the mapped ring: KV_TRANSFER_SLOTS of KV_TRANSFER_BYTES_MAX bytes */
	uint8_t *payloads;		     /* payloads that the host sends, see kv_transfer_fill() */
	uint64_t *stamps;		     /* control->operations + 1 times, in ticks, between operations */
	struct kv_socket *socket;	     /* for the two ends that use AF_XDP */
	int32_t ringbuf_fd;
	uint32_t ringbuf_bytes;
	uint32_t end;		/* enum kv_transfer_end */
	uint32_t sleeps;	/* 1: the host waits in epoll_wait() or poll(), not in a loop */
	int32_t program_fd;	/* program of the DPU's end */
	uint32_t batch_frames;	/* live frames per call; 0: the program needs none */
	uint32_t frame_bytes;	/* bytes of a live frame */
	uint32_t interface;	/* index of the interface that they appear to come from */
	uint64_t timeout_ticks; /* after which both ends give up */
	uint32_t wrong;		/* payloads with wrong bytes, as seen by the host */
	uint32_t padding;
};

/* Write the KV_TRANSFER_PAYLOADS payloads, KV_TRANSFER_BYTES_MAX bytes each. */
void kv_transfer_fill(uint8_t *payloads);
/* Hand over, or take, all operations. On the host's thread: 0, -ETIMEDOUT, -ECANCELED after control->stop, or what a
 * system call said. Stops the other end when it fails. */
int kv_transfer_run_host(struct kv_transfer *transfer);
/* Run the DPU's program as often as needed, on the DPU's thread. Return as above. */
int kv_transfer_run_dpu(struct kv_transfer *transfer);

#endif
