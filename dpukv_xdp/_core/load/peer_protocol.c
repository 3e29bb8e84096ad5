// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * peer_protocol.c - encode requests to Redis and memcached, and parse and count their answers.
 *
 * No sockets and no clock. Answers may be split anywhere and may be followed by the next one: an item, that is a line
 * with its value, is parsed when it is complete. Within a message the GETs come first, so that a multi-get is one
 * command and every protocol answers in the requests' order.
 */
#include <errno.h>
#include <string.h>

#include "abi/limits.h"
#include "abi/load.h"
#include "load/peer.h"

#define KV_UDP_HEADER_BYTES 8
#define KV_KEY_TEXT_MAX 250 /* memcached's limit */
#define KV_NUMBER_DIGITS_MAX 7

/* One line of an answer. */
struct kv_answer_line {
	const uint8_t *text;
	uint32_t bytes; /* length without the line end */
	uint32_t next;	/* length with the line end: offset of the next item */
};

/* A parser of one item returns the bytes used, 0 for an incomplete item, or -EPROTO. */
typedef int64_t (*kv_parse_item)(const struct kv_peer_plan *, const struct kv_peer_message *, struct kv_peer_answer *,
				 const struct kv_answer_line *, uint32_t bytes);

static int64_t kv_parse_resp(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
			     struct kv_peer_answer *answer, const struct kv_answer_line *line, uint32_t bytes);
static int64_t kv_parse_mget(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
			     struct kv_peer_answer *answer, const struct kv_answer_line *line, uint32_t bytes);
static int64_t kv_parse_memcached(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
				  struct kv_peer_answer *answer, const struct kv_answer_line *line, uint32_t bytes);

static const kv_parse_item kv_parsers[KV_PEER_PROTOCOLS] = {
	[KV_PEER_RESP] = kv_parse_resp,
	[KV_PEER_RESP_MGET] = kv_parse_mget,
	[KV_PEER_MEMCACHED] = kv_parse_memcached,
	[KV_PEER_MEMCACHED_UDP] = kv_parse_memcached,
};

static int kv_find_line(const uint8_t *data, uint32_t bytes, struct kv_answer_line *line);

int64_t kv_peer_parse(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
		      struct kv_peer_answer *answer, const uint8_t *data, uint32_t bytes)
{
	uint32_t used = 0;

	while (!answer->complete) {
		struct kv_answer_line line;
		int64_t item = kv_find_line(data + used, bytes - used, &line);

		if (item > 0)
			item = kv_parsers[plan->protocol](plan, message, answer, &line, bytes - used);
		if (item < 0)
			return item;
		if (item == 0)
			break;
		used += (uint32_t)item;
		/* Without GETs there is no line around them. */
		answer->complete = answer->position == message->gets + message->sets &&
				   (answer->bracket || !message->gets || plan->protocol == KV_PEER_RESP);
	}
	return used;
}

/* Find a complete line. Return 1, 0 for an incomplete one, or -EPROTO. */
static int kv_find_line(const uint8_t *data, uint32_t bytes, struct kv_answer_line *line)
{
	uint32_t room = bytes < KV_PEER_LINE_MAX ? bytes : KV_PEER_LINE_MAX;
	const uint8_t *end = room ? memchr(data, '\n', room) : NULL;

	if (!end)
		return bytes < KV_PEER_LINE_MAX ? 0 : -EPROTO;
	if (end == data || end[-1] != '\r')
		return -EPROTO;
	line->text = data;
	line->bytes = (uint32_t)(end - data) - 1;
	line->next = line->bytes + 2;
	return 1;
}

static int kv_begins(const struct kv_answer_line *line, const char *word)
{
	size_t bytes = strlen(word);

	return line->bytes >= bytes && !memcmp(line->text, word, bytes);
}

static int kv_is(const struct kv_answer_line *line, const char *word)
{
	return line->bytes == strlen(word) && kv_begins(line, word);
}

/* Return the number that makes up all of `text`, or -1. */
static int64_t kv_number(const uint8_t *text, uint32_t bytes)
{
	int64_t number = 0;

	if (bytes == 0 || bytes > KV_NUMBER_DIGITS_MAX)
		return -1;
	for (uint32_t i = 0; i < bytes; i++) {
		if (text[i] < '0' || text[i] > '9')
			return -1;
		number = 10 * number + text[i] - '0';
	}
	return number;
}

/* Check a value. Return the bytes of its item, 0 for an incomplete one, or -EPROTO. */
static int64_t kv_value_item(const struct kv_answer_line *line, int64_t value_bytes, uint32_t bytes)
{
	const uint8_t *end = line->text + line->next + value_bytes;

	if (value_bytes < 0 || line->next + value_bytes + 2 > KV_PEER_BUFFER_BYTES)
		return -EPROTO;
	if (line->next + value_bytes + 2 > bytes)
		return 0;
	return end[0] == '\r' && end[1] == '\n' ? line->next + value_bytes + 2 : -EPROTO;
}

static int kv_value_is_right(const struct kv_peer_plan *plan, const struct kv_peer_request *request,
			     const uint8_t *value, int64_t bytes)
{
	uint32_t offset;

	if (bytes != plan->value_bytes)
		return 0;
	for (offset = 0; offset < plan->value_bytes; offset += 8) {
		uint64_t word = KV_LOAD_VALUE_WORD(request->key_hash, offset / 8);
		uint32_t rest = plan->value_bytes - offset;

		if (memcmp(value + offset, &word, rest < 8 ? rest : 8))
			return 0;
	}
	return 1;
}

static void kv_count_value(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
			   struct kv_peer_answer *answer, const uint8_t *value, int64_t bytes)
{
	const struct kv_peer_request *request = &plan->requests[message->first + answer->position++];

	if (kv_value_is_right(plan, request, value, bytes))
		answer->hits++;
	else
		answer->corrupt++;
}

/* ---- Redis ---- */

/* $<bytes>, value; $-1 for none; -<error>. */
static int64_t kv_parse_bulk(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
			     struct kv_peer_answer *answer, const struct kv_answer_line *line, uint32_t bytes)
{
	int64_t value_bytes, item;

	if (kv_is(line, "$-1")) {
		answer->misses++;
		answer->position++;
		return line->next;
	}
	if (!kv_begins(line, "$"))
		return -EPROTO;
	value_bytes = kv_number(line->text + 1, line->bytes - 1);
	item = kv_value_item(line, value_bytes, bytes);
	if (item > 0)
		kv_count_value(plan, message, answer, line->text + line->next, value_bytes);
	return item;
}

static int64_t kv_parse_resp(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
			     struct kv_peer_answer *answer, const struct kv_answer_line *line, uint32_t bytes)
{
	if (kv_begins(line, "-")) {
		answer->refused++;
		answer->position++;
		return line->next;
	}
	if (answer->position < message->gets)
		return kv_parse_bulk(plan, message, answer, line, bytes);
	if (!kv_is(line, "+OK"))
		return -EPROTO;
	answer->stored++;
	answer->position++;
	return line->next;
}

static int64_t kv_parse_mget(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
			     struct kv_peer_answer *answer, const struct kv_answer_line *line, uint32_t bytes)
{
	if (answer->position >= message->gets)
		return kv_parse_resp(plan, message, answer, line, bytes);
	if (answer->bracket)
		return kv_parse_bulk(plan, message, answer, line, bytes);
	answer->bracket = 1;
	if (kv_begins(line, "-")) {
		answer->refused += message->gets;
		answer->position = message->gets;
		return line->next;
	}
	if (!kv_begins(line, "*") || kv_number(line->text + 1, line->bytes - 1) != message->gets)
		return -EPROTO;
	return line->next;
}

/* ---- memcached ---- */

/* VALUE <key> <flags> <bytes>, value. Missing keys have no line. */
static int64_t kv_parse_value(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
			      struct kv_peer_answer *answer, const struct kv_answer_line *line, uint32_t bytes)
{
	const uint8_t *key = line->text + strlen("VALUE "), *number = line->text + line->bytes;
	uint32_t key_bytes = 2 * plan->key_size, position = answer->position;
	int64_t value_bytes, item;

	if (line->bytes < strlen("VALUE ") + key_bytes + strlen(" 0 0"))
		return -EPROTO;
	while (number[-1] != ' ')
		number--;
	value_bytes = kv_number(number, (uint32_t)(line->text + line->bytes - number));
	item = kv_value_item(line, value_bytes, bytes);
	if (item <= 0)
		return item;
	while (position < message->gets &&
	       memcmp(plan->bytes + message->at + plan->requests[message->first + position].key_at, key, key_bytes))
		position++;
	if (key[key_bytes] != ' ' || position == message->gets) { /* this key was not requested */
		answer->corrupt++;
		return item;
	}
	answer->misses += position - answer->position;
	answer->position = position;
	kv_count_value(plan, message, answer, line->text + line->next, value_bytes);
	return item;
}

static int64_t kv_parse_memcached(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
				  struct kv_peer_answer *answer, const struct kv_answer_line *line, uint32_t bytes)
{
	int in_gets = message->gets && !answer->bracket;
	int is_error = kv_begins(line, "ERROR") || kv_begins(line, "SERVER_ERROR") || kv_begins(line, "CLIENT_ERROR");

	if (in_gets && kv_begins(line, "VALUE "))
		return kv_parse_value(plan, message, answer, line, bytes);
	if (in_gets) {
		uint32_t rest = message->gets - answer->position;

		if (!is_error && !kv_is(line, "END"))
			return -EPROTO;
		answer->refused += is_error ? rest : 0;
		answer->misses += is_error ? 0 : rest;
		answer->position = message->gets;
		answer->bracket = 1;
		return line->next;
	}
	if (!is_error && !kv_is(line, "STORED") && !kv_is(line, "NOT_STORED"))
		return -EPROTO;
	if (kv_is(line, "STORED"))
		answer->stored++;
	else
		answer->refused++;
	answer->position++;
	return line->next;
}

/* ---- Requests as bytes ---- */

/* An output buffer, and whether something did not fit. */
struct kv_writer {
	uint8_t *at;
	uint8_t *end;
	int is_full;
};

static void kv_write(struct kv_writer *writer, const void *data, size_t bytes)
{
	if (bytes > (size_t)(writer->end - writer->at))
		writer->is_full = 1;
	if (writer->is_full)
		return;
	memcpy(writer->at, data, bytes);
	writer->at += bytes;
}

static void kv_write_text(struct kv_writer *writer, const char *text)
{
	kv_write(writer, text, strlen(text));
}

static void kv_write_number(struct kv_writer *writer, uint32_t number)
{
	char digits[10], *first = digits + sizeof(digits);

	do
		*--first = (char)('0' + number % 10);
	while (number /= 10);
	kv_write(writer, first, (size_t)(digits + sizeof(digits) - first));
}

static void kv_write_key(struct kv_writer *writer, const uint8_t *key, uint32_t bytes)
{
	static const char digits[] = "0123456789abcdef";

	for (uint32_t i = 0; i < bytes; i++) {
		uint8_t text[2] = { (uint8_t)digits[key[i] >> 4], (uint8_t)digits[key[i] & 15] };

		kv_write(writer, text, sizeof(text));
	}
}

static void kv_write_value(struct kv_writer *writer, uint64_t key_hash, uint32_t bytes)
{
	for (uint32_t offset = 0; offset < bytes; offset += 8) {
		uint64_t word = KV_LOAD_VALUE_WORD(key_hash, offset / 8);

		kv_write(writer, &word, bytes - offset < 8 ? bytes - offset : 8);
	}
}

/* Append $<bytes> and a string of that length. */
static void kv_write_bulk_head(struct kv_writer *writer, uint32_t bytes)
{
	kv_write_text(writer, "$");
	kv_write_number(writer, bytes);
	kv_write_text(writer, "\r\n");
}

/* Append a frame header: request id 0, datagram 0 of 1, reserved. The id is filled in when the datagram is sent. */
static void kv_write_frame_header(struct kv_writer *writer, const struct kv_peer_plan *plan)
{
	static const uint8_t header[KV_UDP_HEADER_BYTES] = { 0, 0, 0, 0, 0, 1, 0, 0 };

	if (plan->protocol == KV_PEER_MEMCACHED_UDP)
		kv_write(writer, header, sizeof(header));
}

static int kv_is_resp(const struct kv_peer_plan *plan)
{
	return plan->protocol == KV_PEER_RESP || plan->protocol == KV_PEER_RESP_MGET;
}

/* Append the text before GET number `index` of `gets`. */
static void kv_write_get_head(struct kv_writer *writer, const struct kv_peer_plan *plan, uint32_t index, uint32_t gets)
{
	if (plan->protocol == KV_PEER_RESP) {
		kv_write_text(writer, "*2\r\n$3\r\nGET\r\n");
	} else if (index == 0 && plan->protocol == KV_PEER_RESP_MGET) {
		kv_write_text(writer, "*");
		kv_write_number(writer, gets + 1);
		kv_write_text(writer, "\r\n$4\r\nMGET\r\n");
	} else if (index == 0) {
		kv_write_text(writer, "get");
	}
	if (kv_is_resp(plan))
		kv_write_bulk_head(writer, 2 * plan->key_size);
	else
		kv_write_text(writer, " ");
}

static void kv_write_set_head(struct kv_writer *writer, const struct kv_peer_plan *plan)
{
	if (kv_is_resp(plan)) {
		kv_write_text(writer, "*3\r\n$3\r\nSET\r\n");
		kv_write_bulk_head(writer, 2 * plan->key_size);
	} else {
		kv_write_text(writer, "set ");
	}
}

static void kv_write_set_value(struct kv_writer *writer, const struct kv_peer_plan *plan, uint64_t key_hash)
{
	if (kv_is_resp(plan)) {
		kv_write_text(writer, "\r\n");
		kv_write_bulk_head(writer, plan->value_bytes);
	} else {
		kv_write_text(writer, " 0 0 ");
		kv_write_number(writer, plan->value_bytes);
		kv_write_text(writer, "\r\n");
	}
	kv_write_value(writer, key_hash, plan->value_bytes);
	kv_write_text(writer, "\r\n");
}

/* Write one message of the first `count` requests. */
static void kv_encode_message(struct kv_writer *writer, const struct kv_peer_plan *plan,
			      struct kv_peer_message *message, const uint8_t *keys, const uint64_t *key_hashes,
			      const uint8_t *is_get, uint32_t count)
{
	uint8_t *first = writer->at;
	struct kv_peer_request *request = &plan->requests[message->first];
	uint32_t gets = 0, index = 0, i;

	kv_write_frame_header(writer, plan);
	for (i = 0; i < count; i++)
		gets += is_get[i] != 0;
	message->gets = gets;
	message->sets = count - gets;
	for (i = 0; i < count; i++) {
		if (!is_get[i])
			continue;
		kv_write_get_head(writer, plan, index++, gets);
		*request++ = (struct kv_peer_request){ key_hashes[i], (uint32_t)(writer->at - first), 0 };
		kv_write_key(writer, keys + (size_t)i * plan->key_size, plan->key_size);
		if (kv_is_resp(plan) || index == gets)
			kv_write_text(writer, "\r\n");
	}
	for (i = 0; i < count; i++) {
		if (is_get[i])
			continue;
		kv_write_set_head(writer, plan);
		*request++ = (struct kv_peer_request){ key_hashes[i], (uint32_t)(writer->at - first), 0 };
		kv_write_key(writer, keys + (size_t)i * plan->key_size, plan->key_size);
		kv_write_set_value(writer, plan, key_hashes[i]);
	}
	message->bytes = (uint32_t)(writer->at - first);
}

int64_t kv_peer_encode(struct kv_peer_plan *plan, const uint8_t *keys, const uint64_t *key_hashes,
		       const uint8_t *is_get, uint32_t count, uint32_t per_message)
{
	struct kv_writer writer = { plan->bytes, plan->bytes + plan->bytes_room, 0 };

	if (!per_message || per_message > KV_BATCH_MAX || plan->protocol >= KV_PEER_PROTOCOLS || !plan->key_size ||
	    2 * plan->key_size > KV_KEY_TEXT_MAX || plan->value_bytes > KV_VALUE_MAX)
		return -EINVAL;
	plan->message_count = 0;
	for (uint32_t first = 0; first < count; first += per_message) {
		uint32_t requests = count - first < per_message ? count - first : per_message;
		struct kv_peer_message *message = &plan->messages[plan->message_count++];

		message->at = (uint64_t)(writer.at - plan->bytes);
		message->first = first;
		kv_encode_message(&writer, plan, message, keys + (size_t)first * plan->key_size, key_hashes + first,
				  is_get + first, requests);
		if (writer.is_full)
			return -ENOBUFS;
	}
	return writer.at - plan->bytes;
}
