/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * keep_apart.h - shared mode: synchronisation of several threads that use one store.
 *
 * In shared mode (CREW, CRCW) each thread has a handle, and every word that two threads may access is read and written
 * atomically. The operations on each key are linearisable: a GET returns a whole value, no older than the last one
 * stored before it began; of several ADDs of a key one succeeds; no INCREMENT is lost. A RESET is not atomic: it
 * empties one bucket after the other, and items that others store meanwhile may stay. Four mechanisms synchronise the
 * threads; short_items.h has the one of an inline store's lines, which comes before these:
 *
 *   buckets    A writer takes a bucket by making its version odd, and no thread holds two. A reader takes none: it
 *              reads the version, finds the item, copies the value, and starts again if the version has changed since.
 *              An overflow bucket belongs to the main bucket that its chain starts from.
 *   tail       (cache) A writer reserves room in the log by moving the tail before it writes there. A reader whose item
 *              is still within the last span after it has copied the value has copied that item and nothing else.
 *   writers    (cache) Each handle publishes the offset that it is about to write at, in place or behind the tail. A
 *              thread that has moved the tail a lap past that offset waits for the writer to finish: the writer may
 *              lose its core between any two instructions, and would otherwise overwrite newer items.
 *   allocator  (lossless) An item's memory is taken and given back under a lock, while its bucket is held. A reader may
 *              still read it then, and even the next item there, but the bucket's version has changed by that time, so
 *              that the reader starts again.
 *
 * A cache may lose any item to the log or to a full bucket, at any time; a lossless store loses none.
 *
 * There is no deadlock. A thread that waits for a bucket holds nothing but a group of an inline store's lines, which a
 * thread that holds a bucket never waits for. A thread that holds a bucket may wait for the
 * allocator's lock, whose holder waits for nothing; for writes in place, which wait for nothing; and for earlier
 * appends, which wait for still earlier ones only. A GET that moves an item to the log's head never waits for a bucket.
 */
#ifndef KV_KEEP_APART_H
#define KV_KEEP_APART_H

#include "base/wait.h"
#include "store/hot_path.h"

/* Checks that a build leaves out to test the tests, see tests/model/test_store_threads.py. */
#define CHECK_VERSION 1
#define CHECK_OVERTAKEN 2
#define CHECK_WRITERS 4
#define CHECK_TAKEN 16 /* 8 is in lossless.c */
#ifndef KV_STORE_UNCHECKED
#define KV_STORE_UNCHECKED 0
#endif

/* ---- Buckets ---- */

/* Wait until nobody is writing the bucket, and return its version. */
static inline uint32_t version_when_free(const struct kv_store *store, uint64_t bucket, uint32_t *turns)
{
	uint32_t version;

	while ((version = __atomic_load_n(&store->versions[bucket], __ATOMIC_ACQUIRE)) & 1)
		kv_wait_a_turn(turns);
	return version;
}

/*
 * Return whether everything read of the bucket, and of the item that `word` points to, is consistent: nobody has
 * written the bucket since, and the log has not overwritten the item. `word` is 0 if no item was found.
 */
static inline int is_unchanged(const struct kv_store *store, uint64_t bucket, uint32_t version, uint64_t word)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (!(KV_STORE_UNCHECKED & CHECK_VERSION) &&
	    __atomic_load_n(&store->versions[bucket], __ATOMIC_RELAXED) != version)
		return 0;
	return (KV_STORE_UNCHECKED & CHECK_OVERTAKEN) || !word || kv_store_distance(store, word, 1) <= store->span;
}

/* Return whether data read before from an item whose bucket is held are the item's: the log has not overwritten it. */
static inline int is_still_alive(const struct kv_store *store, uint64_t word)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return kv_store_distance(store, word, 1) <= store->span;
}

static inline void take_bucket(struct kv_store *store, uint64_t bucket)
{
	uint32_t turns = 0;
	uint32_t version;

	if (KV_STORE_UNCHECKED & CHECK_TAKEN)
		return;
	do
		version = version_when_free(store, bucket, &turns);
	while (!__atomic_compare_exchange_n(&store->versions[bucket], &version, version + 1, 0, __ATOMIC_ACQUIRE,
					    __ATOMIC_RELAXED));
	__atomic_thread_fence(__ATOMIC_RELEASE); /* a reader of anything written from now on sees the odd version */
}

/* Take the bucket without waiting, only if it still has this version. Return whether it was taken. */
static inline int try_to_take_bucket(struct kv_store *store, uint64_t bucket, uint32_t version)
{
	if (!__atomic_compare_exchange_n(&store->versions[bucket], &version, version + 1, 0, __ATOMIC_ACQUIRE,
					 __ATOMIC_RELAXED))
		return 0;
	__atomic_thread_fence(__ATOMIC_RELEASE);
	return 1;
}

static inline void release_bucket(struct kv_store *store, uint64_t bucket)
{
	uint32_t step = KV_STORE_UNCHECKED & CHECK_TAKEN ? 2 : 1;
	uint32_t *version = &store->versions[bucket];

	__atomic_store_n(version, __atomic_load_n(version, __ATOMIC_RELAXED) + step, __ATOMIC_RELEASE);
}

/* ---- The log ---- */

/*
 * Publish that this handle is about to overwrite the item that `word` points to. Return 0 if the log has overwritten
 * it. A lossless store's items cannot move while their bucket is held.
 */
static inline int start_in_place(struct kv_store *store, uint64_t word)
{
	struct kv_store_common *common = store->common;
	uint64_t tail = kv_store_tail(store, 1);
	uint64_t offset = tail - ((tail - word) & KV_LOG_OFFSET_MASK);

	if (store->lossless)
		return 1;
	/* Sequentially consistent: either this thread sees the tail, or wait_for_writers() sees this offset. */
	__atomic_store_n(&common->writers[store->writer].offset, offset, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_ACQUIRE); /* data read from the item before are the item's */
	return __atomic_load_n(&common->progress.tail, __ATOMIC_SEQ_CST) - offset <= store->span;
}

/* Wait until no handle writes in the previous lap up to `tail`: then this handle may write up to there. */
static inline void wait_for_writers(const struct kv_store *store, uint64_t tail)
{
	const struct kv_store_common *common = store->common;
	uint32_t turns = 0;

	for (uint32_t i = 0; i < common->places && !(KV_STORE_UNCHECKED & CHECK_WRITERS); i++) {
		const __u64 *offset = &common->writers[i].offset;
		uint64_t seen;

		/* Signed: a handle that has appended since may be ahead. */
		while ((seen = __atomic_load_n(offset, __ATOMIC_SEQ_CST)) != KV_STORE_NOT_WRITING &&
		       (int64_t)(tail - seen) > (int64_t)store->span)
			kv_wait_a_turn(&turns);
	}
	__atomic_thread_fence(__ATOMIC_RELEASE); /* a reader of anything written from now on sees the tail */
}

static inline void stop_writing(struct kv_store *store)
{
	__atomic_store_n(&store->common->writers[store->writer].offset, KV_STORE_NOT_WRITING, __ATOMIC_RELEASE);
}

/* ---- Small helpers ---- */

KV_INLINED struct kv_store_progress *progress(struct kv_store *store, int shared)
{
	return shared ? &store->common->progress : &store->progress;
}

/* Change a counter from `from` to `to`. Return 0 if another thread has changed it. */
KV_INLINED int move_on(__u64 *counter, uint64_t from, uint64_t to, int shared)
{
	__u64 expected = from;

	if (shared)
		return __atomic_compare_exchange_n(counter, &expected, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
	*counter = to;
	return 1;
}

KV_INLINED void add(__u64 *counter, int64_t change, int shared)
{
	if (shared)
		__atomic_fetch_add(counter, (uint64_t)change, __ATOMIC_RELAXED);
	else
		*counter += (uint64_t)change;
}

#endif
