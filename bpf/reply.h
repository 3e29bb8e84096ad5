/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * reply.h - step 4, respond: prepare what needs no engine, then turn a frame into the oldest finished response.
 */
#ifndef KV_REPLY_H
#define KV_REPLY_H

#include "parse.h"
#include "queue.h"

enum kv_reply_verdict { KV_TAIL_REFUSED = -1 };

static __always_inline int kv_set_length(struct xdp_md *ctx, __u32 frame_bytes)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	__u32 frame_bytes_now = data_end - data;
	int growth;

	KV_OPAQUE(frame_bytes_now); /* else "pointer arithmetic on pkt_end prohibited": clang reorders the sum */
	growth = (int)(frame_bytes - frame_bytes_now);
	return growth && bpf_xdp_adjust_tail(ctx, growth);
}

/* "Prepare response": all that can be said of it before the engine has answered. */
static __always_inline void kv_prepare_reply(const void *data, const struct kv_packet_header *header,
					     __u32 request_count, struct kv_parked_batch *parked)
{
	const __u16 *source = (const __u16 *)header->ip_source;
	const __u16 *destination = (const __u16 *)header->ip_destination;
	const struct kv_packet_header *eth = data;

	__builtin_memcpy(parked->eth_destination, eth->eth_source, 6);
	__builtin_memcpy(parked->eth_source, eth->eth_destination, 6);
	parked->vlan_type = 0;
	if ((const void *)header != data) {
		const __u16 *tag = data + KV_ETH_BYTES - 2;

		parked->vlan_type = tag[0];
		parked->vlan_tag = tag[1];
	}
	parked->ip_source = *(const __u32 *)header->ip_destination;
	parked->ip_destination = *(const __u32 *)header->ip_source;
	parked->udp_source_port = header->udp_destination_port;
	parked->udp_destination_port = header->udp_source_port;
	parked->ip_checksum_base = (__u32)source[0] + source[1] + destination[0] + destination[1] +
				   bpf_htons(KV_IP_VERSION_IHL << 8) + bpf_htons(KV_IP_TTL << 8 | KV_IP_PROTOCOL_UDP);
	parked->request_count = request_count;
}

/* Ethernet to batch header, complete. `header` and what lies before it (a VLAN tag) are inside the frame. */
static __always_inline void kv_write_packet_header(void *data, struct kv_packet_header *header,
						   const struct kv_parked_batch *parked, __u32 wire_bytes)
{
	__u16 ip_bytes = bpf_htons(KV_PACKET_HEADER_BYTES - KV_ETH_BYTES + wire_bytes);
	__u32 sum = parked->ip_checksum_base + ip_bytes;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	__builtin_memcpy(data, parked->eth_destination, 12);
	if (parked->vlan_type) {
		__u16 *tag = data + KV_ETH_BYTES - 2;

		tag[0] = parked->vlan_type;
		tag[1] = parked->vlan_tag;
	}
	header->eth_type = bpf_htons(KV_ETHERTYPE_IPV4);
	header->ip_version_ihl = KV_IP_VERSION_IHL;
	header->ip_tos = 0;
	header->ip_total_length = ip_bytes;
	header->ip_id = 0;
	header->ip_fragment = 0;
	header->ip_ttl = KV_IP_TTL;
	header->ip_protocol = KV_IP_PROTOCOL_UDP;
	header->ip_checksum = ~sum;
	*(__u32 *)header->ip_source = parked->ip_source;
	*(__u32 *)header->ip_destination = parked->ip_destination;
	header->udp_source_port = parked->udp_source_port;
	header->udp_destination_port = parked->udp_destination_port;
	header->udp_length = bpf_htons(KV_PACKET_HEADER_BYTES - KV_ETH_BYTES - KV_IP_BYTES + wire_bytes);
	header->udp_checksum = 0; /* legal in IPv4: "none" */
	header->magic = KV_MAGIC_RESPONSE;
	header->request_count = parked->request_count;
	*(__u32 *)header->reserved = 0;
}

static __always_inline __u32 kv_write_words(struct xdp_md *ctx, __u32 body_offset, struct kv_dpu_queue *queue,
					    const struct kv_queue_pair *pair, __u32 slot);

/* The responses behind the packet header. Returns the bytes written, or 0 if they break their own lengths. */
static __always_inline __u32 kv_write_responses(struct xdp_md *ctx, __u32 body_offset, struct kv_dpu_queue *queue,
						const struct kv_queue_pair *pair, __u32 slot)
{
	const struct kv_parked_batch *parked = &queue->parked[slot];
	__u32 offset = KV_PROCESS_HERE ? 0 : kv_write_words(ctx, body_offset, queue, pair, slot);
	__u32 i;

	if (offset)
		return offset;
	offset = KV_UNKNOWN_ZERO(queue);
	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX; i++) {
		const struct kv_response *response = &pair->responses[slot].records[i];
		void *data_end = (void *)(long)ctx->data_end;
		struct kv_item_header *item;
		__u32 value_bytes, payload_offset;
		__u64 room;
		__u64 header;

		if (i >= parked->request_count)
			break;
		header = KV_READ_ONCE(response->header) & KV_RESPONSE_HEADER_MASK;
		value_bytes = header >> 32;
		KV_OPAQUE(offset);
		offset &= KV_OFFSET_MASK;
		item = (void *)(long)ctx->data + body_offset + offset;
		if ((void *)(item + 1) > data_end)
			return 0;
		*(__u64 *)item = header;
		item->key_hash = pair->requests[slot].records[i].key_hash;
		*(__u64 *)&item->opaque = parked->opaque[i];
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
		payload_offset = KV_READ_ONCE(response->value) & KV_OFFSET_MASK;
		if (bpf_xdp_store_bytes(ctx, body_offset + offset,
					(void *)&pair->responses[slot].payload[payload_offset],
					kv_copy_bytes(room, KV_OFFSET_MASK)))
			return 0;
		queue->counters[KV_COUNTER_QP_RESPONSE_BYTES] += room;
		offset += room;
	}
	return offset;
}

/*
 * The usual batch, whose values are all 8 bytes or none: its length, or 0 if it is another one. Without a call, and
 * with numbers of a register's width, the loop has most of what it needs in registers: 40 instructions a response, and
 * not 58.
 */
static __always_inline __u32 kv_write_words(struct xdp_md *ctx, __u32 body_offset, struct kv_dpu_queue *queue,
					    const struct kv_queue_pair *pair, __u32 slot)
{
	const struct kv_parked_batch *parked = &queue->parked[slot];
	const struct kv_response *response = pair->responses[slot].records;
	const struct kv_request *request = pair->requests[slot].records;
	void *body = (void *)(long)ctx->data + body_offset;
	void *data_end = (void *)(long)ctx->data_end;
	__u64 offset = KV_UNKNOWN_ZERO(queue);
	__u64 request_count = parked->request_count;
	__u64 i;

	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX && i < request_count; i++) {
		__u64 header = KV_READ_ONCE(response[i].header) & KV_RESPONSE_HEADER_MASK;
		struct kv_item_header *item;
		__u64 *value;

		KV_OPAQUE(request_count); /* else clang counts down to 0, where Linux before 6.8 sees no bound of i */
		KV_OPAQUE(offset);
		offset &= KV_OFFSET_MASK;
		item = body + offset;
		value = (__u64 *)(item + 1);
		if ((void *)value > data_end)
			return 0;
		*(__u64 *)item = header;
		item->key_hash = request[i].key_hash;
		*(__u64 *)&item->opaque = parked->opaque[i];
		offset += KV_ITEM_HEADER_BYTES;
		header >>= 32;
		KV_OPAQUE(header); /* else compared unshifted, with constants that take a register and a load each */
		if (header == 0)
			continue;
		if (header != KV_INLINE_MAX || (void *)(value + 1) > data_end)
			return 0;
		*value = response[i].value;
		offset += KV_INLINE_MAX;
	}
	return offset;
}

/*
 * Turn the frame into the response in `slot`. Returns the XDP verdict: XDP_TX, or XDP_DROP with the reason counted.
 * When the frame cannot grow to the response's length that is KV_TAIL_REFUSED, and the response stays.
 */
static __always_inline int kv_write_reply(struct xdp_md *ctx, struct kv_queue_pair *pair, struct kv_dpu_queue *queue,
					  __u32 slot)
{
	const struct kv_parked_batch *parked = &queue->parked[slot];
	__u32 wire_bytes = KV_READ_ONCE(pair->responses[slot].wire_bytes);
	__u32 shift = parked->vlan_type ? KV_VLAN_BYTES : 0;
	__u32 frame_bytes, request_count, written_bytes;
	void *data, *data_end;

	frame_bytes = shift + KV_PACKET_HEADER_BYTES + wire_bytes;
	if (frame_bytes > KV_FRAME_MAX)
		goto bad_response;
	if (kv_set_length(ctx, frame_bytes)) {
		queue->counters[KV_COUNTER_TAIL_REFUSED]++;
		return KV_TAIL_REFUSED;
	}

	KV_OPAQUE(shift);
	shift &= KV_VLAN_BYTES;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	if (data + KV_VLAN_BYTES + KV_PACKET_HEADER_BYTES > data_end)
		goto bad_response;
	kv_write_packet_header(data, data + shift, parked, wire_bytes);
	written_bytes = kv_write_responses(ctx, shift + KV_PACKET_HEADER_BYTES, queue, pair, slot);
	if (written_bytes == 0 || written_bytes != wire_bytes)
		goto bad_response;

	request_count = parked->request_count;
	queue->counters[KV_COUNTER_FRAMES_SENT]++;
	queue->counters[KV_COUNTER_RESPONSES_SENT] += request_count;
	queue->counters[KV_COUNTER_BYTES_SENT] += frame_bytes;
	queue->counters[KV_COUNTER_QP_RESPONSE_BYTES] += request_count * sizeof(struct kv_response) + 1;
	return XDP_TX;

bad_response:
	queue->counters[KV_COUNTER_DROP_BAD_RESPONSE]++;
	return XDP_DROP;
}

/* The frame becomes the oldest finished response, whose slot is free then. */
static __always_inline int kv_reply_with_oldest(struct xdp_md *ctx, struct kv_queue_pair *pair,
						struct kv_dpu_queue *queue)
{
	int verdict = kv_write_reply(ctx, pair, queue, queue->answered & KV_SLOT_MASK);

	if (verdict == KV_TAIL_REFUSED) /* the sender has frames that can */
		return XDP_DROP;
	kv_release_oldest(pair, queue);
	return verdict;
}

#endif
