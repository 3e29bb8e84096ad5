/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * side.h - what differs between the two sides that the communication engine can run on.
 *
 * parse.h, receive.h, queue.h and reply.h are the communication engine's one code. In XDP they are compiled by bcc; on
 * the host, where dpukv_xdp/_core/communicate.c defines KV_HOST_SIDE, a frame is plain memory, and the kernel's helpers
 * are the small functions below, with the same names, arguments and results.
 */
#ifndef KV_SIDE_H
#define KV_SIDE_H

#include "abi/dpu_queue.h"
#include "abi/wire_mica2.h"

/* A shared word may change at any moment: read or write it exactly once. */
#define KV_READ_ONCE(word) (*(volatile __typeof__(word) *)&(word))
#define KV_WRITE_ONCE(word, new_value) (*(volatile __typeof__(word) *)&(word) = (new_value))
/* Enough on x86, where stores stay in order; arm64 would need a release store here. */
#define KV_PUBLISH_BARRIER() asm volatile("" ::: "memory")

#define KV_CACHE_LINE_BYTES 64

/* Load a word that nobody uses yet: the nearest that BPF has to a prefetch. */
#define KV_TOUCH(word)                              \
	do {                                        \
		__u64 touched = KV_READ_ONCE(word); \
		asm volatile("" ::"r"(touched));    \
	} while (0)

/* Keeps clang from following a scalar: the verifier accepts packet and map offsets it can bound by a mask alone. */
#define KV_OPAQUE(scalar) asm volatile("" : "+r"(scalar))
/*
 * Where a loop's offset starts. Were the verifier to know the number, every mix of item sizes would be a state of its
 * own ("BPF program is too large. Processed 1000001 insn"); an unknown, masked one makes all turns alike.
 */
#define KV_UNKNOWN_ZERO(queue) KV_READ_ONCE((queue)->zero)
/* The same number, of which the verifier knows nothing any more: it does not follow what lies in maps. */
#define KV_UNKNOWN(queue, number) ((queue)->scratch = (number), KV_READ_ONCE((queue)->scratch))

/*
 * Return how many bytes a helper copies: `bytes`, which is 1 to mask + 1 (a power of two). Kernels before 6.8 learn
 * no lower bound from a comparison with 0, and refuse bpf_xdp_load_bytes() and bpf_xdp_store_bytes() a length that may
 * be 0 ("R3 min value is outside of the allowed memory range"): here the range follows from arithmetic alone.
 */
static __always_inline __u64 kv_copy_bytes(__u64 bytes, __u64 mask)
{
	bytes--;
	KV_OPAQUE(bytes);
	return (bytes & mask) + 1;
}

#ifndef KV_HOST_SIDE

#define KV_KEEP_LOOP _Pragma("clang loop unroll(disable)")

/*
 * A setting that the loader fills in, so that servers with different ones run the same compiled program. It compiles
 * to a 64-bit load of a marker (upper word) with the setting's number (lower word); kernel/compiler.py replaces both.
 */
#define KV_AT_LOAD_TEXT(number) #number
#define KV_AT_LOAD(number)                                                                   \
	({                                                                                   \
		__u64 setting;                                                               \
		asm("%0 = 0x4b56a70a0000000" KV_AT_LOAD_TEXT(number) " ll" : "=r"(setting)); \
		setting;                                                                     \
	})

#else /* KV_HOST_SIDE */

#include <stddef.h>
#include <string.h>
#include <time.h>

#define xdp_md kv_kernel_xdp_md /* the kernel's structure has 32-bit pointers */
#include <linux/bpf.h>
#undef xdp_md

#define KV_KEEP_LOOP
#define bpf_htons(word) __builtin_bswap16(word)
#define bpf_ntohs(word) __builtin_bswap16(word)

/* What -D settings say in XDP. */
struct kv_side {
	__u32 engines;
	__u32 first_port;
	__u32 address; /* network order, 0 = any */
};
#define KV_ENGINES (ctx->side->engines)
#define KV_PORT (ctx->side->first_port)
#define KV_ADDRESS (ctx->side->address)
static const __u32 kv_no_depth = 0; /* the host parks what its engines have not finished, and never waits */
#define KV_DEPTH_MIN kv_no_depth
#define KV_DEPTH_MAX kv_no_depth
#define KV_TRANSPORT KV_TRANSPORT_RING
#define KV_TRANSFER_PER_REQUEST 0
#define KV_PREPARE_OVERLAPS 1
#define KV_PROCESS_HERE 0 /* the engines are not in the communication engine's program */

/* A frame in memory. */
struct xdp_md {
	__u8 *data;
	__u8 *data_end;
	__u8 *room_end; /* how far it may grow */
	const struct kv_side *side;
};

static inline __u64 bpf_ktime_get_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (__u64)now.tv_sec * 1000000000 + (__u64)now.tv_nsec;
}

/* Frames come from a socket or a ring, whose places are no longer than KV_FRAME_MAX. */
static inline int bpf_check_mtu(struct xdp_md *ctx, __u32 interface_index, __u32 *mtu, int more_bytes, __u64 flags)
{
	(void)ctx, (void)interface_index, (void)mtu, (void)more_bytes, (void)flags;
	return 0;
}

static inline int bpf_xdp_adjust_tail(struct xdp_md *ctx, int growth)
{
	if (growth > ctx->room_end - ctx->data_end || growth < ctx->data - ctx->data_end)
		return -1;
	ctx->data_end += growth;
	return 0;
}

static inline int bpf_xdp_load_bytes(struct xdp_md *ctx, __u32 offset, void *to, __u32 bytes)
{
	if (offset > ctx->data_end - ctx->data || bytes > ctx->data_end - ctx->data - offset)
		return -1;
	memcpy(to, ctx->data + offset, bytes);
	return 0;
}

static inline int bpf_xdp_store_bytes(struct xdp_md *ctx, __u32 offset, const void *from, __u32 bytes)
{
	if (offset > ctx->data_end - ctx->data || bytes > ctx->data_end - ctx->data - offset)
		return -1;
	memcpy(ctx->data + offset, from, bytes);
	return 0;
}

#endif /* KV_HOST_SIDE */

/*
 * ---- Stage clocks: where the time of one frame in KV_STAGE_FRAMES goes ----
 *
 * They stand in `own`, the private side of this core's queue pair with the first engine, and not on the stack: what is
 * known there ("no clock: 0") the verifier would follow separately through every loop.
 */

static __always_inline void kv_judge_gap(struct kv_dpu_queue *own, __u64 gap_ns);

/* A running mean that starts at its first value. */
static __always_inline __u64 kv_mean(__u64 mean, __u64 value)
{
	return mean ? mean - (mean >> KV_MEAN_SHIFT) + (value >> KV_MEAN_SHIFT) : value;
}

/* A core's next frame: is it timed, and what was there between it and one that was? */
static __always_inline void kv_stage_start(struct kv_dpu_queue *own)
{
	own->stage_last_ns = 0;
	if (own->ended_ns) {
		kv_judge_gap(own, bpf_ktime_get_ns() - own->ended_ns);
		own->ended_ns = 0;
	}
	if (++own->sampled < KV_STAGE_FRAMES)
		return;
	own->sampled = 0;
	own->stage_last_ns = bpf_ktime_get_ns();
}

/* The frame at hand has so many requests: its stages, if they are timed, are theirs. */
static __always_inline void kv_stage_count(struct kv_dpu_queue *own, __u32 request_count)
{
	if (!own->stage_last_ns)
		return;
	own->stage_frames++;
	own->stage_requests += request_count;
}

/* What passed since the last call belongs to `stage`. */
static __always_inline void kv_stage_end(struct kv_dpu_queue *own, enum kv_stage stage)
{
	__u64 now_ns, passed_ns;

	if (!own->stage_last_ns)
		return;
	now_ns = bpf_ktime_get_ns();
	passed_ns = now_ns - own->stage_last_ns;
	own->stage_ns[stage] += passed_ns;
	own->stage_last_ns = now_ns;
	own->ended_ns = now_ns;
	if (stage == KV_STAGE_WAIT)
		own->wait_ns = kv_mean(own->wait_ns, passed_ns);
}

/*
 * Would a wait for each response fit between the frames? Then none need stay parked for a later one. While it waits, a
 * core has time if it has any left when the next frame comes. How many gaps are long enough says more than how long
 * they are: behind a burst there is always one, be it that of a client that waits for us.
 */
static __always_inline void kv_judge_gap(struct kv_dpu_queue *own, __u64 gap_ns)
{
	__u64 needed_ns = KV_GAP_NS;

	if (own->wait_ns == 0)
		return;
	if (!own->has_time)
		needed_ns += own->wait_ns + (own->wait_ns >> 2);
	own->fits -= own->fits >> KV_FITS_SHIFT;
	if (gap_ns > needed_ns)
		own->fits += KV_FITS_ALL >> KV_FITS_SHIFT;
	if (own->fits > KV_FITS_ALL / 2 + KV_FITS_ALL / 8)
		own->has_time = 1;
	else if (own->fits < KV_FITS_ALL / 2 - KV_FITS_ALL / 8)
		own->has_time = 0;
}

#endif
