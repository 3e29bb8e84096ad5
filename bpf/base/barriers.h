/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * barriers.h - single accesses to shared words, ordering, and values hidden from compiler and verifier. It compiles on
 * every side as it is.
 */
#ifndef KV_BARRIERS_H
#define KV_BARRIERS_H

#include "abi/words.h"

/* Read or write a shared word exactly once: another core may change it at any moment. */
#define KV_READ_ONCE(word) (*(volatile __typeof__(word) *)&(word))
#define KV_WRITE_ONCE(word, new_value) (*(volatile __typeof__(word) *)&(word) = (new_value))
/*
 * Read a shared word before everything that is read after it. On the host the compiler knows how; BPF has no such load,
 * and x86 needs none: arm64 would.
 */
#ifdef KV_HOST_SIDE
#define KV_READ_ACQUIRE(word) __atomic_load_n(&(word), __ATOMIC_ACQUIRE)
#else
#define KV_READ_ACQUIRE(word) KV_READ_ONCE(word)
#endif
/* Order stores before it and after it. A compiler barrier is enough on x86; arm64 would need a release store here. */
#define KV_PUBLISH_BARRIER() asm volatile("" ::: "memory")

/*
 * Hide a scalar's value from the compiler. Otherwise clang may prove a mask useless and drop it, and the verifier
 * accepts only those packet and map offsets that it can bound by a mask.
 */
#define KV_OPAQUE(scalar) asm volatile("" : "+r"(scalar))

/* Return 1 if a < b, else 0, for numbers below 2^63. A subtraction: a comparison would become a branch in BPF. */
static __always_inline __u64 kv_is_below(__u64 a, __u64 b)
{
	__u64 difference = a - b;

	KV_OPAQUE(difference);
	return difference >> 63;
}

/* Return 1 if a word is 0, else 0. Without a branch. */
static __always_inline __u64 kv_is_zero(__u64 word)
{
	word |= -word;
	KV_OPAQUE(word);
	return word >> 63 ^ 1;
}

#endif
