/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * mica2.h - the requests and responses of a MICA2 packet, behind the packet header: from bytes to records and back.
 *
 * The packet is read once: kv_parse_requests() writes the records where the batch is published from. The engine does
 * not look there before send_request_queue_to_host().
 */
#ifndef KV_MICA2_H
#define KV_MICA2_H

#include "abi/dpu_queue.h"
#include "net/headers.h"

/* ---- Requests ---- */

/*
 * Return whether a word where an item should begin is another datagram's batch header. Several datagrams merged into
 * one packet look like that (GSO, GRO); read as an item, the word would have an unknown operation.
 */
static __always_inline __u64 kv_is_batch_header(__u64 header)
{
	return (header & 0xff00ffffffff00ffULL) == KV_MAGIC_REQUEST;
}

/* One request, parsed. */
struct kv_parsed_item {
	__u64 bytes;   /* bytes in the packet; 0: it runs past the end */
	__u64 is_long; /* 1: its key or value is too long for a record */
	__u64 key;
	__u64 value;
};

/* Return the first `bytes` (0-8) of a little-endian word; KV_LOW_BYTES() cannot take 0. Any number is defined. */
static __always_inline __u64 kv_low_bytes(__u64 word, __u64 bytes)
{
	__u64 half = (bytes & 15) * 4; /* a single shift by 64 would be undefined */

	return word & ~(~0ULL << half << half);
}

/*
 * Parse a request of any lengths. `header` is its header word, read once, and `offset` its place in the body. Nearly
 * without branches: the verifier walks what follows a branch once for each way, in each turn of the caller's loop.
 */
static __always_inline void kv_parse_item(const struct kv_item_header *item, __u64 header, __u64 offset,
					  __u32 body_bytes, const void *data_end, struct kv_parsed_item *parsed)
{
	__u64 key_bytes = KV_HEADER_KEY_BYTES(header);
	__u64 value_bytes = KV_HEADER_VALUE_BYTES(header);
	__u64 key_room = KV_ROUNDUP8(key_bytes);
	__u64 key_offset = offset + KV_ITEM_HEADER_BYTES, value_offset = key_offset + key_room;
	__u64 key_is_long = kv_is_below(KV_INLINE_MAX, key_bytes);
	__u64 value_is_long = kv_is_below(KV_INLINE_MAX, value_bytes);
	/* A short value behind a long key stays in the body, too: its place in the packet varies. */
	__u64 value_stays = value_is_long | (key_is_long & kv_is_below(0, value_bytes));
	const __u64 *words = (const __u64 *)(item + 1);
	__u64 first = 0, second = 0;

	parsed->bytes = value_offset - offset + KV_ROUNDUP8(value_bytes);
	if (value_bytes > KV_FRAME_MAX || offset + parsed->bytes > body_bytes) {
		parsed->bytes = 0;
		return;
	}
	if ((void *)(words + 1) <= data_end)
		first = words[0];
	if ((void *)(words + 2) <= data_end)
		second = words[1];
	KV_OPAQUE(key_is_long);
	KV_OPAQUE(value_stays);
	parsed->is_long = key_is_long | value_is_long;
	parsed->key = kv_low_bytes(first, key_bytes);
	parsed->key ^= (parsed->key ^ key_offset) * key_is_long;
	first ^= (first ^ second) * kv_is_below(0, key_bytes); /* the word that a short value is in */
	parsed->value = kv_low_bytes(first, value_bytes);
	parsed->value ^= (parsed->value ^ value_offset) * value_stays;
}

static __always_inline int kv_parse_words(struct xdp_md *ctx, const struct kv_packet *packet,
					  struct kv_dpu_queue *queue, struct kv_request *records, __u32 *opaques);

/*
 * Parse all requests of the packet into records and opaques. Return how many, or a negated drop counter; `*has_body`
 * says whether a record refers to the packet's body. The loop advances a scalar offset: with packet pointers it exceeds
 * the verifier's million instructions.
 */
static __always_inline int kv_parse_requests(struct xdp_md *ctx, const struct kv_packet *packet,
					     struct kv_dpu_queue *queue, struct kv_request *records, __u32 *opaques,
					     __u32 *has_body)
{
	void *data_end = (void *)(long)ctx->data_end;
	__u32 start = packet->header_offset;
	__u32 body_bytes = packet->body_bytes;
	__u64 offset = KV_UNKNOWN_ZERO(queue) & KV_OFFSET_MASK;
	void *body;
	int count;

	*has_body = 0;
	count = kv_parse_words(ctx, packet, queue, records, opaques);
	if (count)
		return count;
	KV_OPAQUE(start);
	start &= KV_VLAN_BYTES;
	body = (void *)(long)ctx->data + start + KV_PACKET_HEADER_BYTES;
	queue->scratch = 0; /* no local: the verifier would walk the rest once with a body and once without */
	KV_KEEP_LOOP
	for (count = 0; count < KV_BATCH_MAX; count++) {
		struct kv_request *record = &records[count];
		struct kv_parsed_item parsed;
		struct kv_item_header *item;
		__u64 header;

		item = body + offset;
		if ((void *)(item + 1) > data_end)
			break;
		header = KV_READ_ONCE(*(__u64 *)item);
		if (kv_is_below(0, offset) & kv_is_batch_header(header))
			return -KV_COUNTER_DROP_SUPER_PACKET;
		record->header = header;
		record->key_hash = item->key_hash;
		opaques[count] = item->opaque;
		kv_parse_item(item, header, offset, body_bytes, data_end, &parsed);
		if (parsed.bytes == 0)
			return -KV_COUNTER_DROP_TRUNCATED;
		record->key = parsed.key;
		record->value = parsed.value;
		queue->scratch |= parsed.is_long;
		/* Mask it here, so that all paths through one iteration end in the same verifier state. */
		offset += parsed.bytes;
		KV_OPAQUE(offset);
		offset &= KV_OFFSET_MASK;
	}
	/* Ignore up to 23 stray bytes behind the last request, as MICA2 does. */
	if (count == KV_BATCH_MAX && offset + KV_ITEM_HEADER_BYTES <= body_bytes)
		return -KV_COUNTER_DROP_BATCH_LENGTH;
	*has_body = KV_READ_ONCE(queue->scratch);
	/*
	 * Hide the count: the verifier knows it at each exit of the loop and would walk the rest once for every count.
	 */
	return KV_UNKNOWN(queue, count);
}

/*
 * Parse the usual batch: all keys have 8 bytes, all values 8 or none. Return how many requests, or 0 for any other
 * batch, which kv_parse_requests() then parses from its start. kv_write_words() is its counterpart.
 */
static __always_inline int kv_parse_words(struct xdp_md *ctx, const struct kv_packet *packet,
					  struct kv_dpu_queue *queue, struct kv_request *records, __u32 *opaques)
{
	void *data_end = (void *)(long)ctx->data_end;
	__u32 start = packet->header_offset;
	__u64 offset = KV_UNKNOWN_ZERO(queue) & KV_OFFSET_MASK;
	void *body;
	__u64 i;

	KV_OPAQUE(start);
	start &= KV_VLAN_BYTES;
	body = (void *)(long)ctx->data + start + KV_PACKET_HEADER_BYTES;
	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX; i++) {
		struct kv_item_header *item = body + offset;
		__u64 *words = (__u64 *)(item + 1);
		__u64 header, lengths;

		if ((void *)words > data_end)
			break;
		header = KV_READ_ONCE(*(__u64 *)item);
		if ((void *)(words + 1) > data_end)
			return 0;
		records[i].header = header;
		records[i].key_hash = item->key_hash;
		opaques[i] = item->opaque;
		records[i].key = words[0];
		records[i].value = 0;
		lengths = header >> 32;
		KV_OPAQUE(lengths);
		offset += KV_ITEM_HEADER_BYTES + 8;
		if (lengths != KV_HEADER(0, 0, 8, 0) >> 32) {
			if (lengths != KV_HEADER(0, 0, 8, 8) >> 32 || (void *)(words + 2) > data_end)
				return 0;
			records[i].value = words[1];
			offset += 8;
		}
		KV_OPAQUE(offset);
		offset &= KV_OFFSET_MASK;
	}
	if (i == KV_BATCH_MAX && offset + KV_ITEM_HEADER_BYTES <= packet->body_bytes)
		return 0;
	return KV_UNKNOWN(queue, i);
}

/*
 * Overwrite all requests of the packet with their rejections, which are never longer. Return how many, or a negated
 * drop counter, by which time some may have been overwritten.
 */
static __always_inline int kv_reject_requests(struct xdp_md *ctx, const struct kv_packet *packet,
					      struct kv_dpu_queue *queue)
{
	void *data_end = (void *)(long)ctx->data_end;
	__u32 start = packet->header_offset;
	__u64 offset = KV_UNKNOWN_ZERO(queue) & KV_OFFSET_MASK;
	__u64 reply_offset = KV_UNKNOWN_ZERO(queue) & KV_OFFSET_MASK;
	void *body;
	__u64 i;

	KV_OPAQUE(start);
	start &= KV_VLAN_BYTES;
	body = (void *)(long)ctx->data + start + KV_PACKET_HEADER_BYTES;
	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX; i++) {
		struct kv_item_header *item = body + offset, *reply = body + reply_offset;
		__u64 header, key_hash, opaque;

		if ((void *)(item + 1) > data_end || (void *)(reply + 1) > data_end)
			break;
		header = KV_READ_ONCE(*(__u64 *)item);
		key_hash = KV_READ_ONCE(item->key_hash);
		opaque = KV_READ_ONCE(item->opaque);
		if (kv_is_below(0, offset) & kv_is_batch_header(header))
			return -KV_COUNTER_DROP_SUPER_PACKET;
		offset += KV_ITEM_HEADER_BYTES + KV_ROUNDUP8(KV_HEADER_KEY_BYTES(header)) +
			  KV_ROUNDUP8(KV_HEADER_VALUE_BYTES(header));
		if (offset > packet->body_bytes)
			return -KV_COUNTER_DROP_TRUNCATED;
		*(__u64 *)reply = KV_HEADER(KV_HEADER_OPERATION(header), KV_REJECTED, 0, 0);
		reply->key_hash = key_hash;
		*(__u64 *)&reply->opaque = opaque;
		reply_offset += KV_ITEM_HEADER_BYTES;
		KV_OPAQUE(offset);
		offset &= KV_OFFSET_MASK;
		KV_OPAQUE(reply_offset);
		reply_offset &= KV_OFFSET_MASK;
	}
	if (i == KV_BATCH_MAX && offset + KV_ITEM_HEADER_BYTES <= packet->body_bytes)
		return -KV_COUNTER_DROP_BATCH_LENGTH;
	return KV_UNKNOWN(queue, i);
}

/* ---- Responses ---- */

/* A finished batch: its requests, which a response repeats in part, and its responses. */
struct kv_finished_batch {
	const struct kv_parked_batch *parked;
	const struct kv_request *requests;
	const __u32 *opaques;
	const struct kv_response *responses;
	const __u8 *values; /* long ones, behind the responses */
};

static __always_inline __u32 kv_write_words(struct xdp_md *ctx, __u32 body_offset, struct kv_dpu_queue *queue,
					    const struct kv_finished_batch *batch);

/* Write the responses behind the packet header. Return the bytes written, or 0 if a response contradicts its length. */
static __always_inline __u32 kv_write_responses(struct xdp_md *ctx, __u32 body_offset, struct kv_dpu_queue *queue,
						const struct kv_finished_batch *batch)
{
	__u32 offset = kv_write_words(ctx, body_offset, queue, batch);
	__u32 i;

	if (offset)
		return offset;
	offset = KV_UNKNOWN_ZERO(queue);
	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX; i++) {
		const struct kv_response *response = &batch->responses[i];
		void *data_end = (void *)(long)ctx->data_end;
		struct kv_item_header *item;
		__u32 value_bytes, value_offset;
		__u64 room;
		__u64 header;

		if (i >= batch->parked->count)
			break;
		header = KV_READ_ONCE(response->header) & KV_RESPONSE_HEADER_MASK;
		value_bytes = header >> 32;
		KV_OPAQUE(offset);
		offset &= KV_OFFSET_MASK;
		item = (void *)(long)ctx->data + body_offset + offset;
		if ((void *)(item + 1) > data_end)
			return 0;
		*(__u64 *)item = header;
		item->key_hash = batch->requests[i].key_hash;
		*(__u64 *)&item->opaque = batch->opaques[i];
		offset += KV_ITEM_HEADER_BYTES;
		if (value_bytes == 0)
			continue;
		if (value_bytes <= KV_INLINE_MAX) {
			__u64 *value = (__u64 *)(item + 1);

			if ((void *)(value + 1) > data_end)
				return 0;
			*value = KV_LOW_BYTES(response->value, value_bytes);
			offset += 8;
			continue;
		}
		room = KV_ROUNDUP8(value_bytes);
		if (room > KV_FRAME_MAX)
			return 0;
		value_offset = KV_READ_ONCE(response->value) & KV_OFFSET_MASK;
		if (bpf_xdp_store_bytes(ctx, body_offset + offset, (void *)(batch->values + value_offset),
					kv_copy_bytes(room, KV_OFFSET_MASK)))
			return 0;
		queue->counters[KV_COUNTER_QP_RESPONSE_BYTES] += room;
		offset += room;
	}
	return offset;
}

/*
 * Write the usual batch, whose values all have 8 bytes or none. Return its length, or 0 for any other batch. Without
 * helper calls and with 64-bit numbers the loop keeps its variables in registers: 40 instructions per response instead
 * of 58.
 */
static __always_inline __u32 kv_write_words(struct xdp_md *ctx, __u32 body_offset, struct kv_dpu_queue *queue,
					    const struct kv_finished_batch *batch)
{
	const struct kv_response *response = batch->responses;
	const struct kv_request *request = batch->requests;
	const __u32 *opaque = batch->opaques;
	void *body = (void *)(long)ctx->data + body_offset;
	void *data_end = (void *)(long)ctx->data_end;
	__u64 offset = KV_UNKNOWN_ZERO(queue);
	__u64 request_count = batch->parked->count;
	__u64 i;

	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX && i < request_count; i++) {
		__u64 header = KV_READ_ONCE(response[i].header) & KV_RESPONSE_HEADER_MASK;
		struct kv_item_header *item;
		__u64 *value;

		KV_OPAQUE(request_count); /* else clang counts down to 0, and Linux before 6.8 finds no bound for i */
		KV_OPAQUE(offset);
		offset &= KV_OFFSET_MASK;
		item = body + offset;
		value = (__u64 *)(item + 1);
		if ((void *)value > data_end)
			return 0;
		*(__u64 *)item = header;
		item->key_hash = request[i].key_hash;
		*(__u64 *)&item->opaque = opaque[i];
		offset += KV_ITEM_HEADER_BYTES;
		header >>= 32;
		KV_OPAQUE(header); /* else clang compares the unshifted word with constants that take a register each */
		if (header == 0)
			continue;
		if (header != KV_INLINE_MAX || (void *)(value + 1) > data_end)
			return 0;
		*value = response[i].value;
		offset += KV_INLINE_MAX;
	}
	return offset;
}

#endif
