/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * headers.h - step 1, receive: find the engine that a frame is for, and check all headers before the requests.
 */
#ifndef KV_HEADERS_H
#define KV_HEADERS_H

#include "abi/counters.h"
#include "abi/limits.h"
#include "abi/wire_mica2.h"
#include "base/side.h"

#define KV_OFFSET_MASK 0xfffu /* mask of an offset into a frame */
_Static_assert(KV_FRAME_MAX <= KV_OFFSET_MASK, "offsets are masked to a page");

/* Results of parsing the current frame. */
struct kv_packet {
	__u32 header_offset; /* offset of struct kv_packet_header: 0, or 4 behind a VLAN tag */
	__u32 frame_bytes;
	__u32 body_bytes; /* bytes behind struct kv_packet_header */
	__u32 engine;	  /* number of the engine, from the UDP port */
	__u32 source;	  /* IPv4 address of the sender, network order */
};

/* Returned by kv_find_engine(); kv_check_headers() returns KV_PARSE_OURS or an enum kv_counter, the fault it found. */
enum kv_parse_verdict { KV_PARSE_PASS = -1, KV_PARSE_OURS = -2 };

/* Find the engine that the frame is for, without further checks. Return whether it is ours. */
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
	if (header->ip_fragment & bpf_htons(KV_IP_FRAGMENT_MASK >> 1)) /* only a first fragment has ports */
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
	packet->source = *(__u32 *)header->ip_source;
	packet->header_offset = shift;
	packet->frame_bytes = data_end - data;
	return KV_PARSE_OURS;
}

/*
 * Return the drop counter of a frame over KV_FRAME_MAX. A frame longer than its link's MTU was never on a wire: in
 * generic mode XDP gets packets that the sender's kernel left for a driver to segment (GSO) or that ours merged (GRO).
 */
static __always_inline int kv_drop_of_long(struct xdp_md *ctx, __u32 shift)
{
	__u32 mtu = 0;

	return bpf_check_mtu(ctx, 0, &mtu, -(int)shift, 0) > 0 ? KV_COUNTER_DROP_SUPER_PACKET
							       : KV_COUNTER_DROP_FRAME_LENGTH;
}

/* Return whether an IPv4 address, in network order, is no single host's: 0/8, 127/8, multicast and all above. */
static __always_inline int kv_is_no_host(__u32 address)
{
	__u32 host_order = bpf_ntohl(address);

	return host_order - KV_FIRST_HOST >= KV_FIRST_MULTICAST - KV_FIRST_HOST || host_order >> 24 == KV_LOOPBACK_NET;
}

/*
 * Check that an answer would go to a client: the addresses of a forged frame must not send it to a broadcast, to
 * ourselves, or to another server, whose answer would come back. Return KV_PARSE_OURS, or the drop counter.
 */
static __always_inline int kv_check_addresses(struct xdp_md *ctx, const struct kv_packet *packet,
					      const struct kv_packet_header *header)
{
	const __u64 *macs_place = (void *)(long)ctx->data; /* the destination, and two bytes of the source */
	__u32 destination = *(const __u32 *)header->ip_destination;
	__u64 macs;

	if ((void *)(macs_place + 1) > (void *)(long)ctx->data_end) /* for the verifier: there are all headers */
		return KV_COUNTER_DROP_FRAME_LENGTH;
	macs = *macs_place;
	if (KV_MAC && (macs << 16) != KV_MAC << 16)
		return KV_COUNTER_DROP_FOREIGN_MAC;
	if (macs & KV_MAC_SOURCE_IS_GROUP)
		return KV_COUNTER_DROP_MARTIAN;
	if (kv_is_no_host(packet->source) || packet->source == destination || packet->source == KV_BROADCAST)
		return KV_COUNTER_DROP_MARTIAN;
	if (!KV_ADDRESS && kv_is_no_host(destination))
		return KV_COUNTER_DROP_MARTIAN;
	if (KV_PORT >= KV_CLIENT_PORTS_END && (__u32)bpf_ntohs(header->udp_source_port) - KV_PORT < KV_ENGINES)
		return KV_COUNTER_DROP_MARTIAN;
	return KV_PARSE_OURS;
}

/* Check all headers of a frame that is ours. Return KV_PARSE_OURS, or the drop counter of the fault found. */
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
	return kv_check_addresses(ctx, packet, header);
}

#endif
