/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* memory.h - where long-lived memory comes from. */
#ifndef KV_MEMORY_H
#define KV_MEMORY_H

#include "base/integers.h"

enum kv_pages { KV_PAGES_SMALL = 0, KV_PAGES_TRANSPARENT = 1, KV_PAGES_HUGE = 2 };

/* A zeroed private mapping; `want_huge` tries hugetlbfs, then transparent huge pages. *pages says what it became.
 * NULL and errno on failure. */
void *kv_memory_map(size_t bytes, int want_huge, int *pages);
void kv_memory_unmap(void *memory, size_t bytes);

#endif
