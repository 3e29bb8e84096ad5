/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * words.h - integer types of a fixed width, assertions, and arithmetic on whole words.
 */
#ifndef KV_ABI_WORDS_H
#define KV_ABI_WORDS_H

#ifdef KV_ABI_CDEF /* cffi's parser knows no _Static_assert */
#define KV_ASSERT(condition)
#else
#include <linux/types.h> /* not <stdint.h>: bcc has none */
#define KV_ASSERT(condition) _Static_assert(condition, #condition)

#define KV_ROUNDUP8(bytes) (((bytes) + 7u) & ~7u)

/* The first `bytes` (1-8) of a little-endian word; the others become 0. */
#define KV_LOW_BYTES(word, bytes) ((word) & (~0ULL >> (64 - 8 * (bytes))))
#endif

#endif
