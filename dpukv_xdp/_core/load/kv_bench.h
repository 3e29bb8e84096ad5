/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * kv_bench.h - the interface of the extension that only measurements load: the machine's floor, peers' load generators,
 * transfer primitives.
 */
#ifndef KV_BENCH_H
#define KV_BENCH_H

#include "load/floor.h"
#include "load/peer.h"
#include "load/transfer_host.h"

#endif
