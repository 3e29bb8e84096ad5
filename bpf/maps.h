/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * maps.h - the server's maps, and the settings that the loader passes with -D:
 *
 *	KV_ENGINES	processing engines; engine e answers on UDP port KV_PORT + e
 *	KV_CPUS		cores that may run the communication engine
 *	KV_PORT		first UDP port
 *	KV_ADDRESS	server's IPv4 address in network order, 0 = any
 *	KV_DEPTH_MIN	batches that may always stay parked (0 = wait)
 *	KV_DEPTH_MAX	batches that may stay parked when the link is busy
 */
#ifndef KV_MAPS_H
#define KV_MAPS_H

#include "kv_abi.h"

#define KV_QUEUE_PAIRS (KV_ENGINES * KV_CPUS)

/*
 * What the tables hold. bcc has clang write out a zeroed value of each table, word by word unless it is made of bytes:
 * with the structures themselves every compilation takes 1.5 s longer. And it cannot describe an array whose length
 * names a structure: hence the enumerators.
 */
enum { KV_QUEUE_PAIR_BYTES = sizeof(struct kv_queue_pair), KV_DPU_QUEUE_BYTES = sizeof(struct kv_dpu_queue) };
struct kv_queue_pair_bytes {
	__u8 bytes[KV_QUEUE_PAIR_BYTES];
};
struct kv_dpu_queue_bytes {
	__u8 bytes[KV_DPU_QUEUE_BYTES];
};

/* struct kv_queue_pair: shared with the processing engines, which map it once. */
BPF_F_TABLE("array", __u32, struct kv_queue_pair_bytes, kv_queue_pairs, KV_QUEUE_PAIRS, BPF_F_MMAPABLE);
/* struct kv_dpu_queue: the communication engine's own. */
BPF_ARRAY(kv_dpu_queues, struct kv_dpu_queue_bytes, KV_QUEUE_PAIRS);

/* A shared word may change at any moment: read or write it exactly once. */
#define KV_READ_ONCE(word) (*(volatile __typeof__(word) *)&(word))
#define KV_WRITE_ONCE(word, new_value) (*(volatile __typeof__(word) *)&(word) = (new_value))
/* Enough on x86, where stores stay in order; arm64 would need a release store here. */
#define KV_PUBLISH_BARRIER() asm volatile("" ::: "memory")

/* Keeps clang from following a scalar: the verifier accepts packet and map offsets it can bound by a mask alone. */
#define KV_OPAQUE(scalar) asm volatile("" : "+r"(scalar))
/*
 * Where a loop's offset starts. Were the verifier to know the number, every mix of item sizes would be a state of its
 * own ("BPF program is too large. Processed 1000001 insn"); an unknown, masked one makes all turns alike.
 */
#define KV_UNKNOWN_ZERO(queue) KV_READ_ONCE((queue)->zero)

#endif
