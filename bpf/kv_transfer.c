// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * kv_transfer.c - the DPU's end of the transfer primitives that `dpukv qp-bench` compares (the paper's Figure 9). The
 * host's end is dpukv_xdp/_core/load/transfer.c.
 *
 * BPF_PROG_RUN calls a program repeatedly. Each run polls for a bounded time and does at most one hand-over, or one
 * fragment of it. The receiver compares every byte of a payload: reading it is part of a hand-over.
 */
#include "abi/transfer.h"
#include "base/side.h"

#define KV_GROUP_WORDS 8
#define KV_GROUPS_MAX (KV_TRANSFER_BYTES_MAX / (8 * KV_GROUP_WORDS))

/* Bytes instead of words because of bcc, see maps.h. */
struct kv_transfer_payload {
	__u8 bytes[KV_TRANSFER_BYTES_MAX];
};
struct kv_transfer_fragment {
	__u8 bytes[KV_TRANSFER_FRAGMENT_MAX];
};

BPF_F_TABLE("array", __u32, struct kv_transfer_control, kv_transfer_control, 1, BPF_F_MMAPABLE);
/* KV_TRANSFER_PAYLOADS payloads, prepared by the host. */
BPF_F_TABLE("array", __u32, struct kv_transfer_payload, kv_transfer_payloads, KV_TRANSFER_PAYLOADS, BPF_F_MMAPABLE);
/* The mapped ring; only one direction is used at a time. */
BPF_F_TABLE("array", __u32, struct kv_transfer_payload, kv_transfer_slots, KV_TRANSFER_SLOTS, BPF_F_MMAPABLE);
BPF_RINGBUF_OUTPUT(kv_transfer_ringbuf, KV_TRANSFER_RINGBUF_PAGES);
BPF_XSKMAP(kv_transfer_sockets, 1);
/* The content of a received frame, copied out of packet memory. */
BPF_ARRAY(kv_transfer_fragments, struct kv_transfer_fragment, 1);

static __always_inline int kv_may_send(struct kv_transfer_control *control);
static __always_inline int kv_has_come(struct kv_transfer_control *control);
static __always_inline __u64 kv_payload_bytes(const struct kv_transfer_control *control);
static __always_inline struct kv_transfer_payload *kv_payload_now(const struct kv_transfer_control *control);
static __always_inline struct kv_transfer_payload *kv_slot_now(const struct kv_transfer_control *control);
static __always_inline __u64 kv_fragment_bytes(__u64 bytes_left);
static __always_inline void kv_publish(struct kv_transfer_control *control);
static __always_inline void kv_publish_fragment(struct kv_transfer_control *control, int more_follow);
static __always_inline int kv_is_wrong(const __u8 *data, __u32 bytes, __u32 bytes_max, __u64 expected);

/* DPU to host through the mapped ring. */
int kv_transfer_ring_send(struct xdp_md *ctx)
{
	struct kv_transfer_payload *payload, *slot;
	struct kv_transfer_control *control;
	__u32 zero = 0;
	__u64 bytes;

	control = kv_transfer_control.lookup(&zero);
	if (!control || !kv_may_send(control))
		return XDP_DROP;
	payload = kv_payload_now(control);
	slot = kv_slot_now(control);
	bytes = kv_payload_bytes(control);
	if (!payload || !slot || bytes > KV_TRANSFER_BYTES_MAX)
		return XDP_ABORTED;
	if (bpf_probe_read_kernel(slot->bytes, bytes, payload->bytes))
		return XDP_ABORTED;
	kv_publish(control);
	return XDP_DROP;
}

/* Host to DPU through the mapped ring. */
int kv_transfer_ring_receive(struct xdp_md *ctx)
{
	struct kv_transfer_control *control;
	struct kv_transfer_payload *slot;
	__u32 zero = 0;
	__u64 bytes, expected;

	control = kv_transfer_control.lookup(&zero);
	if (!control || !kv_has_come(control))
		return XDP_DROP;
	slot = kv_slot_now(control);
	bytes = kv_payload_bytes(control);
	if (!slot || bytes > KV_TRANSFER_BYTES_MAX)
		return XDP_ABORTED;
	expected = KV_TRANSFER_WORD(control->dpu_count % KV_TRANSFER_PAYLOADS, 0);
	if (kv_is_wrong(slot->bytes, bytes, KV_TRANSFER_BYTES_MAX, expected))
		control->dpu_wrong++;
	kv_publish(control);
	return XDP_DROP;
}

/* DPU to host through the BPF ring buffer. */
int kv_transfer_ringbuf_send(struct xdp_md *ctx)
{
	struct kv_transfer_control *control;
	struct kv_transfer_payload *payload;
	__u32 zero = 0;
	__u64 bytes;

	control = kv_transfer_control.lookup(&zero);
	if (!control || !kv_may_send(control))
		return XDP_DROP;
	payload = kv_payload_now(control);
	bytes = kv_payload_bytes(control);
	if (!payload || bytes == 0 || bytes > KV_TRANSFER_BYTES_MAX)
		return XDP_ABORTED;
	if (kv_transfer_ringbuf.ringbuf_output(payload, bytes, control->ringbuf_wakeup))
		return XDP_DROP; /* the ring is full: the next run tries again */
	kv_publish(control);
	return XDP_DROP;
}

/* DPU to host through AF_XDP: a live frame carries one fragment directly to the socket. */
int kv_transfer_frame_send(struct xdp_md *ctx)
{
	__u64 bytes, offset, fragment_bytes;
	__u32 zero = 0;
	struct kv_transfer_frame header = {};
	struct kv_transfer_control *control;
	struct kv_transfer_payload *payload;

	control = kv_transfer_control.lookup(&zero);
	if (!control || !kv_may_send(control))
		return XDP_DROP;
	payload = kv_payload_now(control);
	bytes = kv_payload_bytes(control);
	offset = control->dpu_fragments * KV_TRANSFER_FRAGMENT_MAX;
	if (!payload || offset > KV_TRANSFER_BYTES_MAX - KV_TRANSFER_FRAGMENT_MAX || bytes <= offset)
		return XDP_ABORTED;
	fragment_bytes = kv_fragment_bytes(bytes - offset);
	header.eth_type = bpf_htons(KV_TRANSFER_ETHERTYPE);
	header.fragment = control->dpu_fragments;
	header.operation = control->dpu_count;
	if (bpf_xdp_store_bytes(ctx, 0, &header, sizeof(header)) ||
	    bpf_xdp_store_bytes(ctx, sizeof(header), payload->bytes + offset, fragment_bytes))
		return XDP_ABORTED;
	kv_publish_fragment(control, offset + fragment_bytes < bytes);
	return kv_transfer_sockets.redirect_map(0, XDP_DROP);
}

/* Host to DPU through AF_XDP: receive the frames that the host's socket sends, at the far end of its link. */
int kv_transfer_frame_receive(struct xdp_md *ctx)
{
	struct kv_transfer_fragment *fragment;
	__u64 bytes, offset, fragment_bytes, expected;
	__u32 zero = 0;
	struct kv_transfer_control *control;
	struct kv_transfer_frame header;

	if (bpf_xdp_load_bytes(ctx, 0, &header, sizeof(header)) || header.eth_type != bpf_htons(KV_TRANSFER_ETHERTYPE))
		return XDP_PASS;
	control = kv_transfer_control.lookup(&zero);
	fragment = kv_transfer_fragments.lookup(&zero);
	if (!control || !fragment)
		return XDP_ABORTED;
	bytes = kv_payload_bytes(control);
	offset = control->dpu_fragments * KV_TRANSFER_FRAGMENT_MAX;
	if (header.operation != control->dpu_count || header.fragment != control->dpu_fragments || bytes <= offset) {
		control->dpu_wrong++;
		return XDP_DROP;
	}
	fragment_bytes = kv_fragment_bytes(bytes - offset);
	if (bpf_xdp_load_bytes(ctx, sizeof(header), fragment->bytes, fragment_bytes)) {
		control->dpu_wrong++;
		return XDP_DROP;
	}
	expected = KV_TRANSFER_WORD(control->dpu_count % KV_TRANSFER_PAYLOADS, offset / 8);
	if (kv_is_wrong(fragment->bytes, fragment_bytes, KV_TRANSFER_FRAGMENT_MAX, expected))
		control->dpu_wrong++;
	kv_publish_fragment(control, offset + fragment_bytes < bytes);
	return XDP_DROP;
}

/* Poll for room in the window. Return whether another payload may be sent. */
static __always_inline int kv_may_send(struct kv_transfer_control *control)
{
	__u32 sent = control->dpu_count, window = control->window;
	int turn;

	if (sent == control->operations || KV_READ_ONCE(control->stop))
		return 0;
	KV_KEEP_LOOP
	for (turn = 0; turn < KV_TRANSFER_TURNS; turn++) {
		if (sent - KV_READ_ONCE(control->host_count) < window)
			return 1;
	}
	return 0;
}

/* Poll for a payload from the host. Return whether there is one. */
static __always_inline int kv_has_come(struct kv_transfer_control *control)
{
	__u32 taken = control->dpu_count;
	int turn;

	if (taken == control->operations || KV_READ_ONCE(control->stop))
		return 0;
	KV_KEEP_LOOP
	for (turn = 0; turn < KV_TRANSFER_TURNS; turn++) {
		if (KV_READ_ONCE(control->host_count) != taken) {
			KV_PUBLISH_BARRIER();
			return 1;
		}
	}
	return 0;
}

/* 64 bits, hidden from clang: it would compare 32 bits, and the verifier needs bounds of the whole register. */
static __always_inline __u64 kv_payload_bytes(const struct kv_transfer_control *control)
{
	__u64 bytes = KV_READ_ONCE(control->bytes);

	KV_OPAQUE(bytes);
	return bytes;
}

/* Return the payload to send now. */
static __always_inline struct kv_transfer_payload *kv_payload_now(const struct kv_transfer_control *control)
{
	__u32 index = control->dpu_count % KV_TRANSFER_PAYLOADS;

	return kv_transfer_payloads.lookup(&index);
}

/* Return the slot of the mapped ring that it goes to or comes from. */
static __always_inline struct kv_transfer_payload *kv_slot_now(const struct kv_transfer_control *control)
{
	__u32 index = control->dpu_count % KV_TRANSFER_SLOTS;

	return kv_transfer_slots.lookup(&index);
}

/* Return how many of the remaining bytes, at least 1, the next frame carries. */
static __always_inline __u64 kv_fragment_bytes(__u64 bytes_left)
{
	if (bytes_left > KV_TRANSFER_FRAGMENT_MAX)
		bytes_left = KV_TRANSFER_FRAGMENT_MAX;
	return kv_copy_bytes(bytes_left, KV_TRANSFER_FRAGMENT_MAX - 1);
}

/* Count one more payload handed over or taken. */
static __always_inline void kv_publish(struct kv_transfer_control *control)
{
	KV_PUBLISH_BARRIER();
	KV_WRITE_ONCE(control->dpu_count, control->dpu_count + 1);
}

/* Count one fragment; the last one completes its payload. */
static __always_inline void kv_publish_fragment(struct kv_transfer_control *control, int more_follow)
{
	if (more_follow) {
		control->dpu_fragments++;
		return;
	}
	control->dpu_fragments = 0;
	kv_publish(control);
}

/* Return whether any byte differs from KV_TRANSFER_WORD; `expected` is the first word. */
static __always_inline int kv_is_wrong(const __u8 *data, __u32 bytes, __u32 bytes_max, __u64 expected)
{
	__u32 groups = bytes / (8 * KV_GROUP_WORDS), words = bytes / 8 % KV_GROUP_WORDS, rest = bytes % 8;
	__u32 offset = 0, group, word;
	__u64 difference = 0;

	/*
	 * The offset is masked, and unknown to the verifier: all turns are alike to it. Both tests of a loop must stay:
	 * were clang to make one of them, the verifier would see no end ("Program too large").
	 */
	KV_KEEP_LOOP
	for (group = 0; group < KV_GROUPS_MAX && group < groups; group++) {
		const __u64 *at;

		KV_OPAQUE(offset);
		KV_OPAQUE(groups);
		offset &= bytes_max - 8 * KV_GROUP_WORDS;
		at = (const __u64 *)(data + offset);
#pragma clang loop unroll(full)
		for (word = 0; word < KV_GROUP_WORDS; word++)
			difference |= at[word] ^ (expected + KV_TRANSFER_STEP * word);
		expected += KV_TRANSFER_STEP * KV_GROUP_WORDS;
		offset += 8 * KV_GROUP_WORDS;
	}
	KV_KEEP_LOOP
	for (word = 0; word < KV_GROUP_WORDS && word < words; word++) {
		KV_OPAQUE(offset);
		KV_OPAQUE(words);
		offset &= bytes_max - 8;
		difference |= *(const __u64 *)(data + offset) ^ expected;
		expected += KV_TRANSFER_STEP;
		offset += 8;
	}
	if (rest) {
		KV_OPAQUE(offset);
		offset &= bytes_max - 8;
		difference |= KV_LOW_BYTES(*(const __u64 *)(data + offset) ^ expected, rest);
	}
	return difference != 0;
}
