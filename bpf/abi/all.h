/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * all.h - every layout, limit, opcode, result and counter that two parts of dpukv_xdp must agree on.
 *
 * The BPF programs (bcc), the native core (cc) and Python (cffi, and from it numpy and scapy) read the same headers;
 * nothing in them is written a second time anywhere. C files include the header of their subject; Python reads this
 * one. All integers are little endian, as on the MICA2 wire, except the Ethernet, IP and UDP fields, which are in
 * network order.
 *
 * cffi's parser reads what is outside "#ifndef KV_ABI_CDEF": only enumerations, structures and KV_ASSERT may be there.
 */
#ifndef KV_ABI_ALL_H
#define KV_ABI_ALL_H

#include "abi/counters.h"
#include "abi/dpu_queue.h"
#include "abi/heartbeat.h"
#include "abi/histogram.h"
#include "abi/limits.h"
#include "abi/load.h"
#include "abi/operation_table.h"
#include "abi/partitions.h"
#include "abi/queue_pair.h"
#include "abi/store_layout.h"
#include "abi/transfer.h"
#include "abi/wire_mica2.h"
#include "abi/words.h"

#endif
