// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * dpdk.c - the queues of one DPDK device as sources of frames for the host's communication engine.
 *
 * It is a shared object of its own, which dpukv_xdp/native/dpdk.py builds and loads where DPDK is installed; the native
 * core does not depend on it. Devices can be opened and closed repeatedly; the EAL stays, because a process can start
 * it only once.
 *
 * Each queue has a pool of its own whose ring has one producer and one consumer: the host core that polls the queue is
 * not one of the EAL's threads, so that a shared pool would cost two atomic operations per frame.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "port/dpdk.h"

#define KV_DPDK_BURST 32u
#define KV_DPDK_ROOM_BYTES 4096u /* bytes of a buffer behind its headroom */
#define KV_DPDK_NAME_BYTES 64
/* Calls in a row that send nothing before a flush drops the remaining frames. */
#define KV_STUCK_TRIES 32
_Static_assert(KV_FRAME_MAX + 4 < KV_DPDK_ROOM_BYTES, "a frame and its VLAN tag are one buffer");

struct kv_dpdk_queue {
	uint16_t port;
	uint16_t number;
	uint32_t queued;
	struct rte_mbuf *sending[KV_DPDK_BURST];
	struct rte_mempool *pool;
	uint64_t tx_invalid;
	uint64_t tx_dropped;
} __rte_cache_aligned;

struct kv_dpdk {
	char bus[KV_DPDK_NAME_BYTES];
	char name[KV_DPDK_NAME_BYTES];
	uint16_t port;
	uint32_t queue_count;
	int is_plugged;
	int is_started;
	struct kv_dpdk_queue queues[KV_QUEUES_MAX];
};

/* ---- The port ---- */

static void kv_dpdk_flush(void *source);
static void kv_dpdk_release(void *source, const struct kv_frame *frame);

static uint32_t kv_dpdk_receive(void *source, struct kv_frame *frames, uint32_t room)
{
	struct kv_dpdk_queue *queue = source;
	struct rte_mbuf *received[KV_DPDK_BURST];
	uint16_t count = rte_eth_rx_burst(queue->port, queue->number, received,
					  (uint16_t)(room < KV_DPDK_BURST ? room : KV_DPDK_BURST));

	for (uint16_t i = 0; i < count; i++) {
		/* The kernel's packet socket has removed the tag, and DPDK's driver reports it beside the frame. */
		if (unlikely(received[i]->ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED))
			rte_vlan_insert(&received[i]);
		frames[i] = (struct kv_frame){
			.data = rte_pktmbuf_mtod(received[i], uint8_t *),
			.reply = rte_pktmbuf_mtod(received[i], uint8_t *),
			.bytes = rte_pktmbuf_data_len(received[i]),
			.room = (uint32_t)(received[i]->buf_len - received[i]->data_off),
			.tag = (uint64_t)(uintptr_t)received[i],
		};
		rte_prefetch0(frames[i].data);
	}
	return count;
}

static void kv_dpdk_send(void *source, const struct kv_frame *frame)
{
	struct kv_dpdk_queue *queue = source;
	struct rte_mbuf *buffer = (struct rte_mbuf *)(uintptr_t)frame->tag;

	if (unlikely(frame->bytes == 0 || frame->bytes > frame->room)) {
		queue->tx_invalid++;
		rte_pktmbuf_free(buffer);
		return;
	}
	buffer->data_len = (uint16_t)frame->bytes;
	buffer->pkt_len = frame->bytes;
	buffer->ol_flags = 0;
	queue->sending[queue->queued++] = buffer;
	if (queue->queued == KV_DPDK_BURST)
		kv_dpdk_flush(queue);
}

static void kv_dpdk_release(void *source, const struct kv_frame *frame)
{
	(void)source;
	rte_pktmbuf_free((struct rte_mbuf *)(uintptr_t)frame->tag);
}

static void kv_dpdk_flush(void *source)
{
	struct kv_dpdk_queue *queue = source;
	uint32_t done = 0, stuck = 0;

	while (done < queue->queued && stuck < KV_STUCK_TRIES) {
		uint16_t count = rte_eth_tx_burst(queue->port, queue->number, queue->sending + done,
						  (uint16_t)(queue->queued - done));

		done += count;
		stuck = count ? 0 : stuck + 1;
	}
	queue->tx_dropped += queue->queued - done;
	while (done < queue->queued)
		rte_pktmbuf_free(queue->sending[done++]);
	queue->queued = 0;
}

static const struct kv_port dpdk_port = {
	.receive = kv_dpdk_receive,
	.send = kv_dpdk_send,
	.release = kv_dpdk_release,
	.flush = kv_dpdk_flush,
};

/* ---- Devices ---- */

static int kv_dpdk_begin(struct kv_dpdk *device, const char *options, uint32_t descriptors, uint32_t held, uint32_t mtu,
			 const char **step);
static void kv_dpdk_close(struct kv_dpdk *device);

/* Start the EAL. It pins the calling thread to its main core, so restore the thread's affinity. */
static int kv_dpdk_start(int count, char **arguments)
{
	cpu_set_t before;
	int result;

	sched_getaffinity(0, sizeof(before), &before);
	result = rte_eal_init(count, arguments) < 0 ? -rte_errno : 0;
	sched_setaffinity(0, sizeof(before), &before);
	return result;
}

static struct kv_dpdk *kv_dpdk_open(const char *bus, const char *name, const char *options, uint32_t queues,
				    uint32_t descriptors, uint32_t held, uint32_t mtu, char *reason)
{
	const char *step = "memory for a device";
	struct kv_dpdk *device = NULL;
	int result = -EINVAL;

	if (queues && queues <= KV_QUEUES_MAX && strlen(bus) < KV_DPDK_NAME_BYTES && strlen(name) < KV_DPDK_NAME_BYTES)
		device = aligned_alloc(RTE_CACHE_LINE_SIZE, sizeof(*device));
	if (device) {
		memset(device, 0, sizeof(*device));
		strcpy(device->bus, bus);
		strcpy(device->name, name);
		device->queue_count = queues;
		result = kv_dpdk_begin(device, options, descriptors, held, mtu, &step);
	}
	if (!result)
		return device;
	snprintf(reason, KV_DPDK_REASON_BYTES, "%s: %s", step, strerror(-result));
	kv_dpdk_close(device);
	return NULL;
}

static void *kv_dpdk_queue_of(struct kv_dpdk *device, uint32_t queue)
{
	return queue < device->queue_count ? &device->queues[queue] : NULL;
}

static void kv_dpdk_get_stats(struct kv_dpdk *device, struct kv_dpdk_stats *stats)
{
	struct rte_eth_stats driver;

	memset(&driver, 0, sizeof(driver));
	rte_eth_stats_get(device->port, &driver);
	*stats = (struct kv_dpdk_stats){
		.received = driver.ipackets,
		.sent = driver.opackets,
		.rx_missed = driver.imissed,
		.rx_errors = driver.ierrors,
		.rx_no_room = driver.rx_nombuf,
		.tx_errors = driver.oerrors,
	};
	for (uint32_t i = 0; i < device->queue_count; i++) {
		stats->tx_invalid += device->queues[i].tx_invalid;
		stats->tx_dropped += device->queues[i].tx_dropped;
		stats->buffers += device->queues[i].pool->size;
		stats->buffers_busy += rte_mempool_in_use_count(device->queues[i].pool);
	}
}

static void kv_dpdk_close(struct kv_dpdk *device)
{
	if (!device)
		return;
	if (device->is_started)
		rte_eth_dev_stop(device->port);
	if (device->is_plugged) {
		rte_eth_dev_close(device->port);
		rte_eal_hotplug_remove(device->bus, device->name);
	}
	for (uint32_t i = 0; i < device->queue_count; i++)
		rte_mempool_free(device->queues[i].pool);
	free(device);
}

static int kv_dpdk_make_pool(struct kv_dpdk *device, uint32_t queue, uint32_t buffers);

/* Return 0 or a negative errno; *step names the step that failed. */
static int kv_dpdk_begin(struct kv_dpdk *device, const char *options, uint32_t descriptors, uint32_t held, uint32_t mtu,
			 const char **step)
{
	struct rte_eth_conf settings = { 0 };
	struct rte_eth_dev_info info;
	uint16_t receive_descriptors = (uint16_t)descriptors, send_descriptors = (uint16_t)descriptors;
	int result;

	*step = "adding the device";
	result = rte_eal_hotplug_add(device->bus, device->name, options);
	if (result)
		return result;
	device->is_plugged = 1;
	*step = "finding the device";
	if ((result = rte_eth_dev_get_port_by_name(device->name, &device->port)) ||
	    (result = rte_eth_dev_info_get(device->port, &info)))
		return result;
	if (mtu && mtu >= info.min_mtu && mtu <= info.max_mtu)
		settings.rxmode.mtu = mtu;
	if (device->queue_count > 1 && info.flow_type_rss_offloads) {
		settings.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		settings.rx_adv_conf.rss_conf.rss_hf =
			info.flow_type_rss_offloads & (RTE_ETH_RSS_IPV4 | RTE_ETH_RSS_NONFRAG_IPV4_UDP);
	}
	*step = "setting the device up";
	if ((result = rte_eth_dev_configure(device->port, (uint16_t)device->queue_count, (uint16_t)device->queue_count,
					    &settings)) ||
	    (result = rte_eth_dev_adjust_nb_rx_tx_desc(device->port, &receive_descriptors, &send_descriptors)))
		return result;
	for (uint32_t i = 0; i < device->queue_count; i++) {
		result = kv_dpdk_make_pool(device, i, receive_descriptors + send_descriptors + held);
		if (result ||
		    (result = rte_eth_rx_queue_setup(device->port, (uint16_t)i, receive_descriptors, SOCKET_ID_ANY,
						     NULL, device->queues[i].pool)) ||
		    (result = rte_eth_tx_queue_setup(device->port, (uint16_t)i, send_descriptors, SOCKET_ID_ANY, NULL)))
			return result;
	}
	*step = "starting the device";
	result = rte_eth_dev_start(device->port);
	device->is_started = !result;
	return result;
}

static int kv_dpdk_make_pool(struct kv_dpdk *device, uint32_t queue, uint32_t buffers)
{
	struct kv_dpdk_queue *own = &device->queues[queue];
	char name[RTE_MEMPOOL_NAMESIZE];

	snprintf(name, sizeof(name), "kv_%u_%u", device->port, queue);
	own->port = device->port;
	own->number = (uint16_t)queue;
	own->pool =
		rte_pktmbuf_pool_create_by_ops(name, buffers + 2 * KV_DPDK_BURST, 0, 0,
					       RTE_PKTMBUF_HEADROOM + KV_DPDK_ROOM_BYTES, SOCKET_ID_ANY, "ring_sp_sc");
	return own->pool ? 0 : -rte_errno;
}

__attribute__((visibility("default"))) const struct kv_dpdk_calls kv_dpdk_calls = {
	.port = &dpdk_port,
	.start = kv_dpdk_start,
	.open = kv_dpdk_open,
	.queue = kv_dpdk_queue_of,
	.get_stats = kv_dpdk_get_stats,
	.close = kv_dpdk_close,
};
