/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * wire_mica2.h - the wire: the datagram protocol of public MICA2, exactly. Its operation codes and results are in
 * operation_table.h.
 */
#ifndef KV_ABI_WIRE_MICA2_H
#define KV_ABI_WIRE_MICA2_H

#include "abi/operation_table.h"
#include "abi/words.h"

enum kv_magic { KV_MAGIC_REQUEST = 0x78, KV_MAGIC_RESPONSE = 0x79 };

enum kv_frame_constant {
	KV_ETHERTYPE_IPV4 = 0x0800,
	KV_ETHERTYPE_VLAN = 0x8100,
	KV_IP_VERSION_IHL = 0x45,
	KV_IP_TTL = 64,
	KV_IP_FRAGMENT_MASK = 0x3fff, /* more-fragments and the offset, not don't-fragment */
	KV_IP_PROTOCOL_UDP = 17,
	KV_FIRST_HOST = 0x01000000, /* 1.0.0.0: below are addresses of this network (RFC 1122) */
	KV_LOOPBACK_NET = 127,
	KV_CLIENT_PORTS_END = 1024 /* MICA2 numbers the ports of its clients and servers from 0: those may be equal */
};

/* All headers before the requests: Ethernet, IPv4, UDP, batch. Unaligned, because an Ethernet header has 14 bytes. */
struct kv_packet_header {
	__u8 eth_destination[6];    /*  0 */
	__u8 eth_source[6];	    /*  6 */
	__u16 eth_type;		    /* 12, network order */
	__u8 ip_version_ihl;	    /* 14 */
	__u8 ip_tos;		    /* 15 */
	__u16 ip_total_length;	    /* 16, network order */
	__u16 ip_id;		    /* 18 */
	__u16 ip_fragment;	    /* 20, network order */
	__u8 ip_ttl;		    /* 22 */
	__u8 ip_protocol;	    /* 23 */
	__u16 ip_checksum;	    /* 24 */
	__u8 ip_source[4];	    /* 26 */
	__u8 ip_destination[4];	    /* 30 */
	__u16 udp_source_port;	    /* 34, network order */
	__u16 udp_destination_port; /* 36, network order */
	__u16 udp_length;	    /* 38, network order */
	__u16 udp_checksum;	    /* 40 */
	__u8 magic;		    /* 42, enum kv_magic */
	__u8 request_count;	    /* 43, informative: readers parse by length */
	__u8 reserved[4];	    /* 44, zero in responses */
};
KV_ASSERT(sizeof(struct kv_packet_header) == 48);

/*
 * Before each key and value. The first eight bytes, read as one word, are called the "header word"; the queue pair's
 * records begin with the same word.
 */
struct kv_item_header {
	__u8 operation;	 /*  0, enum kv_operation */
	__u8 result;	 /*  1, enum kv_result; 0 in requests */
	__u16 reserved0; /*  2, zero */
	__u32 kv_length; /*  4, value length in the low 24 bits, key length in the high 8 */
	__u64 key_hash;	 /*  8, CityHash64 of the key, computed by the client */
	__u32 opaque;	 /* 16, the client's own, echoed */
	__u32 reserved1; /* 20, zero in responses */
};
KV_ASSERT(sizeof(struct kv_item_header) == 24);

#ifndef KV_ABI_CDEF

#define KV_ITEM_HEADER_BYTES ((__u32)sizeof(struct kv_item_header))
#define KV_PACKET_HEADER_BYTES ((__u32)sizeof(struct kv_packet_header))
#define KV_VLAN_BYTES 4
#define KV_ETH_BYTES 14
#define KV_IP_BYTES 20
#define KV_UDP_BYTES 8
#define KV_FIRST_MULTICAST 0xe0000000u /* 224.0.0.0: from here on an address is no single host's */
/* Bit that says that the Ethernet source is a group, in the first eight bytes of a frame as one word. */
#define KV_MAC_SOURCE_IS_GROUP (1ULL << 48)

#define KV_HEADER(operation, result, key_bytes, value_bytes) \
	((__u64)(operation) | (__u64)(result) << 8 | (__u64)(value_bytes) << 32 | (__u64)(key_bytes) << 56)
#define KV_HEADER_OPERATION(header) ((__u32)((header)&0xff))
#define KV_HEADER_RESULT(header) ((__u32)((header) >> 8 & 0xff))
#define KV_HEADER_VALUE_BYTES(header) ((__u32)((header) >> 32 & 0xffffff))
#define KV_HEADER_KEY_BYTES(header) ((__u32)((header) >> 56))

/* Bits of a reply's header word that may be set: operation, result, value length. The other fields are 0. */
#define KV_RESPONSE_HEADER_MASK 0x00ffffff0000ffffULL

#endif /* KV_ABI_CDEF */

#endif
