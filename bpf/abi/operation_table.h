/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * operation_table.h - the operations on a store: their codes, their results, and what each one asks for. The codes are
 * MICA2's. bpf/service/semantics.h decides by this table for XDP and for the host; Python reads its masks.
 */
#ifndef KV_ABI_OPERATION_TABLE_H
#define KV_ABI_OPERATION_TABLE_H

#include "abi/words.h"

enum kv_operation {
	KV_OP_RESET = 0,
	KV_OP_NOOP_READ = 1,
	KV_OP_NOOP_WRITE = 2,
	KV_OP_ADD = 3,
	KV_OP_SET = 4,
	KV_OP_GET = 5,
	KV_OP_TEST = 6,
	KV_OP_DELETE = 7,
	KV_OP_INCREMENT = 8
};

enum kv_result {
	KV_SUCCESS = 0,
	KV_ERROR = 1,		   /* the request breaks a limit, for example an empty key */
	KV_INSUFFICIENT_SPACE = 2, /* the item is too large, or the value does not fit into this response packet */
	KV_EXISTS = 3,
	KV_NOT_FOUND = 4,
	KV_PARTIAL_VALUE = 5,
	KV_NOT_PROCESSED = 6,
	KV_NOT_SUPPORTED = 7, /* an operation that this server does not know */
	KV_TIMED_OUT = 8,     /* made by clients, never sent */
	KV_REJECTED = 9	      /* this endpoint does not own the key's partition */
};

/*
 * One row for each operation:
 *
 *	reads	  1: it changes nothing, so CREW lets every engine execute it
 *	keyed	  1: it names a key of at least one byte
 *	stores	  1: the request carries a value of up to KV_VALUE_MAX bytes, which becomes the item's
 *	counts	  1: the request carries a number of exactly KV_NUMBER_BYTES bytes, as the key's value must be
 *	returns	  1: the response may carry a value, and so needs room for one
 *	missing	  result where the key is not in the store
 *	present	  result where it is
 */
/* clang-format off */
#define KV_OPERATION_TABLE(ROW)                                                 \
	/*  operation  reads keyed stores counts returns missing    present  */ \
	ROW(RESET,      0,    0,    0,     0,     0,      SUCCESS,   SUCCESS)   \
	ROW(NOOP_READ,  1,    0,    0,     0,     0,      SUCCESS,   SUCCESS)   \
	ROW(NOOP_WRITE, 0,    0,    0,     0,     0,      SUCCESS,   SUCCESS)   \
	ROW(ADD,        0,    1,    1,     0,     0,      SUCCESS,   EXISTS)    \
	ROW(SET,        0,    1,    1,     0,     0,      SUCCESS,   SUCCESS)   \
	ROW(GET,        1,    1,    0,     0,     1,      NOT_FOUND, SUCCESS)   \
	ROW(TEST,       1,    1,    0,     0,     0,      NOT_FOUND, SUCCESS)   \
	ROW(DELETE,     0,    1,    0,     0,     0,      NOT_FOUND, SUCCESS)   \
	ROW(INCREMENT,  0,    1,    0,     1,     1,      NOT_FOUND, SUCCESS)
/* clang-format on */

enum kv_operation_limit {
	KV_NUMBER_BYTES = 8 /* bytes of a value that INCREMENT adds to, and of the number that it adds: little endian */
};

#define KV_ROW_KNOWN(op, reads, keyed, stores, counts, returns, missing, present) | 1 << KV_OP_##op
#define KV_ROW_READS(op, reads, keyed, stores, counts, returns, missing, present) | reads << KV_OP_##op
#define KV_ROW_KEYED(op, reads, keyed, stores, counts, returns, missing, present) | keyed << KV_OP_##op
#define KV_ROW_STORES(op, reads, keyed, stores, counts, returns, missing, present) | stores << KV_OP_##op
#define KV_ROW_COUNTS(op, reads, keyed, stores, counts, returns, missing, present) | counts << KV_OP_##op
#define KV_ROW_RETURNS(op, reads, keyed, stores, counts, returns, missing, present) | returns << KV_OP_##op

/* Columns of the table as sets of operations: bit n stands for the operation whose code is n. */
enum kv_operation_set {
	KV_OPS_KNOWN = 0 KV_OPERATION_TABLE(KV_ROW_KNOWN),
	KV_OPS_THAT_READ = 0 KV_OPERATION_TABLE(KV_ROW_READS),
	KV_OPS_KEYED = 0 KV_OPERATION_TABLE(KV_ROW_KEYED),
	KV_OPS_THAT_STORE = 0 KV_OPERATION_TABLE(KV_ROW_STORES),
	KV_OPS_THAT_COUNT = 0 KV_OPERATION_TABLE(KV_ROW_COUNTS),
	KV_OPS_THAT_RETURN = 0 KV_OPERATION_TABLE(KV_ROW_RETURNS)
};

#define KV_ROW_MISSING(op, reads, keyed, stores, counts, returns, missing, present) KV_MISSING_##op = KV_##missing,
#define KV_ROW_PRESENT(op, reads, keyed, stores, counts, returns, missing, present) KV_PRESENT_##op = KV_##present,

/* The last two columns, as KV_MISSING_GET, KV_PRESENT_ADD and so on: an enum kv_result each. */
enum kv_result_for_key { KV_OPERATION_TABLE(KV_ROW_MISSING) KV_OPERATION_TABLE(KV_ROW_PRESENT) };

/* Requests counted by the checks that come before an operation, alike on both sides. */
struct kv_operation_counts {
	__u64 gets;	     /*  0, requests that passed the check of their key, whatever the result */
	__u64 sets;	     /*  8, likewise, ADDs included */
	__u64 noops;	     /* 16 */
	__u64 resets;	     /* 24, that were executed */
	__u64 errors;	     /* 32, requests that break a limit */
	__u64 not_supported; /* 40, unknown operations, and RESETs that are not allowed */
	__u64 rejected;	     /* 48, requests for a partition of another engine */
};
KV_ASSERT(sizeof(struct kv_operation_counts) == 56);

#endif
