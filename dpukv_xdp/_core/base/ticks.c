// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* ticks.c - the rate of the clock of ticks.h. */
#include <time.h>

#include "base/ticks.h"

uint64_t kv_ticks_per_second(void)
{
	struct timespec start, end, pause = { .tv_nsec = 2000000 };
	uint64_t start_ticks, ticks, elapsed_ns;

	clock_gettime(CLOCK_MONOTONIC_RAW, &start);
	start_ticks = kv_ticks();
	nanosleep(&pause, NULL);
	clock_gettime(CLOCK_MONOTONIC_RAW, &end);
	ticks = kv_ticks() - start_ticks;
	elapsed_ns =
		(uint64_t)(end.tv_sec - start.tv_sec) * 1000000000 + (uint64_t)end.tv_nsec - (uint64_t)start.tv_nsec;
	return elapsed_ns ? ticks * 1000000000 / elapsed_ns : 0;
}
