/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* integers.h - the integer types of C11; cffi has its own definitions. */
#ifndef KV_INTEGERS_H
#define KV_INTEGERS_H

#ifndef KV_ABI_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

#endif
