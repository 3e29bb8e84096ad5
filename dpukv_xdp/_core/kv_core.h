/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * kv_core.h - the native core's interface: what Python (cffi) and the C tests may call.
 *
 * Plain C11 without Python.h: it can be fuzzed and sanitised alone. Functions return 0 or a negative errno unless they
 * say otherwise. No function prints, exits, or allocates after its create call. Declarations for C alone are inside
 * "#ifndef KV_ABI_CDEF" in each header, which cffi's parser skips.
 */
#ifndef KV_CORE_H
#define KV_CORE_H

#include "abi/all.h"
#include "base/bpf_run.h"
#include "base/hash.h"
#include "base/latency.h"
#include "base/memory.h"
#include "base/ticks.h"
#include "host.h"
#include "port/dpdk.h"
#include "port/socket.h"
#include "port/udp.h"

#endif
