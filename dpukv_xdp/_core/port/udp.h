/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* udp.h - a UDP socket of the kernel for one endpoint. */
#ifndef KV_UDP_H
#define KV_UDP_H

#include "port/frames.h"

struct kv_udp_stats {
	uint64_t received;   /* datagrams */
	uint64_t sent;	     /* likewise */
	uint64_t rx_dropped; /* datagrams dropped by the kernel because its queue was full */
	uint64_t rx_errors;  /* system calls that failed to receive */
	uint64_t tx_invalid; /* answers that were empty, or to port 0 */
	uint64_t tx_full;    /* answers for which the socket had no room */
	uint64_t tx_refused; /* answers that the kernel refused for another reason: no route, a filter */
	uint32_t fd;
	uint32_t chunks;      /* places for a frame */
	uint32_t chunks_busy; /* chunks held by the caller */
	uint32_t padding;
};

struct kv_udp;

/* A socket bound to an address (network order) and a port (host order) that lets about `datagrams` wait. Its frames
 * have a packet header that is made up, without Ethernet addresses: the kernel has taken the real one off, and puts its
 * own on answers. NULL and errno on failure: EADDRINUSE somebody else has the port, EADDRNOTAVAIL no interface here has
 * the address. One thread at a time may use it; the statistics may be read from any. */
struct kv_udp *kv_udp_open(uint32_t address, uint32_t port, uint32_t datagrams);
void kv_udp_close(struct kv_udp *udp);
void kv_udp_get_stats(struct kv_udp *udp, struct kv_udp_stats *stats);
/* What struct kv_communicator takes as its port; a struct kv_udp is the source. */
const struct kv_port *kv_udp_port(void);

#endif
