/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * dpu_short_items.h - the lines of an inline store in XDP: an item of at most 8/8 bytes lies in a line, everything else
 * in index and log (dpu_store.h). Layout, groups and eviction are those of the native core
 * (dpukv_xdp/_core/store/short_items.h). A key is in a line or in the index, never in both.
 *
 * The frame's core has the store to itself, so a line needs no version for readers. Its `version` is the store's epoch
 * when the line was last written: RESET raises the epoch, and lines of an older one are empty.
 */
#ifndef KV_DPU_SHORT_ITEMS_H
#define KV_DPU_SHORT_ITEMS_H

#include "abi/queue_pair.h"
#include "store/dpu_store.h"

/* ---- A key's group ---- */

/* Return the number of a line of this store in the map of all stores' lines. Groups do not straddle stores. */
static __always_inline __u32 kv_short_number(const struct kv_dpu_store *store, __u32 line)
{
	if (!KV_DPU_SHARED)
		line += KV_WITH_SETTING(store->number, "*=", KV_DPU_SHORT_LINES);
	return line;
}

/* Return the number of the key's home line. */
static __always_inline __u32 kv_short_home(const struct kv_dpu_store *store, __u64 key_hash)
{
	return kv_short_number(store, KV_WITH_SETTING(KV_STORE_BUCKET_HASH(key_hash), "*=", KV_DPU_SHORT_LINES) >> 32);
}

static __always_inline __u64 kv_short_is_current(const struct kv_dpu_store *store, const struct kv_short_line *line)
{
	return kv_is_zero(line->version ^ store->epoch);
}

/* Return 1 + the place of a key's item in a line that is `distance` from its home, or 0. Without a branch. */
static __always_inline __u64 kv_short_match(const struct kv_dpu_store *store, const struct kv_short_line *line,
					    __u64 key_word, __u32 key_bytes, __u32 distance)
{
	__u64 wanted = KV_SHORT_KEY_AND_DISTANCE(KV_SHORT_LENGTHS(key_bytes, 0, distance));
	__u64 is_stale = line->version ^ store->epoch;
	__u64 found = 0;
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < KV_SHORT_ITEMS; i++) {
		__u64 different = KV_SHORT_KEY_AND_DISTANCE(line->lengths[i]) ^ wanted;

		found += kv_is_zero(different | (line->items[i].key ^ key_word) | is_stale) * (i + 1);
	}
	return found;
}

/*
 * Look for the item of a request's short key in its group. The results are in the map, as kv_find()'s: `short_home`;
 * `short_way`, 0 from the caller, and `short_number`; `had_long`, which says whether the index may have the key.
 */
static __always_inline void kv_find_short(struct kv_dpu_store *store, const struct kv_request *request)
{
	const struct kv_short_line *line;
	__u64 distance, is_current;

	KV_WRITE_ONCE(store->short_home, kv_short_home(store, request->key_hash));
	line = kv_short_line_at(KV_READ_ONCE(store->short_home));
	if (!line)
		return;
	is_current = kv_short_is_current(store, line);
	KV_WRITE_ONCE(store->had_long, line->had_long * is_current);
	KV_WRITE_ONCE(store->short_marks, 1 | line->other_lines * is_current);
	KV_KEEP_LOOP
	for (distance = 0; distance < KV_SHORT_GROUP; distance++) {
		__u32 number = KV_READ_ONCE(store->short_home) ^ distance;
		__u64 found;

		if (!(KV_READ_ONCE(store->short_marks) >> distance & 1))
			continue;
		line = kv_short_line_at(number);
		if (!line)
			break;
		found = kv_short_match(store, line, request->key, KV_HEADER_KEY_BYTES(KV_READ_ONCE(request->header)),
				       distance);
		if (found) {
			KV_WRITE_ONCE(store->short_number, KV_READ_ONCE(store->short_home) ^ distance);
			KV_WRITE_ONCE(store->short_way, found);
			break;
		}
	}
}

/* Return whether kv_find_short() found the key. */
static __always_inline int kv_short_is_found(const struct kv_dpu_store *store)
{
	return KV_READ_ONCE(store->short_way) != 0;
}

/* Return the line of the item that kv_find_short() found, and its place there, KV_SHORT_ITEMS if there is none. */
static __always_inline struct kv_short_line *kv_short_place(const struct kv_dpu_store *store, __u64 *way)
{
	*way = KV_READ_ONCE(store->short_way) - 1;
	KV_OPAQUE(*way);
	return *way < KV_SHORT_ITEMS ? kv_short_line_at(KV_READ_ONCE(store->short_number)) : 0;
}

/* ---- Writing ---- */

/* Free the place that kv_find_short() found, and the mark of the item's home if it was the home's last one there. */
static __always_inline void kv_clear_short(const struct kv_dpu_store *store)
{
	__u64 way, distance, is_last = 1;
	struct kv_short_line *line = kv_short_place(store, &way);
	struct kv_short_line *home;
	int i;

	if (!line)
		return;
	distance = KV_SHORT_DISTANCE(line->lengths[way]) & (KV_SHORT_GROUP - 1);
	line->lengths[way] = 0;
#pragma clang loop unroll(full)
	for (i = 0; i < KV_SHORT_ITEMS; i++)
		is_last &= 1 ^ (kv_is_below(0, line->lengths[i]) &
				kv_is_zero(KV_SHORT_DISTANCE(line->lengths[i]) ^ distance));
	KV_OPAQUE(is_last);
	home = kv_short_line_at(KV_READ_ONCE(store->short_number) ^ distance);
	if (home)
		home->other_lines &= ~((kv_is_below(0, distance) & is_last) << distance);
}

/* Empty a line that was last written before a RESET. */
static __always_inline void kv_renew_short_line(const struct kv_dpu_store *store, struct kv_short_line *line)
{
	int i;

	if (kv_short_is_current(store, line))
		return;
	line->version = store->epoch;
#pragma clang loop unroll(full)
	for (i = 0; i < KV_SHORT_ITEMS; i++)
		line->lengths[i] = 0;
	line->other_lines = 0;
	line->had_long = 0;
}

static __always_inline void kv_choose_short_place(struct kv_dpu_store *store);

/*
 * Put a request's item, which kv_find_short() has not found, into a free place of its group, else in place of an item
 * that lies in its home line. `was_long` is 1 if the key has just left the index.
 */
static __always_inline void kv_put_short(struct kv_dpu_store *store, const struct kv_request *request, __u32 was_long)
{
	__u32 number = KV_READ_ONCE(store->short_home);
	struct kv_short_line *line;
	__u64 way, distance, header;

	kv_choose_short_place(store);
	if (kv_short_is_found(store)) {
		store->set_new += 1 ^ was_long;
		store->set_moved += was_long;
	} else {
		line = kv_short_line_at(number);
		if (!line)
			return;
		KV_WRITE_ONCE(store->short_number, number);
		KV_WRITE_ONCE(store->short_way, line->next_victim % KV_SHORT_ITEMS + 1);
		line->next_victim = (line->next_victim + 1) % KV_SHORT_ITEMS;
		kv_clear_short(store);
		store->set_evicted++;
		store->cleanup += was_long;
	}
	line = kv_short_place(store, &way);
	if (!line)
		return;
	kv_renew_short_line(store, line);
	distance = (KV_READ_ONCE(store->short_home) ^ KV_READ_ONCE(store->short_number)) & (KV_SHORT_GROUP - 1);
	header = KV_READ_ONCE(request->header);
	line->items[way].key = request->key;
	line->items[way].value = request->value;
	line->lengths[way] = KV_SHORT_LENGTHS(KV_HEADER_KEY_BYTES(header), KV_HEADER_VALUE_BYTES(header), distance);
	line = kv_short_line_at(KV_READ_ONCE(store->short_home));
	if (line)
		line->other_lines |= kv_is_below(0, distance) << distance;
}

/* Look for a free place in the group, nearest first; the result is where kv_find_short()'s is. */
static __always_inline void kv_choose_short_place(struct kv_dpu_store *store)
{
	__u64 distance;

	KV_WRITE_ONCE(store->short_way, 0);
	KV_KEEP_LOOP
	for (distance = 0; distance < KV_SHORT_GROUP; distance++) {
		__u32 number = KV_READ_ONCE(store->short_home) ^ distance;
		const struct kv_short_line *line = kv_short_line_at(number);
		__u64 is_used, way = 0;
		int i;

		if (!line)
			break;
		is_used = kv_short_is_current(store, line);
#pragma clang loop unroll(full)
		for (i = 0; i < KV_SHORT_ITEMS; i++) {
			is_used &= kv_is_below(0, line->lengths[i]);
			way += is_used;
		}
		KV_OPAQUE(way);
		if (way < KV_SHORT_ITEMS) {
			KV_WRITE_ONCE(store->short_number, KV_READ_ONCE(store->short_home) ^ distance);
			KV_WRITE_ONCE(store->short_way, way + 1);
			break;
		}
	}
}

/* Note in the home that kv_find_short() looked at that the index may have a key of it. */
static __always_inline void kv_mark_long(struct kv_dpu_store *store)
{
	struct kv_short_line *line = kv_short_line_at(KV_READ_ONCE(store->short_home));

	if (!line)
		return;
	kv_renew_short_line(store, line);
	line->had_long = 1;
}

/*
 * Empty the next line if a RESET has: each must be visited before the epoch has returned to its version. A batch has at
 * most KV_BATCH_MAX RESETs and visits KV_CLEANUP_BUCKETS lines, so 2^32 RESETs visit 2^29, more than a map holds.
 */
static __always_inline void kv_clean_short_line(struct kv_dpu_store *store)
{
	struct kv_short_line *line =
		kv_short_line_at(kv_short_number(store, store->short_cleaned++ % KV_DPU_SHORT_LINES));

	if (line)
		kv_renew_short_line(store, line);
}

#endif
