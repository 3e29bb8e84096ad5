/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * store_threads_yield.c - make each thread of a build with -finstrument-functions yield its core on entry to one in
 * YIELD_EVERY functions, inlined ones included, so that other threads change the store between two of its accesses.
 */
#include <sched.h>

#define YIELD_EVERY 61 /* prime, so that each function of a loop has its turn */

void __cyg_profile_func_enter(void *function, void *caller) __attribute__((no_instrument_function));
void __cyg_profile_func_exit(void *function, void *caller) __attribute__((no_instrument_function));

void __cyg_profile_func_enter(void *function, void *caller)
{
	static _Thread_local unsigned calls;

	(void)function;
	(void)caller;
	if (++calls % YIELD_EVERY == 0)
		sched_yield();
}

void __cyg_profile_func_exit(void *function, void *caller)
{
	(void)function;
	(void)caller;
}
