/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * semantics.h - step 3, what is decided about a request before the store is asked: the checks in their order, the
 * results and counters of refused requests, and the room in a response. process.h compiles it for XDP,
 * dpukv_xdp/_core/service/engine.c for the host. Columns and results are those of KV_OPERATION_TABLE.
 *
 * Each side defines struct kv_batch, the batch at work, and the functions that are only declared here.
 */
#ifndef KV_SEMANTICS_H
#define KV_SEMANTICS_H

#include "abi/limits.h"
#include "abi/operation_table.h"
#include "abi/partitions.h"
#include "abi/queue_pair.h"
#include "abi/wire_mica2.h"
#include "base/barriers.h"

/* Bytes that a response with the longest value of a record takes on the wire: what every response has room for. */
#define KV_INLINE_REPLY_BYTES (KV_ITEM_HEADER_BYTES + KV_INLINE_MAX)

struct kv_batch;

/* ---- Defined by each side ---- */

/* Return the counters of the engine that executes the batch. */
static __always_inline struct kv_operation_counts *kv_counts_of(struct kv_batch *batch);
/* Return the partition table, or NULL if there is none. */
static __always_inline const struct kv_partition_table *kv_partitions_of(const struct kv_batch *batch);
/* Return 1 if the key is another engine's and the access mode leaves the operation to that one; `reads` is 1 or 0. */
static __always_inline int kv_is_rejected(const struct kv_batch *batch, __u64 key_hash, __u32 reads);
/* Forget all items that the engine owns. Return an enum kv_result. */
static __always_inline __u32 kv_forget_items(struct kv_batch *batch);
/*
 * Execute a known operation on a key of at least one byte: call kv_refuse(), then the store. Return the response's
 * header word; a value goes into the response or behind the responses.
 */
static __always_inline __u64 kv_execute_on_key(struct kv_batch *batch, const struct kv_request *request,
					       struct kv_response *response);

/* ---- The table ---- */

/* Return 1 if an operation, any code from 0 to 255, is in one of enum kv_operation_set, else 0. Without a branch. */
static __always_inline __u32 kv_operation_is_in(__u32 set, __u32 operation)
{
	return set >> (operation & 31) & kv_is_below(operation, 32);
}

/*
 * Return whether the access mode lets engines execute an operation in partitions of others: CREW reads, CRCW all. The
 * branch is cheaper for the verifier than `|`, 1.4 % of dpu-only with two engines.
 */
static __always_inline __u32 kv_mode_allows(const struct kv_partition_table *table, __u32 reads)
{
	return (reads & table->concurrent_read) || (~reads & table->concurrent_write);
}

/* ---- The checks, in their order ---- */

static __always_inline __u32 kv_reset(struct kv_batch *batch);
static __always_inline __u32 kv_refuse_value(struct kv_batch *batch, __u64 header, __u32 response_bytes_max);

/*
 * Execute one request: any operation on any lengths. Return the response's header word; a value goes into the response
 * or behind the responses.
 */
static __always_inline __u64 kv_execute(struct kv_batch *batch, const struct kv_request *request,
					struct kv_response *response)
{
	__u32 operation = KV_HEADER_OPERATION(request->header);

	response->value = 0;
	if (operation == KV_OP_RESET)
		return KV_HEADER(KV_OP_RESET, kv_reset(batch), 0, 0);
	/* A probe's empty key, whose hash is 0, has one owner, too: as in MICA2, the other engines reject it. */
	if (kv_is_rejected(batch, request->key_hash, kv_operation_is_in(KV_OPS_THAT_READ, operation))) {
		kv_counts_of(batch)->rejected++;
		return KV_HEADER(operation, KV_REJECTED, 0, 0);
	}
	/* This check and the next one are not nested: nested, they cost the verifier 12 % more of dpu-only. */
	if (!kv_operation_is_in(KV_OPS_KNOWN, operation)) {
		kv_counts_of(batch)->not_supported++;
		return KV_HEADER(operation, KV_NOT_SUPPORTED, 0, 0);
	}
	if (!kv_operation_is_in(KV_OPS_KEYED, operation)) {
		kv_counts_of(batch)->noops++;
		return KV_HEADER(operation, KV_SUCCESS, 0, 0);
	}
	if (KV_HEADER_KEY_BYTES(request->header) == 0) {
		kv_counts_of(batch)->errors++;
		return KV_HEADER(operation, KV_ERROR, 0, 0);
	}
	return kv_execute_on_key(batch, request, response);
}

/* RESET: any client may send it, so the server's owner has to allow it. Return an enum kv_result. */
static __always_inline __u32 kv_reset(struct kv_batch *batch)
{
	const struct kv_partition_table *table = kv_partitions_of(batch);
	__u32 result;

	if (!table || !table->reset_allowed) {
		kv_counts_of(batch)->not_supported++;
		return KV_NOT_SUPPORTED;
	}
	result = kv_forget_items(batch);
	if (result == KV_SUCCESS)
		kv_counts_of(batch)->resets++;
	return result;
}

/*
 * Return why a request on a key is refused before the store is asked, as an enum kv_result, or 0 if it is not. `header`
 * is its header word and `operation` that word's operation. `room`, the bytes on the wire that its response may take,
 * is raised where the response needs no check.
 */
static __always_inline __u32 kv_refuse(struct kv_batch *batch, __u32 operation, __u64 header, __u32 *room,
				       __u32 response_bytes_max)
{
	if (kv_operation_is_in(KV_OPS_THAT_STORE, operation)) {
		kv_counts_of(batch)->sets++;
		return kv_refuse_value(batch, header, response_bytes_max);
	}
	if (!kv_operation_is_in(KV_OPS_THAT_RETURN, operation))
		return 0;
	if (operation == KV_OP_GET) {
		kv_counts_of(batch)->gets++;
		/* This request takes no less of a packet than its response: the short paths do not ask for room. */
		if (header == KV_HEADER(KV_OP_GET, 0, 8, 0) && *room < KV_INLINE_REPLY_BYTES)
			*room = KV_INLINE_REPLY_BYTES;
	} else if (KV_HEADER_VALUE_BYTES(header) != KV_NUMBER_BYTES) {
		kv_counts_of(batch)->errors++;
		return KV_ERROR;
	}
	return *room < KV_INLINE_REPLY_BYTES ? KV_INSUFFICIENT_SPACE : 0;
}

/* Refuse to store a value that a GET could never return in one packet. The store refuses one over KV_VALUE_MAX. */
static __always_inline __u32 kv_refuse_value(struct kv_batch *batch, __u64 header, __u32 response_bytes_max)
{
	__u32 value_bytes = KV_HEADER_VALUE_BYTES(header);

	if (KV_HEADER_KEY_BYTES(header) <= KV_INLINE_MAX && value_bytes <= KV_INLINE_MAX)
		return 0;
	if (KV_ITEM_HEADER_BYTES + KV_ROUNDUP8(value_bytes) <= response_bytes_max)
		return 0;
	kv_counts_of(batch)->errors++;
	return KV_INSUFFICIENT_SPACE;
}

/* ---- Room in a response packet ---- */

/* Return the bytes that a response with this header word takes on the wire. */
static __always_inline __u32 kv_response_wire_bytes(__u64 header)
{
	return KV_ITEM_HEADER_BYTES + KV_ROUNDUP8(KV_HEADER_VALUE_BYTES(header));
}

/*
 * Return the bytes on the wire that the next response may take, so that each of the `responses_behind` it still has
 * room for KV_INLINE_REPLY_BYTES. `wire_bytes` is what the responses before it take.
 */
static __always_inline __u32 kv_room_for_next(__u32 wire_bytes, __u32 responses_behind, __u32 response_bytes_max)
{
	__u32 taken = wire_bytes + responses_behind * KV_INLINE_REPLY_BYTES;

	return taken < response_bytes_max ? response_bytes_max - taken : 0;
}

/*
 * Return the longest value, in bytes, that fits into a response with `room` bytes on the wire, which is at least
 * KV_INLINE_REPLY_BYTES. Behind the responses there is always room for what a packet can carry.
 */
static __always_inline __u32 kv_room_for_value(__u32 room)
{
	return (room - KV_ITEM_HEADER_BYTES) & ~7u;
}

#endif
