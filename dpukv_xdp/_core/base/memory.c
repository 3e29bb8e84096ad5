/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * memory.c - allocation of long-lived memory.
 *
 * A mapping of at least one huge page (2 MiB) is rounded up to whole huge pages and aligned to them, whatever pages it
 * gets; a smaller one has small pages. Every page is present before the mapping is returned, so that the data path
 * never causes a page fault.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/memory.h"

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

/* A fixed size: the system's default huge page may have 1 GiB. */
#define MAP_HUGE_2MIB (21 << 26)

static size_t mapped_bytes(size_t bytes);
static void *map_huge(size_t bytes);
static void *map_populated(size_t bytes, int want_huge, int fd);
static void *map_aligned(size_t bytes, int want_huge, int fd);
static void *give_up(void *memory, size_t bytes);
static int file_of(const char *name, size_t bytes, unsigned int flags);
static int populate(void *memory, size_t bytes);
static int pages_of(const void *memory);

void *kv_memory_map(size_t bytes, int want_huge, int *pages)
{
	size_t length = mapped_bytes(bytes);
	void *memory = NULL;

	if (length == 0) {
		errno = bytes == 0 ? EINVAL : ENOMEM;
		return NULL;
	}
	want_huge = want_huge && length >= HUGE_PAGE_BYTES;
	if (want_huge && (memory = map_huge(length))) {
		*pages = KV_PAGES_HUGE;
		return memory;
	}
	memory = map_populated(length, want_huge, -1);
	if (memory)
		*pages = want_huge ? pages_of(memory) : KV_PAGES_SMALL;
	return memory;
}

void kv_memory_unmap(void *memory, size_t bytes)
{
	if (memory)
		munmap(memory, mapped_bytes(bytes));
}

int kv_memory_file(const char *name, size_t bytes, int want_huge)
{
	size_t length = mapped_bytes(bytes);
	int fd = -1;

	if (length == 0) {
		errno = bytes == 0 ? EINVAL : ENOMEM;
		return -1;
	}
	if (want_huge && length >= HUGE_PAGE_BYTES)
		fd = file_of(name, length, MFD_HUGETLB | MAP_HUGE_2MIB);
	return fd >= 0 ? fd : file_of(name, length, 0);
}

/* Return a file of this length, sealed against another one; -1 without the memory. */
static int file_of(const char *name, size_t bytes, unsigned int flags)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
	void *memory = MAP_FAILED;
	int cause;

	if (fd < 0)
		return -1;
	/* Mapping takes huge pages out of their pool, and keeps them for the file. */
	if (ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
		memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | (flags ? MAP_POPULATE : 0), fd, 0);
	if (memory != MAP_FAILED) {
		munmap(memory, bytes);
		return fd;
	}
	cause = errno;
	close(fd);
	errno = cause;
	return -1;
}

void *kv_memory_map_file(int fd, size_t bytes, int want_huge, int *pages)
{
	size_t length = mapped_bytes(bytes);
	struct statfs system;
	struct stat file;
	void *memory;

	if (fstat(fd, &file) || fstatfs(fd, &system))
		return NULL;
	if (length == 0 || (size_t)file.st_size != length) {
		errno = EINVAL;
		return NULL;
	}
	want_huge = want_huge && length >= HUGE_PAGE_BYTES;
	memory = map_populated(length, want_huge, fd);
	if (!memory)
		return NULL;
	madvise(memory, length, MADV_DONTDUMP); /* it outlives a crash as it is */
	if ((uint32_t)system.f_type == HUGETLBFS_MAGIC)
		*pages = KV_PAGES_HUGE;
	else
		*pages = want_huge ? pages_of(memory) : KV_PAGES_SMALL;
	return memory;
}

/* Return the mapped length for a requested one; unmapping computes the same. Return 0 if it is too large. */
static size_t mapped_bytes(size_t bytes)
{
	size_t unit = bytes < HUGE_PAGE_BYTES ? (size_t)sysconf(_SC_PAGESIZE) : HUGE_PAGE_BYTES;

	return bytes > SIZE_MAX - 2 * HUGE_PAGE_BYTES ? 0 : (bytes + unit - 1) / unit * unit;
}

/* Return a mapping from the hugetlbfs pool, or NULL if the pool has not enough pages, which is no error. */
static void *map_huge(size_t bytes)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MIB | MAP_POPULATE;
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

/* Return a mapping as map_aligned() does, with every page present. */
static void *map_populated(size_t bytes, int want_huge, int fd)
{
	void *memory = map_aligned(bytes, want_huge, fd);

	return memory && populate(memory, bytes) ? give_up(memory, bytes) : memory;
}

/*
 * Return an unpopulated mapping, aligned for huge pages if it is long enough for one: private, or shared and of a file
 * if `fd` is not -1.
 */
static void *map_aligned(size_t bytes, int want_huge, int fd)
{
	size_t slack = bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 0;
	int protection = fd >= 0 ? PROT_NONE : PROT_READ | PROT_WRITE; /* a place for a file is not charged */
	uint8_t *start = mmap(NULL, bytes + slack, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t before = 0;

	if (start == MAP_FAILED)
		return NULL;
	if (slack) {
		before = -(uintptr_t)start & (HUGE_PAGE_BYTES - 1);
		if (before)
			munmap(start, before);
		if (before < slack)
			munmap(start + before + bytes, slack - before);
	}
	if (fd >= 0 && mmap(start + before, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		return give_up(start + before, bytes);
	/* A kernel without transparent huge pages refuses; small pages will do, and pages_of() reports them. */
	if (want_huge)
		madvise(start + before, bytes, MADV_HUGEPAGE);
	return start + before;
}

/* Unmap the memory and return NULL; errno stays as it is. */
static void *give_up(void *memory, size_t bytes)
{
	int cause = errno;

	munmap(memory, bytes);
	errno = cause;
	return NULL;
}

static int populate(void *memory, size_t bytes)
{
#ifdef MADV_POPULATE_WRITE
	if (madvise(memory, bytes, MADV_POPULATE_WRITE) == 0)
		return 0;
	if (errno != EINVAL) /* EINVAL: Linux before 5.14 */
		return -1;
#endif
	/* Keep the content of pages that are there already. */
	for (size_t i = 0, page_bytes = (size_t)sysconf(_SC_PAGESIZE); i < bytes; i += page_bytes)
		__atomic_fetch_or((uint8_t *)memory + i, 0, __ATOMIC_RELAXED);
	return 0;
}

/*
 * Return the kind of pages of a populated mapping, as the kernel reports it: a request for huge pages may fail. More
 * than half of a mapping in transparent huge pages counts as such.
 */
static int pages_of(const void *memory)
{
	FILE *smaps = fopen("/proc/self/smaps", "re");
	uint64_t resident_kib = 0, huge_kib = 0, in_kind_kib;
	int inside = 0;
	char line[512];

	if (!smaps)
		return KV_PAGES_SMALL;
	while (fgets(line, sizeof(line), smaps)) {
		uintptr_t from, to;

		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
			if (inside)
				break;
			inside = from <= (uintptr_t)memory && (uintptr_t)memory < to;
		} else if (inside && sscanf(line, "Rss: %" SCNu64, &resident_kib) != 1 &&
			   (sscanf(line, "AnonHugePages: %" SCNu64, &in_kind_kib) == 1 ||
			    sscanf(line, "ShmemPmdMapped: %" SCNu64, &in_kind_kib) == 1)) {
			huge_kib += in_kind_kib;
		}
	}
	fclose(smaps);
	return huge_kib * 2 > resident_kib ? KV_PAGES_TRANSPARENT : KV_PAGES_SMALL;
}
