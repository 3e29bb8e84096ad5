/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* memory.h - allocation of long-lived memory. */
#ifndef KV_MEMORY_H
#define KV_MEMORY_H

#include "base/integers.h"

enum kv_pages { KV_PAGES_SMALL = 0, KV_PAGES_TRANSPARENT = 1, KV_PAGES_HUGE = 2 };

/*
 * Return a zeroed private mapping. With `want_huge`, try hugetlbfs, then transparent huge pages; *pages becomes the
 * kind of pages, enum kv_pages. Return NULL and set errno on failure.
 */
void *kv_memory_map(size_t bytes, int want_huge, int *pages);
void kv_memory_unmap(void *memory, size_t bytes);
/*
 * Create memory with a file descriptor, zeroed, of a fixed length. With `want_huge`, try hugetlbfs. Return the
 * descriptor, or -1 and set errno.
 */
int kv_memory_file(const char *name, size_t bytes, int want_huge);
/*
 * Map all of it, shared; kv_memory_unmap() unmaps it. With `want_huge`, try transparent huge pages. Return NULL and set
 * errno on failure: EINVAL if it has not this length.
 */
void *kv_memory_map_file(int fd, size_t bytes, int want_huge, int *pages);

#endif
