/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* latency.h - linkable versions of the inline functions of abi/histogram.h, for Python. */
#ifndef KV_LATENCY_H
#define KV_LATENCY_H

#include "base/integers.h"

uint64_t kv_latency_floor_ns(uint32_t bucket);
uint32_t kv_latency_bucket(uint64_t value_ns);

#endif
