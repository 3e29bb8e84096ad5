// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * floor.c - the machine's floor: what the look-ups of a store cost if nothing is done but reading their cache lines.
 *
 * The memory is zeroed, which the compiler does not know: an item's place depends on the word that its bucket has, and
 * in a chain the next request on what was read, although both add nothing but 0.
 */
#include "abi/store_layout.h"
#include "base/ticks.h"
#include "load/floor.h"

enum { KV_LINE = sizeof(struct kv_line) };
_Static_assert((KV_FLOOR_AHEAD_MAX & (KV_FLOOR_AHEAD_MAX + 1)) == 0, "it is also the mask that picks places");

static uint64_t kv_run_chain(const struct kv_floor *floor);
static uint64_t kv_run_ahead(const struct kv_floor *floor);
static inline const uint64_t *kv_bucket_at(const struct kv_floor *floor, uint64_t hash);
static inline const uint64_t *kv_item_at(const struct kv_floor *floor, uint64_t hash, uint64_t word);
static inline uint64_t kv_mix(uint64_t number);

uint64_t kv_floor_bytes(const struct kv_floor *floor)
{
	return floor->buckets * floor->bucket_bytes + floor->item_lines * KV_LINE;
}

void kv_floor_run(struct kv_floor *floor)
{
	uint64_t start_ticks = kv_ticks();

	floor->sum = floor->ahead ? kv_run_ahead(floor) : kv_run_chain(floor);
	floor->ticks = kv_ticks() - start_ticks;
}

/* Begin each look-up when the one before has ended. */
static uint64_t kv_run_chain(const struct kv_floor *floor)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < floor->requests; i++) {
		uint64_t hash = kv_mix(i + sum);
		uint64_t word = *kv_bucket_at(floor, hash);

		sum += floor->item_lines ? *kv_item_at(floor, hash, word) : word;
	}
	return sum;
}

/* Prefetch a request's bucket `ahead` requests before its item, and that as long before it is read. */
static uint64_t kv_run_ahead(const struct kv_floor *floor)
{
	const uint64_t *items[KV_FLOOR_AHEAD_MAX + 1];
	uint64_t hashes[KV_FLOOR_AHEAD_MAX + 1];
	uint64_t sum = 0, ahead = floor->ahead & KV_FLOOR_AHEAD_MAX;

	for (uint64_t i = 0; i < floor->requests + 2 * ahead; i++) {
		uint64_t item = i - ahead, done = i - 2 * ahead;

		if (done < floor->requests && floor->item_lines)
			sum += *items[done & KV_FLOOR_AHEAD_MAX];
		if (item < floor->requests) {
			uint64_t hash = hashes[item & KV_FLOOR_AHEAD_MAX];
			uint64_t word = *kv_bucket_at(floor, hash);

			if (floor->item_lines) {
				items[item & KV_FLOOR_AHEAD_MAX] = kv_item_at(floor, hash, word);
				__builtin_prefetch(items[item & KV_FLOOR_AHEAD_MAX]);
			} else {
				sum += word;
			}
		}
		hashes[i & KV_FLOOR_AHEAD_MAX] = kv_mix(i);
		__builtin_prefetch(kv_bucket_at(floor, hashes[i & KV_FLOOR_AHEAD_MAX]));
	}
	return sum;
}

/* ---- Places ---- */

/* Return a number below `count`, evenly from all 64-bit hashes (Lemire 2019). */
static inline uint64_t kv_pick(uint64_t hash, uint64_t count)
{
	return (uint64_t)((unsigned __int128)hash * count >> 64);
}

static inline const uint64_t *kv_bucket_at(const struct kv_floor *floor, uint64_t hash)
{
	return (const uint64_t *)(floor->memory + kv_pick(hash, floor->buckets) * floor->bucket_bytes);
}

static inline const uint64_t *kv_item_at(const struct kv_floor *floor, uint64_t hash, uint64_t word)
{
	uint64_t line = kv_pick((hash << 32 | hash >> 32) + word, floor->item_lines);

	return (const uint64_t *)(floor->memory + floor->buckets * floor->bucket_bytes + line * KV_LINE);
}

/* Return a hash of a request's number. */
static inline uint64_t kv_mix(uint64_t number)
{
	number = (number + 1) * 0x9e3779b97f4a7c15ULL;
	number = (number ^ number >> 32) * 0xd6e8feb86659fd93ULL;
	return number ^ number >> 32;
}
