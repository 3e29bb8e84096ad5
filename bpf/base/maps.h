/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * maps.h - the server's maps, and its settings. The loader passes these with -D, because maps and code depend on them:
 *
 *	KV_PROCESS_HERE	1: process in XDP, on a store in maps, instead of sending requests to the host
 *	KV_TRANSPORT	enum kv_transport: how requests get to the host
 *	KV_HOST_FRAMES	enum kv_transport (RING or AF_XDP): how whole frames get to a host door
 *
 * and fills these in when it loads the program, from which the verifier then removes branches that are never taken:
 *
 *	KV_ENGINES	processing engines; engine e answers on UDP port KV_PORT + e
 *	KV_DPU_ENGINES	engines whose frames XDP parses; whole frames for the other engines go to a host door
 *	KV_CPUS		cores that may run the communication engine
 *	KV_PORT		first UDP port
 *	KV_ADDRESS	server's IPv4 address in network order, 0 = any
 *	KV_MAC		the interface's MAC address, its first byte lowest, 0 = any
 *	KV_BROADCAST	broadcast address of the interface's subnet in network order, 0 = none
 *	KV_DEPTH_MIN	batches that may always stay parked (0 = wait)
 *	KV_DEPTH_MAX	batches that may stay parked when the link is busy
 *	KV_SENDER_ONLY	1: responses leave by the sender program kv_send alone
 *	KV_TRANSFER_PER_REQUEST	1: hand over each request separately instead of the batch
 *	KV_PREPARE_OVERLAPS	0: prepare the response before the batch is handed over, not while the host works
 *	KV_SILENT_NS	time without a heartbeat after which an engine counts as silent; 0: only one that has ended
 *	KV_WHEN_SILENT	enum kv_when_silent: what becomes of the frames for a silent engine
 *	KV_SLOWER_PERCENT	emulated slower cores: time added to the program's own, in percent
 */
#ifndef KV_MAPS_H
#define KV_MAPS_H

#include "abi/dpu_queue.h"
#include "abi/heartbeat.h"
#include "abi/partitions.h"
#include "abi/queue_pair.h"
#include "base/side.h"

/* The preprocessor knows no enumerators: define the same names as macros for #if. */
_Static_assert(KV_TRANSPORT_RINGBUF == 1 && KV_TRANSPORT_AF_XDP == 2, "the macros below have the enumerators' values");
#define KV_TRANSPORT_RINGBUF 1
#define KV_TRANSPORT_AF_XDP 2

/* Records in front of each batch's own: in a BPF ring buffer they are copied together with struct kv_sample_head. */
#define KV_SAMPLE_RECORDS (KV_TRANSPORT == KV_TRANSPORT_RINGBUF)

/*
 * Types of the tables' values. bcc has clang write out a zeroed value of each table, word by word unless it consists of
 * bytes: with the structures themselves every compilation takes 1.5 s longer. bcc cannot describe an array whose length
 * contains sizeof of a structure, hence the enumerators.
 */
enum {
	KV_QUEUE_PAIR_BYTES = sizeof(struct kv_queue_pair),
	KV_DPU_QUEUE_BYTES = sizeof(struct kv_dpu_queue),
	KV_PARKED_BYTES = sizeof(struct kv_parked)
};
struct kv_queue_pair_bytes {
	__u8 bytes[KV_QUEUE_PAIR_BYTES];
};
struct kv_dpu_queue_bytes {
	__u8 bytes[KV_DPU_QUEUE_BYTES];
};
struct kv_parked_bytes {
	__u8 bytes[KV_PARKED_BYTES];
};

/* struct kv_queue_pair: shared with the processing engines, which map the array once. */
BPF_F_TABLE("array", __u32, struct kv_queue_pair_bytes, kv_queue_pairs, KV_ENTRIES_AT_LOAD, BPF_F_MMAPABLE);
/* struct kv_dpu_queue, which statistics copy, and struct kv_parked: private to the communication engine. */
BPF_ARRAY(kv_dpu_queues, struct kv_dpu_queue_bytes, KV_ENTRIES_AT_LOAD);
BPF_ARRAY(kv_parked, struct kv_parked_bytes, KV_ENTRIES_AT_LOAD);
/* Signs of life of the processing engines, by engine. */
BPF_F_TABLE("array", __u32, struct kv_heartbeat, kv_heartbeats, KV_ENTRIES_AT_LOAD, BPF_F_MMAPABLE);
/* Tail calls of kv_receive. */
enum kv_program { KV_PROGRAM_REJECT = 0, KV_PROGRAM_WAIT = 1, KV_PROGRAMS };
BPF_PROG_ARRAY(kv_programs, KV_PROGRAMS);
/* Index of the queue pair that kv_send serves next. */
BPF_ARRAY(kv_sender_turn, __u32, 1);
/* The owner of each part of the key space. */
BPF_F_TABLE("array", __u32, struct kv_partition_table, kv_partitions, 1, BPF_F_MMAPABLE);
#if KV_TRANSPORT == KV_TRANSPORT_AF_XDP || KV_HOST_FRAMES == KV_TRANSPORT_AF_XDP
/* One AF_XDP socket for each receive queue. */
BPF_XSKMAP(kv_sockets, KV_QUEUES_MAX);
#endif
#if KV_TRANSPORT == KV_TRANSPORT_RINGBUF
/* One ring buffer per engine, created by Python: every core writes, the engine reads. The loader takes the rings' type
 * from the model. */
BPF_RINGBUF_OUTPUT(kv_request_ring_model, 1);
BPF_ARRAY_OF_MAPS(kv_request_rings, "kv_request_ring_model", KV_ENTRIES_AT_LOAD);
#endif

#endif
