// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* latency.c - linkable versions of the inline functions of abi/histogram.h. */
#include "base/latency.h"

#include "abi/histogram.h"

uint64_t kv_latency_floor_ns(uint32_t bucket)
{
	return kv_histogram_floor_ns(bucket);
}

uint32_t kv_latency_bucket(uint64_t value_ns)
{
	return kv_histogram_bucket(value_ns);
}
