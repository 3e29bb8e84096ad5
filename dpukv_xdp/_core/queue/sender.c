// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * sender.c - the thread of a communication core that sends responses when no frame comes to carry them.
 *
 * It runs kv_flush on the communication core itself, where kv_receive cannot run at the same time, so that nothing is
 * sent twice. The program builds the frame in a buffer, and a packet socket sends it, which works with any driver in
 * any XDP mode; live frames would need ndo_xdp_xmit and cost 24 ms to tear down after more than one frame.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <linux/futex.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "abi/queue_pair.h"
#include "base/bpf_run.h"
#include "queue/sender.h"

#define KV_FLUSH_MAX 64		/* responses of one pair in a row: a real-time thread must leave its core to others */
#define KV_FLUSH_FRAME_BYTES 64 /* initial length of the buffer; kv_flush sets the frame's length itself */
/* Sleep between two polls, where it has to poll: after a success, and after many polls without one. */
#define KV_SENDER_POLL_NS_MIN 50000
#define KV_SENDER_POLL_NS_MAX 1600000

static uint32_t kv_flush_queue_pair(struct kv_sender *sender, uint32_t engine);

int kv_sender_run(struct kv_sender *sender)
{
	struct timespec pause = { .tv_nsec = KV_SENDER_POLL_NS_MAX };

	if (sender->engines > KV_ENGINES_MAX || sender->polled_engines > sender->engines)
		return -EINVAL;
	for (;;) {
		uint32_t seen = __atomic_load_n(&sender->wake, __ATOMIC_ACQUIRE);
		uint32_t found = 0;

		if (__atomic_load_n(&sender->stop, __ATOMIC_RELAXED))
			return 0;
		for (uint32_t engine = 0; engine < sender->engines; engine++) {
			if (__atomic_exchange_n(&sender->overdue[engine], 0, __ATOMIC_ACQUIRE) ||
			    engine < sender->polled_engines)
				found += kv_flush_queue_pair(sender, engine);
		}
		pause.tv_nsec = found ? KV_SENDER_POLL_NS_MIN : pause.tv_nsec * 2;
		if (pause.tv_nsec > KV_SENDER_POLL_NS_MAX)
			pause.tv_nsec = KV_SENDER_POLL_NS_MAX;
		syscall(SYS_futex, &sender->wake, FUTEX_WAIT_PRIVATE, seen, sender->polled_engines ? &pause : NULL,
			NULL, 0);
	}
}

void kv_sender_wake(struct kv_sender *sender)
{
	__atomic_add_fetch(&sender->wake, 1, __ATOMIC_RELEASE);
	syscall(SYS_futex, &sender->wake, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Send every finished response of the queue pair, at most KV_FLUSH_MAX. Return how many were sent. */
static uint32_t kv_flush_queue_pair(struct kv_sender *sender, uint32_t engine)
{
	union {
		uint32_t pair_index;
		uint8_t bytes[KV_FLUSH_FRAME_BYTES];
	} request = { .pair_index = engine * sender->cpus + sender->cpu };
	uint8_t frame[KV_FRAME_MAX];
	uint32_t sent = 0;

	for (uint32_t i = 0; i < KV_FLUSH_MAX; i++) {
		uint32_t frame_bytes, verdict;

		if (kv_bpf_run_once(sender->program_fd, request.bytes, sizeof(request.bytes), frame, sizeof(frame),
				    &frame_bytes, &verdict)) {
			sender->run_failures++;
			return sent;
		}
		if (verdict != XDP_TX)
			return sent;
		sent++;
		if (send(sender->socket_fd, frame, frame_bytes, 0) == (ssize_t)frame_bytes)
			sender->frames_sent++;
		else
			sender->send_failures++;
	}
	return sent;
}
