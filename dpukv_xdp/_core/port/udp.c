// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * udp.c - a UDP socket of the kernel for one endpoint: how programs without XDP receive packets.
 *
 * The communication engine parses frames, but the kernel delivers payloads. So a datagram is received behind the place
 * of a packet header, which is made up from the kernel's information on it, and only the payload of an answer is sent.
 * A system call receives or sends up to KV_UDP_BURST datagrams.
 *
 * The memory is cut into chunks of one frame each. The next messages to be received have chunks already, so that
 * polling in vain costs no more than the system call.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "abi/limits.h"
#include "abi/wire_mica2.h"
#include "base/memory.h"
#include "port/udp.h"

#define KV_UDP_BURST 16u
#define KV_UDP_CHUNKS 256u /* datagrams held at once; the others wait in the socket's buffer */
#define KV_CHUNK_BYTES 4096u
#define KV_DATAGRAMS_MAX 32768u
/* Bytes that the kernel charges a socket for a datagram in its smallest buffer; it doubles the requested size. */
#define KV_DATAGRAM_CHARGE_BYTES 2304u

#define KV_HEADERS_BYTES ((uint32_t)offsetof(struct kv_packet_header, magic))
/* One byte more than the limit, so that a longer datagram is noticed and dropped for its length. */
#define KV_DATAGRAM_BYTES (KV_FRAME_MAX - KV_HEADERS_BYTES + 1)
_Static_assert(KV_FRAME_MAX < KV_CHUNK_BYTES, "a chunk has room for one frame, and for a longer one's first bytes");
_Static_assert(KV_UDP_CHUNKS >= 4 * KV_UDP_BURST, "every burst has its chunks");

/* Messages of one system call. */
struct kv_messages {
	struct mmsghdr headers[KV_UDP_BURST];
	struct iovec parts[KV_UDP_BURST];
	struct sockaddr_in peers[KV_UDP_BURST];
	uint8_t *chunks[KV_UDP_BURST];
};

struct kv_udp {
	struct kv_messages incoming;
	struct kv_messages outgoing;
	uint32_t queued; /* messages queued to be sent */
	uint32_t spare_count;
	uint8_t *spare[KV_UDP_CHUNKS]; /* unused chunks */
	uint8_t *memory;
	struct kv_packet_header header; /* header of every frame, except sender and lengths */
	struct kv_udp_stats stats;
	int fd;
};

static int kv_udp_bind(struct kv_udp *udp, uint32_t address, uint32_t port, uint32_t datagrams);
static void kv_prepare_messages(struct kv_messages *messages);
static void kv_offer_chunk(struct kv_udp *udp, uint32_t message);

struct kv_udp *kv_udp_open(uint32_t address, uint32_t port, uint32_t datagrams)
{
	struct kv_udp *udp;
	int pages, result;

	if (port > 0xffff || datagrams == 0 || datagrams > KV_DATAGRAMS_MAX) {
		errno = EINVAL;
		return NULL;
	}
	udp = calloc(1, sizeof(*udp));
	if (!udp)
		return NULL;
	udp->fd = -1;
	udp->memory = kv_memory_map((size_t)KV_UDP_CHUNKS * KV_CHUNK_BYTES, 1, &pages);
	result = udp->memory ? kv_udp_bind(udp, address, port, datagrams) : -errno;
	if (result) {
		kv_udp_close(udp);
		errno = -result;
		return NULL;
	}
	udp->header = (struct kv_packet_header){
		.eth_type = htons(KV_ETHERTYPE_IPV4),
		.ip_version_ihl = KV_IP_VERSION_IHL,
		.ip_ttl = KV_IP_TTL,
		.ip_protocol = KV_IP_PROTOCOL_UDP,
		.udp_destination_port = htons((uint16_t)port),
	};
	memcpy(udp->header.ip_destination, &address, sizeof(address));
	while (udp->spare_count < KV_UDP_CHUNKS) {
		udp->spare[udp->spare_count] = udp->memory + (size_t)udp->spare_count * KV_CHUNK_BYTES;
		udp->spare_count++;
	}
	kv_prepare_messages(&udp->incoming);
	kv_prepare_messages(&udp->outgoing);
	for (uint32_t i = 0; i < KV_UDP_BURST; i++)
		kv_offer_chunk(udp, i);
	return udp;
}

void kv_udp_close(struct kv_udp *udp)
{
	if (!udp)
		return;
	if (udp->fd >= 0)
		close(udp->fd);
	kv_memory_unmap(udp->memory, (size_t)KV_UDP_CHUNKS * KV_CHUNK_BYTES);
	free(udp);
}

void kv_udp_get_stats(struct kv_udp *udp, struct kv_udp_stats *stats)
{
	uint32_t kernel[SK_MEMINFO_VARS] = { 0 };
	socklen_t bytes = sizeof(kernel);

	getsockopt(udp->fd, SOL_SOCKET, SO_MEMINFO, kernel, &bytes);
	*stats = udp->stats;
	stats->rx_dropped = kernel[SK_MEMINFO_DROPS];
	stats->fd = (uint32_t)udp->fd;
	stats->chunks = KV_UDP_CHUNKS;
	stats->chunks_busy = KV_UDP_CHUNKS - KV_UDP_BURST - udp->spare_count;
}

/* ---- The port ---- */

static void kv_make_up_header(const struct kv_udp *udp, uint8_t *chunk, const struct sockaddr_in *sender,
			      uint32_t datagram_bytes);
static void kv_udp_flush(void *source);
static void kv_udp_release(void *source, const struct kv_frame *frame);
static void kv_count_refusal(struct kv_udp_stats *stats, int reason);

static uint32_t kv_udp_receive(void *source, struct kv_frame *frames, uint32_t room)
{
	struct kv_udp *udp = source;
	struct kv_messages *incoming = &udp->incoming;
	uint32_t most = room < KV_UDP_BURST ? room : KV_UDP_BURST;
	int count;

	if (most > udp->spare_count)
		most = udp->spare_count;
	count = recvmmsg(udp->fd, incoming->headers, most, MSG_DONTWAIT, NULL);
	if (count <= 0) {
		if (count < 0 && errno != EAGAIN && errno != EINTR)
			udp->stats.rx_errors++;
		return 0;
	}
	for (uint32_t i = 0; i < (uint32_t)count; i++) {
		uint32_t datagram_bytes = incoming->headers[i].msg_len;
		uint8_t *chunk = incoming->chunks[i];

		kv_make_up_header(udp, chunk, &incoming->peers[i], datagram_bytes);
		frames[i] = (struct kv_frame){
			.data = chunk,
			.reply = chunk,
			.bytes = KV_HEADERS_BYTES + datagram_bytes,
			.room = KV_CHUNK_BYTES,
			.tag = (uint64_t)(uintptr_t)chunk,
		};
		kv_offer_chunk(udp, i);
	}
	udp->stats.received += (uint64_t)count;
	return (uint32_t)count;
}

static void kv_udp_send(void *source, const struct kv_frame *frame)
{
	const struct kv_packet_header *header = (const struct kv_packet_header *)frame->reply;
	struct kv_udp *udp = source;
	struct kv_messages *outgoing = &udp->outgoing;

	if (frame->bytes <= KV_HEADERS_BYTES || frame->bytes > KV_CHUNK_BYTES) {
		udp->stats.tx_invalid++;
		kv_udp_release(udp, frame);
		return;
	}
	if (udp->queued == KV_UDP_BURST)
		kv_udp_flush(udp);
	outgoing->chunks[udp->queued] = (uint8_t *)(uintptr_t)frame->tag;
	outgoing->parts[udp->queued].iov_base = frame->reply + KV_HEADERS_BYTES;
	outgoing->parts[udp->queued].iov_len = frame->bytes - KV_HEADERS_BYTES;
	outgoing->peers[udp->queued].sin_port = header->udp_destination_port;
	memcpy(&outgoing->peers[udp->queued].sin_addr, header->ip_destination, sizeof(struct in_addr));
	udp->queued++;
}

static void kv_udp_release(void *source, const struct kv_frame *frame)
{
	struct kv_udp *udp = source;

	udp->spare[udp->spare_count++] = (uint8_t *)(uintptr_t)frame->tag;
}

/* The kernel stops at the first answer that it refuses; the next call, which begins with it, returns the reason. */
static void kv_udp_flush(void *source)
{
	struct kv_udp *udp = source;
	struct kv_messages *outgoing = &udp->outgoing;
	uint32_t done = 0;

	while (done < udp->queued) {
		int count = sendmmsg(udp->fd, outgoing->headers + done, udp->queued - done, MSG_DONTWAIT);

		if (count > 0) {
			udp->stats.sent += (uint64_t)count;
			done += (uint32_t)count;
		} else if (errno != EINTR) {
			kv_count_refusal(&udp->stats, errno);
			done++;
		}
	}
	for (uint32_t i = 0; i < udp->queued; i++)
		udp->spare[udp->spare_count++] = outgoing->chunks[i];
	udp->queued = 0;
}

const struct kv_port *kv_udp_port(void)
{
	static const struct kv_port port = {
		.receive = kv_udp_receive,
		.send = kv_udp_send,
		.release = kv_udp_release,
		.flush = kv_udp_flush,
	};

	return &port;
}

static void kv_count_refusal(struct kv_udp_stats *stats, int reason)
{
	if (reason == EINVAL)
		stats->tx_invalid++;
	else if (reason == EAGAIN || reason == ENOBUFS || reason == ENOMEM)
		stats->tx_full++;
	else
		stats->tx_refused++;
}

/* Make up the headers of the frame that the datagram may have arrived in. */
static void kv_make_up_header(const struct kv_udp *udp, uint8_t *chunk, const struct sockaddr_in *sender,
			      uint32_t datagram_bytes)
{
	struct kv_packet_header *header = (struct kv_packet_header *)chunk;

	memcpy(header, &udp->header, KV_HEADERS_BYTES);
	memcpy(header->ip_source, &sender->sin_addr, sizeof(sender->sin_addr));
	header->udp_source_port = sender->sin_port;
	header->ip_total_length = htons((uint16_t)(KV_HEADERS_BYTES - KV_ETH_BYTES + datagram_bytes));
	header->udp_length = htons((uint16_t)(KV_UDP_BYTES + datagram_bytes));
}

/* ---- Opening ---- */

static void kv_enlarge(int fd, int option, int option_by_force, int bytes);

static int kv_udp_bind(struct kv_udp *udp, uint32_t address, uint32_t port, uint32_t datagrams)
{
	const struct sockaddr_in own = {
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t)port),
		.sin_addr.s_addr = address,
	};
	int buffer_bytes = (int)(datagrams * KV_DATAGRAM_CHARGE_BYTES), on = 1;

	udp->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (udp->fd < 0)
		return -errno;
	/* Send answers without a UDP checksum, as all other ports do. */
	if (setsockopt(udp->fd, SOL_SOCKET, SO_NO_CHECK, &on, sizeof(on)))
		return -errno;
	kv_enlarge(udp->fd, SO_RCVBUF, SO_RCVBUFFORCE, buffer_bytes);
	kv_enlarge(udp->fd, SO_SNDBUF, SO_SNDBUFFORCE, buffer_bytes);
	return bind(udp->fd, (const struct sockaddr *)&own, sizeof(own)) ? -errno : 0;
}

/* Without the privilege the buffer becomes as large as the administrator allows. */
static void kv_enlarge(int fd, int option, int option_by_force, int bytes)
{
	if (setsockopt(fd, SOL_SOCKET, option_by_force, &bytes, sizeof(bytes)))
		setsockopt(fd, SOL_SOCKET, option, &bytes, sizeof(bytes));
}

/* Fill in the constant part of the header. */
static void kv_prepare_messages(struct kv_messages *messages)
{
	for (uint32_t i = 0; i < KV_UDP_BURST; i++) {
		messages->peers[i].sin_family = AF_INET;
		messages->headers[i].msg_hdr = (struct msghdr){
			.msg_name = &messages->peers[i],
			.msg_namelen = sizeof(messages->peers[i]),
			.msg_iov = &messages->parts[i],
			.msg_iovlen = 1,
		};
	}
}

/* Give a message a spare chunk for its next datagram. */
static void kv_offer_chunk(struct kv_udp *udp, uint32_t message)
{
	uint8_t *chunk = udp->spare[--udp->spare_count];

	udp->incoming.chunks[message] = chunk;
	udp->incoming.parts[message].iov_base = chunk + KV_HEADERS_BYTES;
	udp->incoming.parts[message].iov_len = KV_DATAGRAM_BYTES;
}
