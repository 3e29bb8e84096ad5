/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * side.h - the differences between XDP and the host, the two sides that the communication engine can run on.
 *
 * Both sides compile the same net/, protocol/, queue/ and most of door/. bcc compiles them for XDP. On the host, where
 * dpukv_xdp/_core/door/communicate.c defines KV_HOST_SIDE, a frame is plain memory, and the functions below replace the
 * kernel's helpers, with the same names, arguments and results.
 */
#ifndef KV_SIDE_H
#define KV_SIDE_H

#include "abi/words.h"
#include "base/barriers.h"

#define KV_CACHE_LINE_BYTES 64

/* Load a word ahead of its use: BPF has no prefetch instruction. */
#define KV_TOUCH(word)                              \
	do {                                        \
		__u64 touched = KV_READ_ONCE(word); \
		asm volatile("" ::"r"(touched));    \
	} while (0)

/*
 * Return 0 as a start for a loop's offset, without the verifier knowing it. If it knew the start, each mix of item
 * sizes would be a separate state ("BPF program is too large. Processed 1000001 insn"); with an unknown, masked offset
 * all iterations look alike.
 */
#define KV_UNKNOWN_ZERO(queue) KV_READ_ONCE((queue)->zero)
/* Return `number` without the verifier knowing it: the verifier does not track the contents of maps. */
#define KV_UNKNOWN(queue, number) ((queue)->scratch = (number), KV_READ_ONCE((queue)->scratch))

/*
 * Return `bytes`, the length of a copy, bounded for the verifier: it is 1 to mask + 1, a power of two. Kernels before
 * 6.8 learn no lower bound from a comparison with 0, and bpf_xdp_load_bytes() and bpf_xdp_store_bytes() must not get a
 * length that may be 0 ("R3 min value is outside of the allowed memory range"). Here arithmetic alone gives the range.
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
 * A setting that the loader fills in, so that servers with different values run the same compiled program. It compiles
 * to a 64-bit load of a marker (upper word) with the setting's number (lower word); kernel/compiler.py replaces both.
 * Volatile: each use loads it anew, because a value that is kept takes a register, or some of the 512 bytes of stack.
 */
#define KV_AT_LOAD(number)                                                                       \
	({                                                                                       \
		__u64 setting;                                                                   \
		asm volatile("%0 = %1 ll" : "=r"(setting) : "i"(0x4b56a70a00000000 + (number))); \
		setting;                                                                         \
	})
/*
 * Return `number` after `operation`, such as "*=", with a setting of that kind below 2^31. It is an operand inside the
 * instruction, like a constant, where KV_AT_LOAD would take a second instruction and a register.
 */
#define KV_WITH_SETTING(number, operation, setting)                                                            \
	({                                                                                                     \
		__u64 changed = (number);                                                                      \
		asm("%0 " operation " %1" : "+r"(changed) : "i"(KV_OPERAND_AT_LOAD + KV_NUMBER_OF_##setting)); \
		changed;                                                                                       \
	})
#define KV_OPERAND_AT_LOAD 0x4b56a700
/* Entries of a map whose size the loader fills in: see ENTRIES_AT_LOAD in kernel/compiler.py. */
#define KV_ENTRIES_AT_LOAD 1

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
#define bpf_ntohl(word) __builtin_bswap32(word)

/* The settings that XDP programs get with -D. */
struct kv_side {
	__u32 engines;
	__u32 first_port;
	__u32 address;	 /* network order, 0 = any */
	__u32 broadcast; /* network order, 0 = none */
	__u32 padding;
	__u64 mac; /* first byte lowest, 0 = any */
};
#define KV_ENGINES (ctx->side->engines)
#define KV_PORT (ctx->side->first_port)
#define KV_ADDRESS (ctx->side->address)
#define KV_BROADCAST (ctx->side->broadcast)
#define KV_MAC (ctx->side->mac)
static const __u32 kv_no_depth = 0; /* the host parks batches until they are finished and never waits */
#define KV_DEPTH_MIN kv_no_depth
#define KV_DEPTH_MAX kv_no_depth
#define KV_TRANSPORT KV_TRANSPORT_RING
#define KV_SAMPLE_RECORDS 0
#define KV_SENDER_ONLY 0
#define KV_TRANSFER_PER_REQUEST 0
#define KV_PREPARE_OVERLAPS 1
#define KV_PROCESS_HERE 0 /* the host's engines are not part of its communication engine */

/* A frame in memory. */
struct xdp_md {
	__u8 *data;
	__u8 *data_end;
	__u8 *room_end; /* end of the memory that the frame may grow into */
	const struct kv_side *side;
};

static inline __u64 bpf_ktime_get_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (__u64)now.tv_sec * 1000000000 + (__u64)now.tv_nsec;
}

/* The clock's lowest bits are random enough to pick a batch. */
static inline __u32 bpf_get_prandom_u32(void)
{
	return (__u32)bpf_ktime_get_ns() * 0x9e3779b1u;
}

/* Accept every length: frames come from a socket or a ring, where none is longer than KV_FRAME_MAX. */
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

/* Refuse: a host door's frames have room for every reply behind them. */
static inline int bpf_xdp_adjust_head(struct xdp_md *ctx, int bytes)
{
	(void)ctx, (void)bytes;
	return -1;
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

#endif
