/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* dpdk.h - one queue of a DPDK device. Not linked in: dpukv_xdp/native/dpdk.py loads it where DPDK is installed. */
#ifndef KV_DPDK_H
#define KV_DPDK_H

#include "port/frames.h"

enum kv_dpdk_limit {
	KV_DPDK_REASON_BYTES = 200,
	KV_DPDK_HELD = 1024 /* frames with each engine besides those in the device; the next ones wait there */
};

struct kv_dpdk_stats {
	uint64_t received;   /* frames, over all queues of the device */
	uint64_t sent;	     /* likewise */
	uint64_t rx_missed;  /* frames dropped because they were not taken in time, as the driver reports it */
	uint64_t rx_errors;  /* frames that the driver dropped as broken */
	uint64_t rx_no_room; /* frames dropped because no buffer was free to receive into */
	uint64_t tx_errors;  /* frames that the driver failed to send */
	uint64_t tx_invalid; /* answers that were empty, or longer than their buffer */
	uint64_t tx_dropped; /* answers that the driver did not take: its ring stayed full */
	uint64_t buffers;
	uint64_t buffers_busy;
};

struct kv_dpdk;

/* The functions of the shared object, whose only symbol is kv_dpdk_calls. */
struct kv_dpdk_calls {
	const struct kv_port *port; /* a struct kv_dpdk_queue is the source */
	/* Start the EAL, once per process. Return 0 or a negative errno. */
	int (*start)(int count, char **arguments);
	/* Begin with a device: `bus` and `name` are DPDK's, `options` the driver's, each queue has `descriptors` to
	 * receive and as many to send, and buffers for `held` frames more. NULL and what failed in `reason`
	 * (KV_DPDK_REASON_BYTES). */
	struct kv_dpdk *(*open)(const char *bus, const char *name, const char *options, uint32_t queues,
				uint32_t descriptors, uint32_t held, uint32_t mtu, char *reason);
	/* Return the source for one queue of the device. One thread at a time may use it. */
	void *(*queue)(struct kv_dpdk *device, uint32_t queue);
	void (*get_stats)(struct kv_dpdk *device, struct kv_dpdk_stats *stats);
	void (*close)(struct kv_dpdk *device);
};

#endif
