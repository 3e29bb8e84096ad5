/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* no_files.h - for programs with a kv_memory_map() of their own: no store of theirs is in a file. */
#include "base/memory.h"

int kv_memory_file(const char *name, size_t bytes, int want_huge)
{
	(void)name, (void)bytes, (void)want_huge;
	return -1;
}

void *kv_memory_map_file(int fd, size_t bytes, int want_huge, int *pages)
{
	(void)fd, (void)bytes, (void)want_huge, (void)pages;
	return NULL;
}
