/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * limits.h - limits of a request, a packet and a server.
 */
#ifndef KV_ABI_LIMITS_H
#define KV_ABI_LIMITS_H

enum kv_limit {
	KV_KEY_MAX = 255,    /* bytes in a key; the wire gives the length one byte */
	KV_FRAME_MAX = 3520, /* bytes in an Ethernet frame with a batch: a page less the part that XDP reserves */
	KV_ITEM_MAX = 3440,  /* bytes of roundup8(key) + roundup8(value) that a frame of that size can carry */
	KV_VALUE_MAX = 3432, /* bytes in a value: KV_ITEM_MAX less the shortest key */
	KV_BATCH_MAX = 64,   /* requests in one batch, that is, in one packet */
	KV_ENGINES_MAX = 16, /* processing engines, each with a UDP port of its own */
	KV_QUEUES_MAX = 64,  /* receive queues of an interface that AF_XDP serves */
	KV_CPUS_MAX = 256    /* cores that may run the communication engine */
};

#endif
