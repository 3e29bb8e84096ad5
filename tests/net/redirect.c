// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * redirect.c - what test_socket.py puts on an interface: frames to one MAC address go to the AF_XDP socket of their
 * receive queue, with a mark in front of them; everything else passes.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>

struct mark {
	__u32 word;
	__u32 queue;
};

BPF_XSKMAP(sockets, TEST_QUEUES);

int redirect(struct xdp_md *context)
{
	struct ethhdr *eth = (void *)(long)context->data;
	struct mark *mark;

	if ((void *)(eth + 1) > (void *)(long)context->data_end)
		return XDP_PASS;
	if (*(__u32 *)eth->h_dest != TEST_MAC_START)
		return XDP_PASS;
	if (bpf_xdp_adjust_meta(context, -(int)sizeof(*mark)))
		return XDP_ABORTED;
	mark = (void *)(long)context->data_meta;
	if ((void *)(mark + 1) > (void *)(long)context->data)
		return XDP_ABORTED;
	mark->word = TEST_MARK;
	mark->queue = context->rx_queue_index;
	return sockets.redirect_map(context->rx_queue_index, XDP_DROP);
}
