// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * peer_load.c - a closed loop of prepared messages over kernel sockets: TCP, or UDP with memcached's frame header.
 *
 * A stream is a sequence of messages that are answered in order: a TCP connection, or one of the places for a message
 * behind a UDP socket. One thread polls all sockets without sleeping, as our own generator does: if it slept, the
 * server's core would have to wake it, at the server's cost. Idle polling time is measured, so that a result can tell
 * whether the generator or the server was the limit.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "abi/limits.h"
#include "abi/load.h"
#include "load/peer.h"

#define KV_UDP_HEADER_BYTES 8
#define KV_DATAGRAMS 128 /* datagrams sent or received by one system call; at least one per stream of a socket */
#define KV_DATAGRAM_BYTES 2048
#define KV_EVENTS 64
#define KV_CHECK_NS 10000000 /* time between two searches for overdue messages */

/* A request id in memcached's frame header consists of the message's turn and its stream. */
#define KV_ID_STREAM_BITS 6
#define KV_ID_TURN_MASK 1023
_Static_assert(KV_BATCH_MAX <= 1 << KV_ID_STREAM_BITS, "a stream's number has its place in the request id");

struct kv_outstanding {
	uint64_t start_ns;
	uint32_t message;
	uint32_t padding;
};

struct kv_stream {
	struct kv_outstanding *outstanding; /* [window]: a ring, the oldest at `head` */
	uint32_t head;
	uint32_t count;
	uint32_t turn; /* counts messages, for UDP */
	uint32_t used; /* bytes in the buffer */
	struct kv_peer_answer answer;
	const uint8_t *unsent; /* data that the socket had no room for */
	uint32_t unsent_bytes;
	uint8_t buffer[KV_PEER_BUFFER_BYTES];
};

struct kv_peer_socket {
	int32_t fd;
	uint32_t stream_count;
	struct kv_stream *streams;
};

struct kv_peer_load_state {
	int32_t epoll_fd;
	uint32_t socket_count;
	uint32_t stream_count;
	uint32_t window; /* most outstanding messages of one stream */
	int is_datagram;
	uint32_t next_message;
	uint64_t messages_end; /* results.messages_sent at the end of this run, or 0 */
	uint64_t outstanding;
	struct kv_peer_socket *sockets;
	struct kv_stream *streams;
	struct kv_outstanding *outstandings;
	uint32_t out_count;
	struct mmsghdr out[KV_DATAGRAMS];
	struct iovec out_data[KV_DATAGRAMS];
	struct mmsghdr in[KV_DATAGRAMS];
	struct iovec in_data[KV_DATAGRAMS];
	uint8_t in_bytes[KV_DATAGRAMS][KV_DATAGRAM_BYTES];
};

static int kv_begin(struct kv_peer_load *load);
static int kv_serve(struct kv_peer_load *load, const struct epoll_event *events, int count);
static int kv_overdue(struct kv_peer_load *load, uint64_t now_ns);
static void kv_give_up(struct kv_peer_load *load, struct kv_stream *stream);

static uint64_t kv_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint32_t kv_state(const struct kv_peer_load *load)
{
	return __atomic_load_n(&load->state, __ATOMIC_RELAXED);
}

static int kv_may_send(const struct kv_peer_load *load)
{
	const struct kv_peer_load_state *own = load->own;

	return kv_state(load) == KV_PEER_RUNNING &&
	       (!own->messages_end || load->results.messages_sent < own->messages_end);
}

int kv_peer_load_run(struct kv_peer_load *load)
{
	struct kv_peer_load_state *own = load->own;
	struct epoll_event events[KV_EVENTS];
	uint64_t since_ns, now_ns, check_ns = 0;
	int status = kv_begin(load), count;

	since_ns = kv_now_ns();
	while (!status && kv_state(load) != KV_PEER_STOPPED && (own->outstanding || kv_may_send(load))) {
		count = epoll_wait(own->epoll_fd, events, KV_EVENTS, 0);
		now_ns = kv_now_ns();
		load->results.polls++;
		if (count < 0 && errno != EINTR)
			status = -errno;
		if (count > 0)
			status = kv_serve(load, events, count);
		else
			load->results.idle_ns += now_ns - since_ns;
		if (!status && now_ns - check_ns > KV_CHECK_NS) {
			check_ns = now_ns;
			status = kv_overdue(load, now_ns);
		}
		since_ns = count > 0 ? kv_now_ns() : now_ns;
	}
	for (uint32_t i = 0; i < own->stream_count; i++)
		kv_give_up(load, &own->streams[i]);
	return status;
}

/* ---- Creating and destroying ---- */

static int kv_open(struct kv_peer_load *load, const int32_t *sockets, uint32_t count, uint32_t window)
{
	struct kv_peer_load_state *own = load->own;
	uint32_t streams = own->is_datagram ? window : 1;

	own->socket_count = count;
	own->stream_count = count * streams;
	own->window = own->is_datagram ? 1 : window;
	own->sockets = calloc(count, sizeof(*own->sockets));
	own->streams = calloc(own->stream_count, sizeof(*own->streams));
	own->outstandings = calloc((size_t)own->stream_count * own->window, sizeof(*own->outstandings));
	own->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (!own->sockets || !own->streams || !own->outstandings || own->epoll_fd < 0)
		return -1;
	for (uint32_t i = 0; i < own->stream_count; i++)
		own->streams[i].outstanding = own->outstandings + (size_t)i * own->window;
	for (uint32_t i = 0; i < count; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u32 = i };

		own->sockets[i] = (struct kv_peer_socket){ sockets[i], streams, own->streams + (size_t)i * streams };
		if (epoll_ctl(own->epoll_fd, EPOLL_CTL_ADD, sockets[i], &event))
			return -1;
	}
	for (uint32_t i = 0; i < KV_DATAGRAMS; i++) {
		own->in_data[i] = (struct iovec){ own->in_bytes[i], KV_DATAGRAM_BYTES };
		own->in[i].msg_hdr = (struct msghdr){ .msg_iov = &own->in_data[i], .msg_iovlen = 1 };
		own->out[i].msg_hdr = (struct msghdr){ .msg_iov = &own->out_data[i], .msg_iovlen = 1 };
	}
	return 0;
}

struct kv_peer_load *kv_peer_load_create(const int32_t *sockets, uint32_t count, uint32_t window, int is_datagram)
{
	struct kv_peer_load *load;
	int error;

	if (!count || count > KV_WINDOW_MAX || !window || window > (is_datagram ? KV_BATCH_MAX : KV_WINDOW_MAX)) {
		errno = EINVAL;
		return NULL;
	}
	load = calloc(1, sizeof(*load));
	if (!load)
		return NULL;
	load->own = calloc(1, sizeof(*load->own));
	if (load->own) {
		load->own->is_datagram = is_datagram;
		load->own->epoll_fd = -1;
		if (!kv_open(load, sockets, count, window))
			return load;
	}
	error = errno;
	kv_peer_load_destroy(load);
	errno = error;
	return NULL;
}

void kv_peer_load_destroy(struct kv_peer_load *load)
{
	struct kv_peer_load_state *own = load->own;

	if (own) {
		if (own->epoll_fd >= 0)
			close(own->epoll_fd);
		free(own->sockets);
		free(own->streams);
		free(own->outstandings);
		free(own);
	}
	free(load);
}

/* ---- Sending ---- */

/* Start the next message on this stream. */
static const struct kv_peer_message *kv_next_message(struct kv_peer_load *load, struct kv_stream *stream)
{
	struct kv_peer_load_state *own = load->own;
	uint32_t index = own->next_message++, place = (stream->head + stream->count) % own->window;
	const struct kv_peer_message *message = &load->plan.messages[index];

	if (own->next_message == load->plan.message_count)
		own->next_message = 0;
	stream->outstanding[place] = (struct kv_outstanding){ kv_now_ns(), index, 0 };
	stream->count++;
	stream->turn++;
	own->outstanding++;
	load->results.messages_sent++;
	load->results.requests_sent += message->gets + message->sets;
	load->results.bytes_sent += message->bytes;
	return message;
}

/* Send unsent data; poll the socket for room while some is left. */
static int kv_send_rest(struct kv_peer_load *load, struct kv_peer_socket *socket, struct kv_stream *stream)
{
	struct epoll_event event = { .data.u32 = (uint32_t)(socket - load->own->sockets) };
	ssize_t sent = send(socket->fd, stream->unsent, stream->unsent_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sent < 0 && errno != EAGAIN && errno != EINTR)
		return errno == ECONNRESET ? -EPIPE : -errno;
	if (sent > 0) {
		stream->unsent += sent;
		stream->unsent_bytes -= (uint32_t)sent;
	}
	event.events = stream->unsent_bytes ? EPOLLIN | EPOLLOUT : EPOLLIN;
	return epoll_ctl(load->own->epoll_fd, EPOLL_CTL_MOD, socket->fd, &event) ? -errno : 0;
}

/* Send messages until the window is full. */
static int kv_fill_stream(struct kv_peer_load *load, struct kv_peer_socket *socket)
{
	struct kv_stream *stream = socket->streams;

	while (stream->count < load->own->window && !stream->unsent_bytes && kv_may_send(load)) {
		const struct kv_peer_message *message = kv_next_message(load, stream);
		const uint8_t *bytes = load->plan.bytes + message->at;
		ssize_t sent = send(socket->fd, bytes, message->bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
		int status;

		if (sent == message->bytes)
			continue;
		stream->unsent = bytes + (sent > 0 ? sent : 0);
		stream->unsent_bytes = message->bytes - (uint32_t)(sent > 0 ? sent : 0);
		status = kv_send_rest(load, socket, stream);
		if (status)
			return status;
	}
	return 0;
}

static void kv_write_id(uint8_t *header, uint32_t id)
{
	header[0] = (uint8_t)(id >> 8);
	header[1] = (uint8_t)id;
}

/* Datagrams that the socket has no room for are lost, as on any network. */
static int kv_flush_datagrams(struct kv_peer_load *load, struct kv_peer_socket *socket)
{
	struct kv_peer_load_state *own = load->own;
	uint32_t first = 0;

	while (first < own->out_count) {
		int sent = sendmmsg(socket->fd, own->out + first, own->out_count - first, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent > 0)
			first += (uint32_t)sent;
		else if (errno == EAGAIN || errno == ENOBUFS)
			break;
		else if (errno != EINTR)
			return errno == ECONNREFUSED ? -EPIPE : -errno;
	}
	own->out_count = 0;
	return 0;
}

/* Send a message, one datagram each, for every free place. */
static int kv_fill_datagrams(struct kv_peer_load *load, struct kv_peer_socket *socket)
{
	struct kv_peer_load_state *own = load->own;

	for (uint32_t i = 0; i < socket->stream_count && kv_may_send(load); i++) {
		struct kv_stream *stream = &socket->streams[i];
		const struct kv_peer_message *message;
		uint8_t *bytes;

		if (stream->count)
			continue;
		message = kv_next_message(load, stream);
		bytes = load->plan.bytes + message->at;
		kv_write_id(bytes, (stream->turn & KV_ID_TURN_MASK) << KV_ID_STREAM_BITS | i);
		own->out_data[own->out_count++] = (struct iovec){ bytes, message->bytes };
	}
	return own->out_count ? kv_flush_datagrams(load, socket) : 0;
}

static int kv_fill(struct kv_peer_load *load, struct kv_peer_socket *socket)
{
	return load->own->is_datagram ? kv_fill_datagrams(load, socket) : kv_fill_stream(load, socket);
}

static int kv_begin(struct kv_peer_load *load)
{
	struct kv_peer_load_state *own = load->own;
	int status = 0;

	if (!load->plan.message_count)
		return -EINVAL;
	own->next_message = 0;
	own->messages_end = load->messages_limit ? load->results.messages_sent + load->messages_limit : 0;
	for (uint32_t i = 0; i < own->socket_count && !status; i++)
		status = kv_fill(load, &own->sockets[i]);
	return status;
}

/* ---- Receiving ---- */

/* Complete the oldest message: its answer has been parsed. */
static void kv_count_answer(struct kv_peer_load *load, struct kv_stream *stream, uint64_t now_ns)
{
	struct kv_peer_results *results = &load->results;
	const struct kv_outstanding *outstanding = &stream->outstanding[stream->head];
	const struct kv_peer_message *message = &load->plan.messages[outstanding->message];
	uint64_t latency_ns = now_ns - outstanding->start_ns;
	uint32_t requests = message->gets + message->sets;
	uint32_t bucket = kv_histogram_bucket(latency_ns);

	results->messages++;
	results->responses += requests;
	results->hits += stream->answer.hits;
	results->misses += stream->answer.misses;
	results->stored += stream->answer.stored;
	results->corrupt += stream->answer.corrupt;
	results->refused += stream->answer.refused;
	results->latency_sum_ns += latency_ns * requests;
	results->latency[bucket < KV_HISTOGRAM_BUCKETS ? bucket : KV_HISTOGRAM_BUCKETS - 1] += requests;
	stream->answer = (struct kv_peer_answer){ 0 };
	stream->head = (stream->head + 1) % load->own->window;
	stream->count--;
	load->own->outstanding--;
}

static int kv_fail(struct kv_peer_load *load, const uint8_t *data, uint32_t bytes)
{
	memcpy(load->offending, data, bytes < sizeof(load->offending) ? bytes : sizeof(load->offending));
	load->protocol_error = 1;
	return -EPROTO;
}

/* Parse the buffer; an incomplete item stays in it. */
static int kv_understand(struct kv_peer_load *load, struct kv_stream *stream, uint64_t now_ns)
{
	uint32_t at = 0;

	while (stream->count && at < stream->used) {
		const struct kv_peer_message *message = &load->plan.messages[stream->outstanding[stream->head].message];
		int64_t parsed =
			kv_peer_parse(&load->plan, message, &stream->answer, stream->buffer + at, stream->used - at);

		if (parsed < 0)
			return kv_fail(load, stream->buffer + at, stream->used - at);
		at += (uint32_t)parsed;
		if (!stream->answer.complete)
			break;
		kv_count_answer(load, stream, now_ns);
	}
	if (at < stream->used && !stream->count) /* data without a request */
		return kv_fail(load, stream->buffer + at, stream->used - at);
	stream->used -= at;
	memmove(stream->buffer, stream->buffer + at, stream->used);
	return 0;
}

static int kv_receive_stream(struct kv_peer_load *load, struct kv_peer_socket *socket)
{
	struct kv_stream *stream = socket->streams;
	ssize_t received =
		recv(socket->fd, stream->buffer + stream->used, sizeof(stream->buffer) - stream->used, MSG_DONTWAIT);

	if (received == 0)
		return -EPIPE;
	if (received < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : errno == ECONNRESET ? -EPIPE : -errno;
	load->results.bytes += (uint64_t)received;
	stream->used += (uint32_t)received;
	return kv_understand(load, stream, kv_now_ns());
}

/*
 * The answer to one message is as many datagrams as it has items, memcached 1.6 says "0 of 1" on each, and a socket
 * pair keeps their order. One that got lost in the middle looks like a miss; a message whose end is missing is lost.
 */
static int kv_take_datagram(struct kv_peer_load *load, struct kv_peer_socket *socket, const uint8_t *data,
			    uint32_t bytes, uint64_t now_ns)
{
	struct kv_stream *stream;
	uint32_t id, index;

	if (bytes < KV_UDP_HEADER_BYTES)
		return kv_fail(load, data, bytes);
	id = (uint32_t)data[0] << 8 | data[1];
	index = id & ((1 << KV_ID_STREAM_BITS) - 1);
	if (index >= socket->stream_count)
		return kv_fail(load, data, bytes);
	stream = &socket->streams[index];
	if (!stream->count || id >> KV_ID_STREAM_BITS != (stream->turn & KV_ID_TURN_MASK)) {
		load->results.late++;
		return 0;
	}
	data += KV_UDP_HEADER_BYTES;
	bytes -= KV_UDP_HEADER_BYTES;
	if (bytes > sizeof(stream->buffer) - stream->used)
		return kv_fail(load, data, bytes);
	memcpy(stream->buffer + stream->used, data, bytes);
	stream->used += bytes;
	return kv_understand(load, stream, now_ns);
}

static int kv_receive_datagrams(struct kv_peer_load *load, struct kv_peer_socket *socket)
{
	struct kv_peer_load_state *own = load->own;
	int count = recvmmsg(socket->fd, own->in, KV_DATAGRAMS, MSG_DONTWAIT, NULL), status = 0;
	uint64_t now_ns = kv_now_ns();

	if (count < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : errno == ECONNREFUSED ? -EPIPE : -errno;
	for (int i = 0; i < count && !status; i++) {
		load->results.bytes += own->in[i].msg_len;
		status = kv_take_datagram(load, socket, own->in_bytes[i], own->in[i].msg_len, now_ns);
	}
	return status;
}

static int kv_serve(struct kv_peer_load *load, const struct epoll_event *events, int count)
{
	struct kv_peer_load_state *own = load->own;
	int status = 0;

	for (int i = 0; i < count && !status; i++) {
		struct kv_peer_socket *socket = &own->sockets[events[i].data.u32];

		if (events[i].events & EPOLLOUT)
			status = kv_send_rest(load, socket, socket->streams);
		if (!status && events[i].events & ~(uint32_t)EPOLLOUT)
			status =
				own->is_datagram ? kv_receive_datagrams(load, socket) : kv_receive_stream(load, socket);
		if (!status)
			status = kv_fill(load, socket);
	}
	return status;
}

/* ---- Time-outs ---- */

/* Count everything outstanding on the stream as lost. */
static void kv_give_up(struct kv_peer_load *load, struct kv_stream *stream)
{
	while (stream->count) {
		const struct kv_peer_message *message = &load->plan.messages[stream->outstanding[stream->head].message];

		load->results.lost += message->gets + message->sets;
		stream->head = (stream->head + 1) % load->own->window;
		stream->count--;
		load->own->outstanding--;
	}
	stream->answer = (struct kv_peer_answer){ 0 };
	stream->used = stream->unsent_bytes = 0;
}

/* Reuse the place of a lost datagram; a TCP stream that stays silent is an error. */
static int kv_overdue(struct kv_peer_load *load, uint64_t now_ns)
{
	struct kv_peer_load_state *own = load->own;
	int status = 0;

	for (uint32_t i = 0; i < own->socket_count && !status; i++) {
		struct kv_peer_socket *socket = &own->sockets[i];

		for (uint32_t j = 0; j < socket->stream_count; j++) {
			struct kv_stream *stream = &socket->streams[j];
			uint64_t start_ns = stream->outstanding[stream->head].start_ns;

			if (!stream->count || now_ns < start_ns || now_ns - start_ns <= load->timeout_ns)
				continue;
			if (!own->is_datagram)
				return -ETIMEDOUT;
			kv_give_up(load, stream);
		}
		if (own->is_datagram)
			status = kv_fill(load, socket);
	}
	return status;
}
