/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * parse.h - step 1, receive and parse: from a frame to the batch's records in the request queue.
 *
 * Two passes would read the packet twice, so kv_parse_requests() writes records straight into the slot that the batch
 * will be published from; nothing is visible to the engine before send_request_queue_to_host().
 */
#ifndef KV_PARSE_H
#define KV_PARSE_H

#include "side.h"

#define KV_OFFSET_MASK 0xfffu /* any offset into a frame */
_Static_assert(KV_FRAME_MAX <= KV_OFFSET_MASK, "offsets are masked to a page");

/* What parsing learnt about the frame at hand. */
struct kv_packet {
	__u32 header_offset; /* of struct kv_packet_header: 0, or 4 behind a VLAN tag */
	__u32 frame_bytes;
	__u32 body_bytes; /* after struct kv_packet_header */
	__u32 engine;	  /* from the UDP port */
};

/* kv_find_engine() says: not ours, or ours; kv_check_headers() adds the counter that names what is wrong. */
enum kv_parse_verdict { KV_PARSE_PASS = -1, KV_PARSE_OURS = -2 };

/* Whose frame it is, and no more than that: "the NIC passes packets". */
static __always_inline int kv_find_engine(struct xdp_md *ctx, struct kv_packet *packet)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct kv_packet_header *header = data;
	__u32 shift = 0;
	__u16 *udp_ports;
	__u32 port_offset;

	if (data + offsetof(struct kv_packet_header, udp_length) + KV_VLAN_BYTES > data_end)
		return KV_PARSE_PASS;
	if (header->eth_type == bpf_htons(KV_ETHERTYPE_VLAN))
		shift = KV_VLAN_BYTES;
	KV_OPAQUE(shift);
	shift &= KV_VLAN_BYTES;
	header = data + shift;
	if (header->eth_type != bpf_htons(KV_ETHERTYPE_IPV4) || header->ip_protocol != KV_IP_PROTOCOL_UDP)
		return KV_PARSE_PASS;
	if (KV_ADDRESS && *(__u32 *)header->ip_destination != KV_ADDRESS)
		return KV_PARSE_PASS;
	if (header->ip_fragment & bpf_htons(KV_IP_FRAGMENT_MASK >> 1)) /* not the first fragment: no ports in it */
		return KV_PARSE_PASS;

	port_offset = shift + KV_ETH_BYTES + (header->ip_version_ihl & 0xf) * 4;
	KV_OPAQUE(port_offset);
	port_offset &= 0x7f;
	udp_ports = data + port_offset;
	if ((void *)(udp_ports + 2) > data_end)
		return KV_PARSE_PASS;
	packet->engine = (__u32)bpf_ntohs(udp_ports[1]) - KV_PORT;
	if (packet->engine >= KV_ENGINES)
		return KV_PARSE_PASS;
	packet->header_offset = shift;
	packet->frame_bytes = data_end - data;
	return KV_PARSE_OURS;
}

/*
 * Return the counter of a frame over KV_FRAME_MAX. One that is longer than its link's MTU was never on a wire: generic
 * XDP gets what the sender's kernel has left in one piece for a driver to segment (GSO), or ours has merged (GRO).
 */
static __always_inline int kv_drop_of_long(struct xdp_md *ctx, __u32 shift)
{
	__u32 mtu = 0;

	return bpf_check_mtu(ctx, 0, &mtu, -(int)shift, 0) > 0 ? KV_COUNTER_DROP_SUPER_PACKET
							       : KV_COUNTER_DROP_FRAME_LENGTH;
}

/*
 * Whether an item's header word is the next datagram's batch header and first operation, as in such a packet that is
 * no longer than a frame. As an item it would have an operation that there is not, and mostly be truncated.
 */
static __always_inline int kv_is_batch_header(__u64 header)
{
	return (header & 0xff00ffffffff00ffULL) == KV_MAGIC_REQUEST;
}

/* Everything before the requests, of a frame that kv_find_engine() found to be ours. */
static __always_inline int kv_check_headers(struct xdp_md *ctx, struct kv_packet *packet)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct kv_packet_header *header;
	__u32 shift = packet->header_offset;

	KV_OPAQUE(shift);
	shift &= KV_VLAN_BYTES;
	header = data + shift;
	if ((void *)&header->udp_length > data_end)
		return KV_COUNTER_DROP_FRAME_LENGTH;
	if (header->ip_version_ihl != KV_IP_VERSION_IHL)
		return KV_COUNTER_DROP_IP_HEADER;
	if (header->ip_fragment & bpf_htons(KV_IP_FRAGMENT_MASK))
		return KV_COUNTER_DROP_FRAGMENT;
	if (packet->frame_bytes > KV_FRAME_MAX)
		return kv_drop_of_long(ctx, shift);
	if ((void *)(header + 1) + KV_ITEM_HEADER_BYTES > data_end)
		return KV_COUNTER_DROP_FRAME_LENGTH;
	if (bpf_ntohs(header->ip_total_length) != packet->frame_bytes - shift - KV_ETH_BYTES)
		return KV_COUNTER_DROP_IP_HEADER;
	if (bpf_ntohs(header->udp_length) != packet->frame_bytes - shift - KV_ETH_BYTES - KV_IP_BYTES)
		return KV_COUNTER_DROP_UDP_LENGTH;
	if (header->magic != KV_MAGIC_REQUEST)
		return KV_COUNTER_DROP_MAGIC;
	packet->body_bytes = packet->frame_bytes - shift - KV_PACKET_HEADER_BYTES;
	return KV_PARSE_OURS;
}

/* One request on its way from the packet into a record. */
struct kv_parsed_item {
	__u32 bytes;   /* that it takes in the packet; 0 = runs past the end */
	__u32 payload; /* 1 if its key or value is too long for a record */
	__u64 key;
	__u64 value;
};

/* Any lengths, as `header` says: the item's, read once. `offset` is its place in the body. */
static __always_inline void kv_parse_item(struct kv_item_header *item, __u64 header, __u32 offset, __u32 body_bytes,
					  void *data_end, struct kv_parsed_item *parsed)
{
	__u32 key_bytes = KV_HEADER_KEY_BYTES(header);
	__u32 value_bytes = KV_HEADER_VALUE_BYTES(header);
	__u32 key_room = KV_ROUNDUP8(key_bytes);
	__u64 *words = (__u64 *)(item + 1);

	parsed->key = 0;
	parsed->value = 0;
	parsed->payload = 0;
	parsed->bytes = KV_ITEM_HEADER_BYTES + key_room + KV_ROUNDUP8(value_bytes);
	if (value_bytes > KV_FRAME_MAX || offset + parsed->bytes > body_bytes) {
		parsed->bytes = 0;
		return;
	}
	if (key_bytes > KV_INLINE_MAX) {
		parsed->key = offset + KV_ITEM_HEADER_BYTES;
		parsed->payload = 1;
	} else if (key_bytes && (void *)(words + 1) <= data_end) {
		parsed->key = KV_LOW_BYTES(words[0], key_bytes);
	}
	if (value_bytes > KV_INLINE_MAX) {
		parsed->value = offset + KV_ITEM_HEADER_BYTES + key_room;
		parsed->payload = 1;
	} else if (value_bytes && key_bytes > KV_INLINE_MAX) {
		/* A short value behind a long key: its place varies, and the engine finds it in the payload. */
		parsed->value = offset + KV_ITEM_HEADER_BYTES + key_room;
	} else if (value_bytes && key_room == 0 && (void *)(words + 1) <= data_end) {
		parsed->value = KV_LOW_BYTES(words[0], value_bytes);
	} else if (value_bytes && (void *)(words + 2) <= data_end) {
		parsed->value = KV_LOW_BYTES(words[1], value_bytes);
	}
}

static __always_inline int kv_parse_words(struct xdp_md *ctx, const struct kv_packet *packet,
					  struct kv_dpu_queue *queue, struct kv_request_slot *slot,
					  struct kv_parked_batch *parked);

/*
 * All requests of the packet into the records of `slot`. Returns how many, or a negated drop counter.
 * Requests advance by a scalar offset: with packet pointers the same loop exceeds the verifier's million instructions.
 */
static __always_inline int kv_parse_requests(struct xdp_md *ctx, const struct kv_packet *packet,
					     struct kv_dpu_queue *queue, struct kv_request_slot *slot,
					     struct kv_parked_batch *parked, __u32 *has_payload)
{
	void *data_end = (void *)(long)ctx->data_end;
	__u32 start = packet->header_offset;
	__u32 body_bytes = packet->body_bytes;
	__u32 offset = KV_UNKNOWN_ZERO(queue) & KV_OFFSET_MASK;
	void *body;
	int count;

	*has_payload = 0;
	count = KV_PROCESS_HERE ? 0 : kv_parse_words(ctx, packet, queue, slot, parked);
	if (count)
		return count;
	KV_OPAQUE(start);
	start &= KV_VLAN_BYTES;
	body = (void *)(long)ctx->data + start + KV_PACKET_HEADER_BYTES;
	queue->scratch = 0; /* not a local: the verifier would follow "has a payload" and "has none" apart */
	KV_KEEP_LOOP
	for (count = 0; count < KV_BATCH_MAX; count++) {
		struct kv_request *record = &slot->records[count];
		struct kv_parsed_item parsed;
		struct kv_item_header *item;
		__u64 *words;
		__u64 header;

		item = body + offset;
		words = (__u64 *)(item + 1);
		if ((void *)(item + 1) > data_end)
			break;
		header = KV_READ_ONCE(*(__u64 *)item);
		if (header >> 32 == KV_HEADER(0, 0, 8, 0) >> 32 && (void *)(words + 1) <= data_end) {
			parsed.key = words[0];
			parsed.value = 0;
			parsed.bytes = KV_ITEM_HEADER_BYTES + 8;
		} else if (header >> 32 == KV_HEADER(0, 0, 8, 8) >> 32 && (void *)(words + 2) <= data_end) {
			parsed.key = words[0];
			parsed.value = words[1];
			parsed.bytes = KV_ITEM_HEADER_BYTES + 16;
		} else {
			if (offset && kv_is_batch_header(header))
				return -KV_COUNTER_DROP_SUPER_PACKET;
			kv_parse_item(item, header, offset, body_bytes, data_end, &parsed);
			if (parsed.bytes == 0)
				return -KV_COUNTER_DROP_TRUNCATED;
			if (parsed.payload)
				queue->scratch = 1;
		}
		record->header = header;
		record->key_hash = item->key_hash;
		record->key = parsed.key;
		record->value = parsed.value;
		parked->opaque[count] = item->opaque;
		/* Masked here, so that all ways through a turn end alike for the verifier. */
		offset += parsed.bytes;
		KV_OPAQUE(offset);
		offset &= KV_OFFSET_MASK;
	}
	/* Up to 23 stray bytes behind the last request are ignored, as MICA2 does. */
	if (count == KV_BATCH_MAX && offset + KV_ITEM_HEADER_BYTES <= body_bytes)
		return -KV_COUNTER_DROP_BATCH_LENGTH;
	*has_payload = KV_READ_ONCE(queue->scratch);
	/* The loop's exits know their count, and the verifier would follow all that comes behind for each of them. */
	return KV_UNKNOWN(queue, count);
}

/*
 * The usual batch, whose keys are all 8 bytes, with values of 8 bytes or none: how many requests, or 0 if it is another
 * one, which kv_parse_requests() looks at from its start. See kv_write_words() in reply.h.
 */
static __always_inline int kv_parse_words(struct xdp_md *ctx, const struct kv_packet *packet,
					  struct kv_dpu_queue *queue, struct kv_request_slot *slot,
					  struct kv_parked_batch *parked)
{
	void *data_end = (void *)(long)ctx->data_end;
	struct kv_request *record = slot->records;
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
		record[i].header = header;
		record[i].key_hash = item->key_hash;
		parked->opaque[i] = item->opaque;
		record[i].key = words[0];
		record[i].value = 0;
		lengths = header >> 32;
		KV_OPAQUE(lengths);
		offset += KV_ITEM_HEADER_BYTES + 8;
		if (lengths != KV_HEADER(0, 0, 8, 0) >> 32) {
			if (lengths != KV_HEADER(0, 0, 8, 8) >> 32 || (void *)(words + 2) > data_end)
				return 0;
			record[i].value = words[1];
			offset += 8;
		}
		KV_OPAQUE(offset);
		offset &= KV_OFFSET_MASK;
	}
	if (i == KV_BATCH_MAX && offset + KV_ITEM_HEADER_BYTES <= packet->body_bytes)
		return 0;
	return KV_UNKNOWN(queue, i);
}

#endif
