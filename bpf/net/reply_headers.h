/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * reply_headers.h - a response's headers: the part known before the engine has answered, and the rest.
 */
#ifndef KV_REPLY_HEADERS_H
#define KV_REPLY_HEADERS_H

#include "abi/dpu_queue.h"
#include "net/headers.h"

/* Return the bytes that the frame must grow by, to have this length. */
static __always_inline int kv_growth(struct xdp_md *ctx, __u32 frame_bytes)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	__u32 frame_bytes_now = data_end - data;

	KV_OPAQUE(frame_bytes_now); /* else "pointer arithmetic on pkt_end prohibited": clang reorders the sum */
	return (int)(frame_bytes - frame_bytes_now);
}

/* Give a frame this length, at its end. Return 0, or an error if there is no room. */
static __always_inline int kv_set_length(struct xdp_md *ctx, __u32 frame_bytes)
{
	int growth = kv_growth(ctx, frame_bytes);

	return growth && bpf_xdp_adjust_tail(ctx, growth);
}

/*
 * Give a frame that becomes a reply this length: at its end, or in front of it if there is no room behind. What the
 * frame contains is lost. Return 0, or an error if there is no room in front either, where it has some 200 bytes.
 */
static __always_inline int kv_set_reply_length(struct xdp_md *ctx, __u32 frame_bytes)
{
	int growth = kv_growth(ctx, frame_bytes);

	if (growth == 0 || bpf_xdp_adjust_tail(ctx, growth) == 0)
		return 0;
	return growth < 0 || bpf_xdp_adjust_head(ctx, -growth);
}

/* Prepare the response: store what is known of its headers before the engine has answered. */
static __always_inline void kv_prepare_reply(const void *data, const struct kv_packet_header *header,
					     struct kv_parked_batch *parked)
{
	const __u16 *source = (const __u16 *)header->ip_source;
	const __u16 *destination = (const __u16 *)header->ip_destination;
	const struct kv_packet_header *eth = data;
	__u32 sum;

	__builtin_memcpy(parked->eth_destination, eth->eth_source, 6);
	__builtin_memcpy(parked->eth_source, eth->eth_destination, 6);
	parked->has_vlan_tag = 0;
	if ((const void *)header != data) {
		const __u16 *tag = data + KV_ETH_BYTES;

		parked->has_vlan_tag = 1;
		parked->vlan_tag = *tag;
	}
	parked->ip_source = *(const __u32 *)header->ip_destination;
	parked->ip_destination = *(const __u32 *)header->ip_source;
	parked->udp_source_port = header->udp_destination_port;
	parked->udp_destination_port = header->udp_source_port;
	sum = (__u32)source[0] + source[1] + destination[0] + destination[1] + bpf_htons(KV_IP_VERSION_IHL << 8) +
	      bpf_htons(KV_IP_TTL << 8 | KV_IP_PROTOCOL_UDP);
	sum = (sum & 0xffff) + (sum >> 16);
	parked->ip_sum = sum + (sum >> 16);
}

/*
 * Write all headers, Ethernet to batch. The caller has checked that `header` and a VLAN tag before it are in the frame.
 */
static __always_inline void kv_write_packet_header(void *data, struct kv_packet_header *header,
						   const struct kv_parked_batch *parked, __u32 wire_bytes)
{
	__u16 ip_bytes = bpf_htons(KV_PACKET_HEADER_BYTES - KV_ETH_BYTES + wire_bytes);
	__u32 sum = (__u32)parked->ip_sum + ip_bytes;

	sum = (sum & 0xffff) + (sum >> 16);
	__builtin_memcpy(data, parked->eth_destination, 12);
	if (parked->has_vlan_tag) {
		__u16 *tag = data + KV_ETH_BYTES - 2;

		tag[0] = bpf_htons(KV_ETHERTYPE_VLAN);
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
	header->udp_checksum = 0; /* 0 means "no checksum" in IPv4 */
	header->magic = KV_MAGIC_RESPONSE;
	header->request_count = parked->count;
	*(__u32 *)header->reserved = 0;
}

#endif
