/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * region.h - a store's memory as one piece that another process can take over: see docs/REGIONS.md.
 *
 *   region   struct kv_region, the index, an inline store's lines, the log; each part on a page of its own
 *
 * It has no pointers. A process that is killed leaves the region as its threads have stored by then; kv_store_open()
 * repairs what was half written. Bucket versions, the allocator's lists and the list of free overflow buckets are not
 * in the region: they are made anew.
 */
#ifndef KV_REGION_H
#define KV_REGION_H

#include "store/index_log.h"

#define KV_REGION_MARK 0x4e4f494745525056ULL /* "VPREGION" */
#define KV_REGION_LAYOUT 1		     /* to be raised when any part's layout or meaning changes */
#define KV_REGION_PAGE_BYTES 4096

struct kv_region {
	__u64 mark; /* written last: the region has a store */
	__u32 layout;
	__u32 header_bytes; /* sizeof(struct kv_region) */
	__u64 bytes;	    /* of the whole region */
	struct kv_store_options options;
	struct kv_store_common common;
	struct kv_store_undo undo[KV_STORE_HANDLES_MAX];
};

/* Builds that leave something out test the tests, see tests/model/test_store_kills.py. */
#define CHECK_UNDO 32
#define CHECK_DOUBLED 64 /* in repair.c */
#ifndef KV_STORE_UNCHECKED
#define KV_STORE_UNCHECKED 0
#endif

/* In kv_store_undo.armed: the record is of an item in a line, not of one in the log. */
#define KV_UNDO_LINE (1ULL << 63)

static inline uint64_t kv_undo_of_item(const struct kv_store *store, const struct kv_item *item)
{
	return 1 + (uint64_t)((const uint8_t *)item - store->log);
}

static inline uint64_t kv_undo_of_line(const struct kv_store *store, const struct kv_short_line *line, uint32_t way)
{
	return KV_UNDO_LINE | (uint64_t)(line - store->short_lines) << 2 | way;
}

/* Keep an item's words that a value of `value_bytes` is about to replace, unless only one word changes. */
KV_INLINED void kv_undo_arm(struct kv_store *store, struct kv_item *item, uint32_t key_bytes, uint32_t value_bytes)
{
	const __u64 *value = value_words(item, key_bytes);
	struct kv_store_undo *undo = store->undo;
	uint32_t old_bytes;

	if (!undo || (KV_STORE_UNCHECKED & CHECK_UNDO))
		return;
	old_bytes = kv_item_length(item, 1) & KV_LENGTH_VALUE_MASK;
	if (old_bytes == value_bytes && value_bytes <= 8)
		return;
	undo->lengths = kv_load((const __u64 *)item, 1);
	for (uint32_t i = 0; i < value_capacity(old_bytes) / 8; i++)
		undo->value[i] = kv_load(&value[i], 1);
	kv_store_order();
	undo->armed = kv_undo_of_item(store, item);
	kv_store_order();
}

/* As kv_undo_arm() for an item in a line. */
KV_INLINED void kv_undo_arm_line(struct kv_store *store, const struct kv_short_line *line, uint32_t way,
				 uint32_t value_bytes)
{
	struct kv_store_undo *undo = store->undo;

	if (!undo || KV_SHORT_VALUE_BYTES(line->lengths[way]) == value_bytes || (KV_STORE_UNCHECKED & CHECK_UNDO))
		return;
	undo->lengths = line->lengths[way];
	undo->value[0] = line->items[way].value;
	kv_store_order();
	undo->armed = kv_undo_of_line(store, line, way);
	kv_store_order();
}

/* The item is complete. */
KV_INLINED void kv_undo_disarm(struct kv_store *store)
{
	kv_store_order();
	if (store->undo)
		store->undo->armed = 0;
	kv_store_order();
}

/*
 * Make a store that a killed process has left complete: see docs/REGIONS.md. The handle is the only one. Return 0, or
 * -1 if it cannot be one that a killed process has left; it is not complete then. errno is ENOMEM without memory, else
 * EUCLEAN.
 */
int kv_store_repair(struct kv_store *store, struct kv_store_repair *repair);

#endif
