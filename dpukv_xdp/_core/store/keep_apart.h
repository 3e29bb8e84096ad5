/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * keep_apart.h - shared mode: what keeps several threads apart that use one store.
 *
 * In shared mode (CREW, CRCW) each thread has a handle, and every word that two threads may touch is read and written
 * atomically. Whatever they do, for each key all operations happen as if one after the other: a GET returns a whole
 * value, no older than the last one stored before it began; of several ADDs of a key one succeeds; no INCREMENT is
 * lost. A RESET is no single moment: it empties one bucket after the other, and what others store meanwhile may stay.
 * Four things keep the threads apart:
 *
 *   buckets    A writer takes a bucket by making its version odd. Nobody holds two. A reader takes nothing: it looks at
 *              the version, finds the item, copies the value, and starts again if the version has changed since. An
 *              overflow bucket belongs to the main bucket that its chain starts from.
 *   tail       (cache) Room in the log is reserved by moving the tail before anything is written there. A reader that
 *              finds its item within the last span after it has copied the value has copied that item and nothing else.
 *   writers    (cache) Each handle shows the offset that it is about to write at, in place or behind the tail. Who has
 *              moved the tail by a lap past that waits until it is done: a thread may lose its core between any two
 *              instructions, and would else write over what has been stored there in the meantime.
 *   allocator  (lossless) An item's memory is taken and given back under a lock, while its bucket is held. A reader may
 *              still look at it then, and even at the next item there; but the bucket's version has changed by then, so
 *              it starts again.
 *
 * A cache may lose any item to the log or to a full bucket, at any time; a lossless store loses none.
 *
 * Nobody waits in a circle: who waits for a bucket holds nothing, and who holds one waits for the allocator, whose
 * holder waits for nobody, for writes in place, which wait for nobody either, and for earlier appends, which can only
 * wait for still earlier ones. A GET that moves an item to the log's head does not wait for a bucket at all.
 */
#ifndef KV_KEEP_APART_H
#define KV_KEEP_APART_H

#include "base/wait.h"
#include "store/hot_path.h"

/* The test of the tests: which of these checks a build leaves out, see tests/model/test_store_threads.py. */
#define CHECK_VERSION 1
#define CHECK_OVERTAKEN 2
#define CHECK_WRITERS 4
#define CHECK_TAKEN 16 /* 8 is in lossless.c */
#ifndef KV_STORE_UNCHECKED
#define KV_STORE_UNCHECKED 0
#endif

/* ---- Buckets ---- */

/* The version of a bucket that nobody is writing. */
static inline uint32_t version_when_free(const struct kv_store *store, uint64_t bucket, uint32_t *turns)
{
	uint32_t version;

	while ((version = __atomic_load_n(&store->versions[bucket], __ATOMIC_ACQUIRE)) & 1)
		kv_wait_a_turn(turns);
	return version;
}

/* Whether all that was read of the bucket, and of the item that `word` points to, is of one moment: nobody has written
 * the bucket since, and the log has not come round to the item. `word` is 0 if no item was found. */
static inline int is_unchanged(const struct kv_store *store, uint64_t bucket, uint32_t version, uint64_t word)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (!(KV_STORE_UNCHECKED & CHECK_VERSION) &&
	    __atomic_load_n(&store->versions[bucket], __ATOMIC_RELAXED) != version)
		return 0;
	return (KV_STORE_UNCHECKED & CHECK_OVERTAKEN) || !word || kv_store_distance(store, word, 1) <= store->span;
}

/* Whether what was read before of an item whose bucket is held was the item's: the log has not come round to it. */
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
	__atomic_thread_fence(__ATOMIC_RELEASE); /* who sees what is written now sees the odd version */
}

/* The same without waiting, and only if nobody has written the bucket since it had this version. */
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

/* Show that this handle is about to write over the item that `word` points to. 0 if the log has come round to it. A
 * lossless store's items stay where they are while their bucket is held. */
static inline int start_in_place(struct kv_store *store, uint64_t word)
{
	struct kv_store_common *common = store->common;
	uint64_t tail = kv_store_tail(store, 1);
	uint64_t offset = tail - ((tail - word) & KV_LOG_OFFSET_MASK);

	if (store->lossless)
		return 1;
	/* In one order for all threads: either the tail is seen here, or this offset in wait_for_writers(). */
	__atomic_store_n(&common->writers[store->writer].offset, offset, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_ACQUIRE); /* what was read of the item before is the item's */
	return __atomic_load_n(&common->progress.tail, __ATOMIC_SEQ_CST) - offset <= store->span;
}

/* The log's end is at `tail`, and this handle may write up to there once nobody writes what was there a lap ago. */
static inline void wait_for_writers(const struct kv_store *store, uint64_t tail)
{
	const struct kv_store_common *common = store->common;
	uint32_t turns = 0;

	for (uint32_t i = 0; i < common->places && !(KV_STORE_UNCHECKED & CHECK_WRITERS); i++) {
		const __u64 *offset = &common->writers[i].offset;
		uint64_t seen;

		/* Signed: one who has appended since may be ahead. */
		while ((seen = __atomic_load_n(offset, __ATOMIC_SEQ_CST)) != KV_STORE_NOT_WRITING &&
		       (int64_t)(tail - seen) > (int64_t)store->span)
			kv_wait_a_turn(&turns);
	}
	__atomic_thread_fence(__ATOMIC_RELEASE); /* who sees what is written now sees the tail */
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

/* Set a counter that is at `from`. 0 if another thread has moved it. */
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
