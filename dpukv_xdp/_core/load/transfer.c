// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * transfer.c - the host's end of the transfer primitives (the paper's Figure 9), and the thread that runs the DPU's end
 * (bpf/kv_transfer.c).
 *
 * With a window of 1 operations block: the sender waits until the receiver has read the payload. Times are read from
 * the host's clock, once between two operations; no payload carries a time.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "abi/words.h"
#include "base/bpf_run.h"
#include "base/ticks.h"
#include "load/transfer_host.h"
#include "port/socket.h"
#include "queue/ringbuf.h"

#define KV_RUNS_PER_UNIT 32    /* runs of a program per payload or frame: most only wait, and each call costs 24 ms */
#define KV_RUNS_MAX (1u << 20) /* most runs in a call: after the last operation they take 0.1 s */
#define KV_IDLE_TURNS 256      /* turns of a polling loop between two checks of `stop` and the clock */
#define KV_SLEEP_MS 50	       /* longest sleep between two such checks */
#define KV_SOCKET_FRAMES 64    /* frames received from a socket at once */

/* State of one end's loop. */
struct kv_transfer_run {
	struct kv_transfer *plan;
	struct kv_transfer_control *control;
	uint64_t deadline_ticks;
	uint32_t idle_turns;
	uint32_t count; /* operations done */
	int sleep_fd;	/* file descriptor to wait on: an epoll instance or a socket */
};

typedef int (*kv_transfer_loop)(struct kv_transfer_run *run);

static int kv_receive_from_ring(struct kv_transfer_run *run);
static int kv_send_to_ring(struct kv_transfer_run *run);
static int kv_receive_from_ringbuf(struct kv_transfer_run *run);
static int kv_receive_from_socket(struct kv_transfer_run *run);
static int kv_send_to_socket(struct kv_transfer_run *run);

static const kv_transfer_loop kv_transfer_loops[KV_TRANSFER_ENDS] = {
	[KV_TRANSFER_RING_RECEIVE] = kv_receive_from_ring,	 [KV_TRANSFER_RING_SEND] = kv_send_to_ring,
	[KV_TRANSFER_RINGBUF_RECEIVE] = kv_receive_from_ringbuf, [KV_TRANSFER_SOCKET_RECEIVE] = kv_receive_from_socket,
	[KV_TRANSFER_SOCKET_SEND] = kv_send_to_socket,
};

static int kv_give_up(const struct kv_transfer_run *run);
static int kv_run_program(const struct kv_transfer *plan);
static uint32_t kv_fragments(uint32_t bytes);

int kv_transfer_run_host(struct kv_transfer *plan)
{
	struct kv_transfer_run run = {
		.plan = plan,
		.control = plan->control,
		.deadline_ticks = kv_ticks() + plan->timeout_ticks,
		.sleep_fd = -1,
	};
	int result;

	if (plan->end >= KV_TRANSFER_ENDS || plan->control->bytes == 0 ||
	    plan->control->bytes > KV_TRANSFER_BYTES_MAX || plan->control->window == 0 ||
	    plan->control->window > KV_TRANSFER_SLOTS)
		return -EINVAL;
	result = kv_transfer_loops[plan->end](&run);
	if (result)
		__atomic_store_n(&plan->control->stop, 1, __ATOMIC_RELEASE);
	return result;
}

int kv_transfer_run_dpu(struct kv_transfer *plan)
{
	struct kv_transfer_run run = {
		.plan = plan,
		.control = plan->control,
		.deadline_ticks = kv_ticks() + plan->timeout_ticks,
	};
	int result = 0;

	while (!result && __atomic_load_n(&plan->control->dpu_count, __ATOMIC_ACQUIRE) != plan->control->operations) {
		result = kv_run_program(plan);
		if (result == -EINTR)
			result = 0;
		if (!result)
			result = kv_give_up(&run);
	}
	if (result)
		__atomic_store_n(&plan->control->stop, 1, __ATOMIC_RELEASE);
	return result;
}

void kv_transfer_fill(uint8_t *payloads)
{
	for (uint32_t payload = 0; payload < KV_TRANSFER_PAYLOADS; payload++) {
		for (uint32_t i = 0; i < KV_TRANSFER_BYTES_MAX / 8; i++) {
			uint64_t word = KV_TRANSFER_WORD(payload, i);

			memcpy(payloads + payload * KV_TRANSFER_BYTES_MAX + 8 * i, &word, sizeof(word));
		}
	}
}

static int kv_run_program(const struct kv_transfer *plan)
{
	uint8_t frame[ETH_ZLEN] = { 0 };
	uint64_t units =
		(uint64_t)plan->control->operations * (plan->batch_frames ? kv_fragments(plan->control->bytes) : 1);
	uint32_t runs = units < KV_RUNS_MAX / KV_RUNS_PER_UNIT ? units * KV_RUNS_PER_UNIT : KV_RUNS_MAX;

	if (plan->batch_frames)
		return kv_bpf_run_live(plan->program_fd, plan->interface, plan->frame_bytes, runs, plan->batch_frames);
	return kv_bpf_run_again(plan->program_fd, frame, sizeof(frame), runs);
}

/* ---- Used by all loops ---- */

static int kv_give_up(const struct kv_transfer_run *run)
{
	if (__atomic_load_n(&run->control->stop, __ATOMIC_ACQUIRE))
		return -ECANCELED;
	return kv_ticks() > run->deadline_ticks ? -ETIMEDOUT : 0;
}

/*
 * One turn of a loop that polls: 0, or why it has to end. A flush leaves frames in the transmit ring when the kernel
 * takes none for the moment, as when the other end has no core to receive on: nobody but us sends them later.
 */
static inline int kv_idle(struct kv_transfer_run *run)
{
	if (++run->idle_turns % KV_IDLE_TURNS)
		return 0;
	if (run->plan->end == KV_TRANSFER_SOCKET_SEND)
		kv_socket_flush(run->plan->socket);
	return kv_give_up(run);
}

/* Wait for something to read, with epoll_wait() or poll() as the plan says. */
static int kv_wait(struct kv_transfer_run *run)
{
	if (!run->plan->sleeps)
		return kv_idle(run);
	/* poll() could wait on the epoll instance, too, but the system call to measure is epoll_wait(). */
	if (run->plan->socket) {
		struct pollfd socket = { .fd = run->sleep_fd, .events = POLLIN };

		if (poll(&socket, 1, KV_SLEEP_MS) < 0 && errno != EINTR)
			return -errno;
	} else {
		struct epoll_event event;

		if (epoll_wait(run->sleep_fd, &event, 1, KV_SLEEP_MS) < 0 && errno != EINTR)
			return -errno;
	}
	return kv_give_up(run);
}

/* Return whether any byte differs from KV_TRANSFER_WORD, from word `first` of the operation's payload on. */
static int kv_is_wrong(const uint8_t *data, uint32_t bytes, uint32_t operation, uint32_t first)
{
	uint64_t expected = KV_TRANSFER_WORD(operation % KV_TRANSFER_PAYLOADS, first);
	uint64_t word, difference = 0;
	uint32_t words = bytes / 8;

	for (uint32_t i = 0; i < words; i++) {
		memcpy(&word, data + 8 * i, sizeof(word));
		difference |= word ^ (expected + KV_TRANSFER_STEP * i);
	}
	if (bytes % 8) {
		word = expected + KV_TRANSFER_STEP * words;
		return difference || memcmp(data + 8 * words, &word, bytes % 8);
	}
	return difference != 0;
}

/* Tell the sender that an operation's payload has been read. */
static void kv_taken(struct kv_transfer_run *run)
{
	run->count++;
	__atomic_store_n(&run->control->host_count, run->count, __ATOMIC_RELEASE);
	run->plan->stamps[run->count] = kv_ticks();
}

static uint32_t kv_in_flight(const struct kv_transfer_run *run)
{
	return run->count - __atomic_load_n(&run->control->dpu_count, __ATOMIC_ACQUIRE);
}

/* Wait for room in the window and record the time: the start of the next operation, or the end of the last one. */
static int kv_start_sending(struct kv_transfer_run *run, uint32_t window)
{
	while (kv_in_flight(run) >= window) {
		int result = kv_idle(run);

		if (result)
			return result;
	}
	run->plan->stamps[run->count] = kv_ticks();
	return 0;
}

/* ---- The mapped ring ---- */

static int kv_receive_from_ring(struct kv_transfer_run *run)
{
	const struct kv_transfer *plan = run->plan;
	uint32_t bytes = run->control->bytes, operations = run->control->operations;
	int result;

	while (run->count != operations) {
		uint32_t ready = __atomic_load_n(&run->control->dpu_count, __ATOMIC_ACQUIRE);

		if (ready == run->count && (result = kv_idle(run)))
			return result;
		while (run->count != ready) {
			const uint8_t *slot = plan->slots + run->count % KV_TRANSFER_SLOTS * KV_TRANSFER_BYTES_MAX;

			run->plan->wrong += kv_is_wrong(slot, bytes, run->count, 0);
			kv_taken(run);
		}
	}
	return 0;
}

static int kv_send_to_ring(struct kv_transfer_run *run)
{
	const struct kv_transfer *plan = run->plan;
	uint32_t bytes = run->control->bytes, operations = run->control->operations;
	int result;

	while (run->count != operations) {
		result = kv_start_sending(run, run->control->window);
		if (result)
			return result;
		memcpy(plan->slots + run->count % KV_TRANSFER_SLOTS * KV_TRANSFER_BYTES_MAX,
		       plan->payloads + run->count % KV_TRANSFER_PAYLOADS * KV_TRANSFER_BYTES_MAX, bytes);
		run->count++;
		__atomic_store_n(&run->control->host_count, run->count, __ATOMIC_RELEASE);
	}
	return kv_start_sending(run, 1);
}

/* ---- The BPF ring buffer ---- */

static int kv_receive_samples(struct kv_transfer_run *run, struct kv_ringbuf *ring);

static int kv_receive_from_ringbuf(struct kv_transfer_run *run)
{
	struct epoll_event event = { .events = EPOLLIN };
	struct kv_ringbuf ring;
	int result;

	result = kv_ringbuf_open(&ring, run->plan->ringbuf_fd, run->plan->ringbuf_bytes);
	if (result)
		return result;
	run->sleep_fd = epoll_create1(EPOLL_CLOEXEC);
	if (run->sleep_fd < 0 || epoll_ctl(run->sleep_fd, EPOLL_CTL_ADD, run->plan->ringbuf_fd, &event))
		result = -errno;
	else
		result = kv_receive_samples(run, &ring);
	if (run->sleep_fd >= 0)
		close(run->sleep_fd);
	kv_ringbuf_close(&ring);
	return result;
}

static int kv_receive_samples(struct kv_transfer_run *run, struct kv_ringbuf *ring)
{
	uint32_t operations = run->control->operations, bytes;
	int result;

	while (run->count != operations) {
		const void *sample = kv_ringbuf_next(ring, &bytes);

		if (sample) {
			run->plan->wrong += bytes != run->control->bytes || kv_is_wrong(sample, bytes, run->count, 0);
			kv_ringbuf_release(ring);
			kv_taken(run);
		} else {
			result = kv_wait(run);
			if (result)
				return result;
		}
	}
	return 0;
}

/* ---- AF_XDP ---- */

static uint32_t kv_fragment_bytes(uint32_t bytes, uint32_t fragment)
{
	uint32_t rest = bytes - fragment * KV_TRANSFER_FRAGMENT_MAX;

	return rest < KV_TRANSFER_FRAGMENT_MAX ? rest : KV_TRANSFER_FRAGMENT_MAX;
}

static uint32_t kv_fragments(uint32_t bytes)
{
	return (bytes + KV_TRANSFER_FRAGMENT_MAX - 1) / KV_TRANSFER_FRAGMENT_MAX;
}

/* Return whether a frame is not the next fragment, or has wrong bytes. */
static int kv_is_wrong_frame(const struct kv_transfer_run *run, const struct kv_frame *frame, uint32_t fragment)
{
	const struct kv_transfer_frame *header = (const void *)frame->data;
	uint32_t bytes = kv_fragment_bytes(run->control->bytes, fragment);

	return frame->bytes < sizeof(*header) + bytes || header->operation != run->count ||
	       header->fragment != fragment ||
	       kv_is_wrong((const uint8_t *)(header + 1), bytes, run->count, fragment * KV_TRANSFER_FRAGMENT_MAX / 8);
}

static int kv_is_ours(const struct kv_frame *frame)
{
	const struct kv_transfer_frame *header = (const void *)frame->data;

	return frame->bytes >= sizeof(*header) && header->eth_type == __builtin_bswap16(KV_TRANSFER_ETHERTYPE);
}

static int kv_receive_from_socket(struct kv_transfer_run *run)
{
	struct kv_frame frames[KV_SOCKET_FRAMES];
	struct kv_socket_stats stats;
	uint32_t fragment = 0, fragments = kv_fragments(run->control->bytes);
	int result;

	kv_socket_get_stats(run->plan->socket, &stats);
	run->sleep_fd = stats.fd;
	while (run->count != run->control->operations) {
		uint32_t received = kv_socket_receive(run->plan->socket, frames, KV_SOCKET_FRAMES);

		if (received == 0 && (result = kv_wait(run)))
			return result;
		for (uint32_t i = 0; i < received; i++) {
			if (kv_is_ours(&frames[i]) && run->count != run->control->operations) {
				run->plan->wrong += kv_is_wrong_frame(run, &frames[i], fragment);
				if (++fragment == fragments) {
					fragment = 0;
					kv_taken(run);
				}
			}
			kv_socket_release(run->plan->socket, &frames[i]);
		}
	}
	return 0;
}

static int kv_queue_operation(struct kv_transfer_run *run, uint32_t fragments);

static int kv_send_to_socket(struct kv_transfer_run *run)
{
	uint32_t fragments = kv_fragments(run->control->bytes), window = run->control->window, queued = 0;
	int result;

	while (run->count != run->control->operations) {
		result = kv_start_sending(run, window);
		if (result)
			return result;
		if (kv_queue_operation(run, fragments)) {
			run->count++;
			queued += fragments;
		} else if ((result = kv_idle(run))) {
			return result;
		}
		/* Send queued frames before waiting for the window or for frames. */
		if (queued >= run->plan->batch_frames || kv_in_flight(run) >= window) {
			kv_socket_flush(run->plan->socket);
			queued = 0;
		}
	}
	kv_socket_flush(run->plan->socket);
	return kv_start_sending(run, 1);
}

/* Queue an operation's frames. Return 0 if there are not enough free frames. */
static int kv_queue_operation(struct kv_transfer_run *run, uint32_t fragments)
{
	const struct kv_transfer *plan = run->plan;
	const uint8_t *payload = plan->payloads + run->count % KV_TRANSFER_PAYLOADS * KV_TRANSFER_BYTES_MAX;
	struct kv_frame frames[KV_TRANSFER_BYTES_MAX / KV_TRANSFER_FRAGMENT_MAX];
	uint32_t taken = kv_socket_take(plan->socket, frames, fragments);

	if (taken < fragments) {
		for (uint32_t i = 0; i < taken; i++)
			kv_socket_release(plan->socket, &frames[i]);
		kv_socket_flush(plan->socket);
		return 0;
	}
	for (uint32_t i = 0; i < fragments; i++) {
		uint32_t bytes = kv_fragment_bytes(run->control->bytes, i);
		const struct kv_transfer_frame header = {
			.eth_type = __builtin_bswap16(KV_TRANSFER_ETHERTYPE),
			.fragment = i,
			.operation = run->count,
		};

		memcpy(frames[i].reply, &header, sizeof(header));
		memcpy(frames[i].reply + sizeof(header), payload + i * KV_TRANSFER_FRAGMENT_MAX, bytes);
		frames[i].bytes = sizeof(header) + bytes;
		kv_socket_send(plan->socket, &frames[i]);
	}
	return 1;
}
