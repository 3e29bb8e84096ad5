/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * histogram.h - the latency histogram: buckets whose width grows with the latency.
 */
#ifndef KV_ABI_HISTOGRAM_H
#define KV_ABI_HISTOGRAM_H

#include "abi/words.h"

enum kv_histogram_limit {
	KV_HISTOGRAM_SUB_BITS = 5, /* 2^5 buckets per power of two: 3 % resolution */
	KV_HISTOGRAM_BUCKETS = 1024
};

#ifndef KV_ABI_CDEF

/*
 * Return the bucket of a latency: exact below 2^KV_HISTOGRAM_SUB_BITS ns, then 2^KV_HISTOGRAM_SUB_BITS buckets per
 * power of two.
 */
static inline __attribute__((always_inline)) __u32 kv_histogram_bucket(__u64 value_ns)
{
	__u32 exponent = 0;
	__u64 rest = value_ns >> KV_HISTOGRAM_SUB_BITS;

	if (rest >> 16)
		exponent += 16, rest >>= 16;
	if (rest >> 8)
		exponent += 8, rest >>= 8;
	if (rest >> 4)
		exponent += 4, rest >>= 4;
	if (rest >> 2)
		exponent += 2, rest >>= 2;
	if (rest >> 1)
		exponent += 1, rest >>= 1;
	exponent += rest != 0;
	if (exponent == 0)
		return value_ns;
	/* The mantissa's top bit is always set, so each power of two starts 2^SUB_BITS after the one before. */
	return ((exponent - 1) << KV_HISTOGRAM_SUB_BITS) + (value_ns >> (exponent - 1));
}

/* Return the smallest latency, in ns, that falls into a bucket. */
static inline __u64 kv_histogram_floor_ns(__u32 bucket)
{
	__u32 exponent = bucket >> KV_HISTOGRAM_SUB_BITS;

	if (exponent == 0)
		return bucket;
	return (__u64)((1u << KV_HISTOGRAM_SUB_BITS) + (bucket & ((1u << KV_HISTOGRAM_SUB_BITS) - 1)))
	       << (exponent - 1);
}

#endif /* KV_ABI_CDEF */

#endif
