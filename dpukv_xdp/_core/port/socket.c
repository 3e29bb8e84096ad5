// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * socket.c - one AF_XDP socket for one receive queue, with memory of its own.
 *
 * The memory is cut into chunks of one page, one frame each. A chunk goes from the fill ring through the kernel into
 * the receive ring and to the caller; then, directly or through the transmit and completion rings, onto a stack of
 * spare chunks, and from there into the fill ring again. There are as many chunks as the fill, receive and transmit
 * rings have places, so that a caller may hold two rings full of frames before the kernel has no chunk left to receive
 * into. The stack returns the chunk that was used last, whose lines are still in the cache.
 *
 * This file neither attaches the XDP program nor fills the XSKMAP.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <xdp/xsk.h>

#include "base/memory.h"
#include "port/socket.h"

#define KV_CHUNK_BYTES 4096u
#define KV_CHUNK_MASK (~(uint64_t)(KV_CHUNK_BYTES - 1))
#define KV_DESCRIPTORS_MAX 32768u /* more than any NIC has; they need 512 MiB of chunks */

/* The kernel releases a closed socket's queue in a worker: the queue is busy for a moment after a close. */
#define KV_BUSY_TRIES 100
#define KV_BUSY_PAUSE_NS 1000000

/* System calls in a row that send nothing before a flush leaves the remaining frames to the next one. */
#define KV_STUCK_TRIES 32

struct kv_socket {
	struct xsk_ring_cons receive;
	struct xsk_ring_prod fill;
	struct xsk_ring_prod transmit;
	struct xsk_ring_cons complete;
	uint8_t *memory;
	uint64_t *spare;      /* addresses of unused chunks */
	uint32_t spare_count; /* how many there are */
	uint32_t queued;      /* frames in the transmit ring that have not been submitted to the kernel */
	uint32_t in_flight;   /* frames, queued ones included, whose chunks have not been completed */
	uint32_t refused;     /* frames in flight that the device refused; counted as dropped */
	uint32_t chunks;
	struct kv_socket_stats stats;
	int is_zero_copy;
	int fd;
	struct xsk_umem *umem;
	struct xsk_socket *xsk;
};

static struct kv_socket *kv_socket_try_open(const char *interface, uint32_t queue, uint32_t descriptors, int zero_copy,
					    enum kv_socket_step *step);

struct kv_socket *kv_socket_open(const char *interface, uint32_t queue, uint32_t descriptors, int zero_copy,
				 enum kv_socket_step *step)
{
	const struct timespec pause = { .tv_nsec = KV_BUSY_PAUSE_NS };

	*step = KV_SOCKET_BIND;
	if (strlen(interface) >= IF_NAMESIZE) {
		errno = ENODEV;
		return NULL;
	}
	if (descriptors == 0 || descriptors > KV_DESCRIPTORS_MAX || descriptors & (descriptors - 1)) {
		*step = KV_SOCKET_REGISTER;
		errno = EINVAL;
		return NULL;
	}
	for (uint32_t tries = 1;; tries++) {
		struct kv_socket *socket = kv_socket_try_open(interface, queue, descriptors, zero_copy, step);

		if (socket || errno != EBUSY || tries == KV_BUSY_TRIES)
			return socket;
		nanosleep(&pause, NULL);
	}
}

void kv_socket_close(struct kv_socket *socket)
{
	if (!socket)
		return;
	if (socket->xsk)
		xsk_socket__delete(socket->xsk);
	if (socket->umem)
		xsk_umem__delete(socket->umem);
	kv_memory_unmap(socket->memory, (size_t)socket->chunks * KV_CHUNK_BYTES);
	free(socket->spare);
	free(socket);
}

static void kv_socket_push(struct kv_socket *socket);
static void kv_socket_refill(struct kv_socket *socket);
static void kv_socket_wake_receiver(struct kv_socket *socket);

uint32_t kv_socket_receive(struct kv_socket *socket, struct kv_frame *frames, uint32_t room)
{
	uint32_t index, count;

	if (socket->in_flight)
		kv_socket_push(socket); /* completed chunks, and frames that a flush could not send */
	kv_socket_refill(socket);
	count = xsk_ring_cons__peek(&socket->receive, room, &index);
	if (count == 0) {
		if (xsk_ring_prod__needs_wakeup(&socket->fill))
			kv_socket_wake_receiver(socket);
		return 0;
	}
	for (uint32_t i = 0; i < count; i++) {
		const struct xdp_desc *descriptor = xsk_ring_cons__rx_desc(&socket->receive, index + i);

		frames[i].data = socket->memory + descriptor->addr;
		frames[i].reply = frames[i].data;
		frames[i].bytes = descriptor->len;
		frames[i].tag = descriptor->addr & KV_CHUNK_MASK;
		frames[i].room = (uint32_t)(frames[i].tag + KV_CHUNK_BYTES - descriptor->addr);
		__builtin_prefetch(frames[i].data);
	}
	xsk_ring_cons__release(&socket->receive, count);
	socket->stats.received += count;
	return count;
}

static int kv_frame_fits(const struct kv_socket *socket, const struct kv_frame *frame);

void kv_socket_send(struct kv_socket *socket, const struct kv_frame *frame)
{
	struct xdp_desc *descriptor;
	uint32_t index;

	/* The kernel would never complete the chunk of a bad descriptor. */
	if (!kv_frame_fits(socket, frame)) {
		socket->stats.tx_invalid++;
		kv_socket_release(socket, frame);
		return;
	}
	if (!xsk_ring_prod__reserve(&socket->transmit, 1, &index)) {
		kv_socket_flush(socket);
		if (!xsk_ring_prod__reserve(&socket->transmit, 1, &index)) {
			socket->stats.tx_dropped++;
			kv_socket_release(socket, frame);
			return;
		}
	}
	descriptor = xsk_ring_prod__tx_desc(&socket->transmit, index);
	descriptor->addr = (uint64_t)(frame->reply - socket->memory);
	descriptor->len = frame->bytes;
	descriptor->options = 0;
	socket->queued++;
	socket->in_flight++;
}

uint32_t kv_socket_take(struct kv_socket *socket, struct kv_frame *frames, uint32_t room)
{
	uint32_t count = socket->spare_count < room ? socket->spare_count : room;

	for (uint32_t i = 0; i < count; i++) {
		frames[i].tag = socket->spare[--socket->spare_count];
		frames[i].data = socket->memory + frames[i].tag;
		frames[i].reply = frames[i].data;
		frames[i].bytes = 0;
		frames[i].room = KV_CHUNK_BYTES;
	}
	return count;
}

void kv_socket_release(struct kv_socket *socket, const struct kv_frame *frame)
{
	socket->spare[socket->spare_count++] = frame->tag;
}

void kv_socket_flush(struct kv_socket *socket)
{
	if (socket->queued) {
		xsk_ring_prod__submit(&socket->transmit, socket->queued);
		socket->queued = 0;
	}
	if (socket->in_flight)
		kv_socket_push(socket);
	kv_socket_refill(socket);
}

static uint32_t kv_ring_entries(const struct xsk_ring_prod *ring);

void kv_socket_get_stats(struct kv_socket *socket, struct kv_socket_stats *stats)
{
	struct xdp_statistics kernel;
	socklen_t bytes = sizeof(kernel);

	memset(&kernel, 0, sizeof(kernel));
	getsockopt(socket->fd, SOL_XDP, XDP_STATISTICS, &kernel, &bytes);
	*stats = socket->stats;
	stats->rx_dropped = kernel.rx_dropped;
	stats->rx_ring_full = kernel.rx_ring_full;
	stats->fill_ring_empty = kernel.rx_fill_ring_empty_descs;
	stats->tx_invalid += kernel.tx_invalid_descs;
	stats->mode = socket->is_zero_copy ? KV_SOCKET_ZERO_COPY : KV_SOCKET_COPY;
	stats->fd = (uint32_t)socket->fd;
	stats->chunks = socket->chunks;
	stats->chunks_busy = socket->chunks - socket->spare_count - kv_ring_entries(&socket->fill);
}

/* ---- Sending ---- */

static int kv_socket_wake_sender(struct kv_socket *socket);
static void kv_socket_reap(struct kv_socket *socket);

/*
 * Have the kernel send the transmit ring's frames, and take completed chunks back. In copy mode a system call sends 16
 * or 32 frames itself, so call until all are sent; a zero-copy driver sends asynchronously and needs one call.
 */
static void kv_socket_push(struct kv_socket *socket)
{
	uint32_t unsent = kv_ring_entries(&socket->transmit), stuck = 0;

	while (unsent && stuck < KV_STUCK_TRIES && xsk_ring_prod__needs_wakeup(&socket->transmit)) {
		uint32_t before = unsent;
		int may_retry = kv_socket_wake_sender(socket);

		kv_socket_reap(socket); /* a full completion ring stops the kernel */
		unsent = kv_ring_entries(&socket->transmit);
		stuck = unsent == before ? stuck + 1 : 0;
		if (!may_retry)
			break;
	}
	kv_socket_reap(socket);
}

/* Return how many submitted frames are still in the transmit ring. */
static uint32_t kv_ring_entries(const struct xsk_ring_prod *ring)
{
	return *ring->producer - __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
}

/* Call the kernel to send. Return whether another call may send more. */
static int kv_socket_wake_sender(struct kv_socket *socket)
{
	socket->stats.wakeups++;
	if (sendto(socket->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0)
		return !socket->is_zero_copy;
	if (errno == EBUSY && !socket->is_zero_copy) {
		socket->stats.tx_dropped++; /* one frame, whose chunk is completed nevertheless */
		socket->refused++;
		return 1;
	}
	return errno == EAGAIN || errno == EBUSY || errno == ENOBUFS;
}

/* Take back the chunks of frames that the kernel has sent. */
static void kv_socket_reap(struct kv_socket *socket)
{
	uint32_t index, count = xsk_ring_cons__peek(&socket->complete, socket->in_flight, &index);
	uint32_t refused;

	if (count == 0)
		return;
	for (uint32_t i = 0; i < count; i++)
		socket->spare[socket->spare_count++] =
			*xsk_ring_cons__comp_addr(&socket->complete, index + i) & KV_CHUNK_MASK;
	xsk_ring_cons__release(&socket->complete, count);
	socket->in_flight -= count;
	refused = socket->refused < count ? socket->refused : count;
	socket->refused -= refused;
	socket->stats.sent += count - refused;
}

/* Return whether an answer is not empty and inside the chunk of its frame. */
static int kv_frame_fits(const struct kv_socket *socket, const struct kv_frame *frame)
{
	uint64_t start = (uint64_t)(frame->reply - socket->memory) - frame->tag;

	return frame->bytes && start < KV_CHUNK_BYTES && frame->bytes <= KV_CHUNK_BYTES - start;
}

/* ---- Receiving ---- */

/* Move spare chunks into the fill ring until it is full. */
static void kv_socket_refill(struct kv_socket *socket)
{
	uint32_t index, count = socket->spare_count;

	if (count == 0)
		return;
	if (xsk_prod_nb_free(&socket->fill, count) < count)
		count = socket->fill.cached_cons - socket->fill.cached_prod;
	if (count == 0 || !xsk_ring_prod__reserve(&socket->fill, count, &index))
		return;
	for (uint32_t i = 0; i < count; i++)
		*xsk_ring_prod__fill_addr(&socket->fill, index + i) = socket->spare[--socket->spare_count];
	xsk_ring_prod__submit(&socket->fill, count);
}

/* Wake the driver, which has stopped reading the fill ring. Ignore the result: the next receive tries again. */
static void kv_socket_wake_receiver(struct kv_socket *socket)
{
	socket->stats.wakeups++;
	recvfrom(socket->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
}

/* ---- Opening ---- */

static uint32_t kv_power_of_two(uint32_t at_least);
static uint32_t kv_device_descriptors(const char *interface);
static int kv_socket_allocate(struct kv_socket *socket);
static int kv_socket_can_create(void);
static int kv_socket_register(struct kv_socket *socket, uint32_t fill_size, uint32_t descriptors);
static int kv_socket_bind(struct kv_socket *socket, const char *interface, uint32_t queue, uint32_t descriptors,
			  int zero_copy);

/* A zero-copy device takes a descriptor ring full of chunks at once, in addition to those in the receive ring. */
static struct kv_socket *kv_socket_try_open(const char *interface, uint32_t queue, uint32_t descriptors, int zero_copy,
					    enum kv_socket_step *step)
{
	uint32_t device_descriptors = zero_copy ? kv_device_descriptors(interface) : 0;
	uint32_t fill_size = kv_power_of_two(2 * descriptors + device_descriptors);
	struct kv_socket *socket = calloc(1, sizeof(*socket));
	int result;

	*step = KV_SOCKET_ALLOCATE;
	if (!socket)
		return NULL;
	socket->chunks = fill_size + 2 * descriptors;
	result = kv_socket_allocate(socket);
	if (result == 0) {
		*step = KV_SOCKET_CREATE;
		result = kv_socket_can_create();
	}
	if (result == 0) {
		*step = KV_SOCKET_REGISTER;
		result = kv_socket_register(socket, fill_size, descriptors);
	}
	if (result == 0) {
		*step = KV_SOCKET_BIND;
		result = kv_socket_bind(socket, interface, queue, descriptors, zero_copy);
	}
	if (result) {
		kv_socket_close(socket);
		errno = -result;
		return NULL;
	}
	return socket;
}

static int kv_socket_allocate(struct kv_socket *socket)
{
	int pages;

	socket->memory = kv_memory_map((size_t)socket->chunks * KV_CHUNK_BYTES, 1, &pages);
	if (!socket->memory)
		return -errno;
	socket->spare = malloc(socket->chunks * sizeof(*socket->spare));
	if (!socket->spare)
		return -ENOMEM;
	while (socket->spare_count < socket->chunks) {
		socket->spare[socket->spare_count] = (uint64_t)socket->spare_count * KV_CHUNK_BYTES;
		socket->spare_count++;
	}
	return 0;
}

/* libxdp opens the socket and registers memory in one call, whose result does not tell which of the two failed. */
static int kv_socket_can_create(void)
{
	int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

static int kv_socket_register(struct kv_socket *socket, uint32_t fill_size, uint32_t descriptors)
{
	const struct xsk_umem_config umem_config = {
		.fill_size = fill_size,
		.comp_size = descriptors,
		.frame_size = KV_CHUNK_BYTES,
	};

	return xsk_umem__create(&socket->umem, socket->memory, (uint64_t)socket->chunks * KV_CHUNK_BYTES, &socket->fill,
				&socket->complete, &umem_config);
}

/* Fill the ring before bind: some drivers never read it again if they find too few chunks in it. */
static int kv_socket_bind(struct kv_socket *socket, const char *interface, uint32_t queue, uint32_t descriptors,
			  int zero_copy)
{
	const struct xsk_socket_config config = {
		.rx_size = descriptors,
		.tx_size = descriptors,
		.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
		.bind_flags = XDP_USE_NEED_WAKEUP | (zero_copy ? XDP_ZEROCOPY : XDP_COPY),
	};
	struct xdp_options options = { 0 };
	socklen_t options_bytes = sizeof(options);
	char name[IF_NAMESIZE] = ""; /* libxdp reads the whole array, however short the name is */
	int result;

	kv_socket_refill(socket);
	memcpy(name, interface, strlen(interface));
	result = xsk_socket__create(&socket->xsk, name, queue, socket->umem, &socket->receive, &socket->transmit,
				    &config);
	if (result)
		return result;
	socket->fd = xsk_socket__fd(socket->xsk);
	if (fcntl(socket->fd, F_SETFD, FD_CLOEXEC) ||
	    getsockopt(socket->fd, SOL_XDP, XDP_OPTIONS, &options, &options_bytes))
		return -errno;
	socket->is_zero_copy = !!(options.flags & XDP_OPTIONS_ZEROCOPY);
	return 0;
}

static uint32_t kv_power_of_two(uint32_t at_least)
{
	uint32_t size = 1;

	while (size < at_least)
		size *= 2;
	return size;
}

/* Return the receive descriptors of the device; 0 if it has none or does not tell. */
static uint32_t kv_device_descriptors(const char *interface)
{
	struct ethtool_ringparam rings = { .cmd = ETHTOOL_GRINGPARAM };
	struct ifreq request = { .ifr_data = (char *)&rings };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), result;

	if (fd < 0)
		return 0;
	memcpy(request.ifr_name, interface, strlen(interface));
	result = ioctl(fd, SIOCETHTOOL, &request);
	close(fd);
	return result || rings.rx_pending > KV_DESCRIPTORS_MAX ? 0 : rings.rx_pending;
}
