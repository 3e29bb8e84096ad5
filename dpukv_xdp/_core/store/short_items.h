/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * short_items.h - short items in the lines of a table: what an inline store has beside MICA's index and log.
 *
 * A key of at most 8 bytes with a value of at most 8 bytes lies in a line of 64 bytes itself, so that a lookup reads
 * one line where an index and a log take two, one after the other. All other items are in the index and the log, as in
 * a cache; a key moves over when the length of its value asks for it.
 *
 *   line (64 B)     version, lengths of the items, marks, then 3 items of key and value, each zero padded to 8 bytes.
 *   group (512 B)   8 lines. A hash selects a line, the key's home. An item whose home is full lies in another line of
 *                   the group, at a distance of 1 to 7: line home ^ distance, nearest first, because neighbours come
 *                   with the same page and often the same prefetch. The home's mark `other_lines` has a bit for each
 *                   distance.
 *
 * A new key in a full group takes the place of an item that lies in its home line, one after the other. With 1.75 items
 * for each line (36.6 bytes for an item) 7 in 10,000 keys find their group full.
 *
 * The hash is not stored: an item is found by its key, its length and its distance, which states the home. So a key
 * that a client sends with two hashes of different homes is two keys; with two hashes of one home it is one key in the
 * lines and two in the index.
 *
 * In shared mode a writer takes the group, and makes the version of a line odd while it changes an item whose home
 * that line is, wherever the item lies. A reader checks the version of its key's home, and of no other line: it takes
 * no item for its own whose distance states another home, and one with the right distance changes under that version
 * only.
 */
#ifndef KV_SHORT_ITEMS_H
#define KV_SHORT_ITEMS_H

#include "store/hot_path.h"

#define KV_SHORT_ASK_INDEX (-1) /* result of kv_short_get8(): ask kv_store_get() */

/* Return the lines of a table for so many items: whole groups. */
static inline uint64_t kv_short_lines_for(uint64_t item_count)
{
	uint64_t lines = (item_count * 8 + KV_SHORT_ITEMS_PER_8_LINES - 1) / KV_SHORT_ITEMS_PER_8_LINES;

	return (lines + KV_SHORT_GROUP - 1) / KV_SHORT_GROUP * KV_SHORT_GROUP;
}

static inline uint64_t kv_short_home(const struct kv_store *store, uint64_t key_hash)
{
	return KV_STORE_BUCKET(key_hash, store->short_line_count);
}

KV_INLINED void kv_short_prefetch(const struct kv_store *store, uint64_t key_hash)
{
	__builtin_prefetch(&store->short_lines[kv_short_home(store, key_hash)]);
}

/* Return whether index and log may have the key of this home. The line should have been prefetched. */
KV_INLINED int kv_short_had_long(const struct kv_store *store, uint64_t key_hash)
{
	return __atomic_load_n(&store->short_lines[kv_short_home(store, key_hash)].had_long, __ATOMIC_RELAXED);
}

KV_INLINED uint32_t kv_short_lengths(const struct kv_short_line *line, uint32_t way, int shared)
{
	return shared ? __atomic_load_n(&line->lengths[way], __ATOMIC_RELAXED) : line->lengths[way];
}

/*
 * Return a mask: bit i is set if item i of the line has this key, and this distance from its home. Without branches, as
 * kv_bucket_matches().
 */
KV_INLINED uint32_t kv_short_matches(const struct kv_short_line *line, uint64_t key_word, uint32_t key_bytes,
				     uint32_t distance, int shared)
{
	uint32_t wanted = KV_SHORT_KEY_AND_DISTANCE(KV_SHORT_LENGTHS(key_bytes, 0u, distance)), matches = 0;

	for (uint32_t i = 0; i < KV_SHORT_ITEMS; i++) {
		uint32_t has_key = kv_load(&line->items[i].key, shared) == key_word;
		uint32_t is_wanted = KV_SHORT_KEY_AND_DISTANCE(kv_short_lengths(line, i, shared)) == wanted;

		matches |= (has_key & is_wanted) << i;
	}
	return matches;
}

int kv_short_set8(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes, uint64_t value_word,
		  uint32_t value_bytes);
int kv_short_get8_any(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes,
		      __u64 *value_word, uint32_t *value_bytes);

/*
 * GET of a key of 1-8 bytes, given as a word that the caller has padded with zeros. Return KV_SUCCESS with a value of
 * at most 8 bytes, zero padded, KV_NOT_FOUND, or KV_SHORT_ASK_INDEX, uncounted, if kv_store_get() must look for a
 * longer one.
 */
KV_INLINED int kv_short_get8(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes,
			     __u64 *value_word, uint32_t *value_bytes, int shared)
{
	const struct kv_short_line *line = &store->short_lines[kv_short_home(store, key_hash)];
	uint32_t matches, way;

	if (shared)
		return kv_short_get8_any(store, key_hash, key_word, key_bytes, value_word, value_bytes);
	matches = kv_short_matches(line, key_word, key_bytes, 0, 0);
	if (__builtin_expect(!matches, 0))
		return kv_short_get8_any(store, key_hash, key_word, key_bytes, value_word, value_bytes);
	way = (uint32_t)__builtin_ctz(matches);
	store->stats.get_found++;
	*value_word = line->items[way].value;
	*value_bytes = KV_SHORT_VALUE_BYTES(line->lengths[way]);
	return KV_SUCCESS;
}

/* Return whether the store keeps a key of this length in its lines, as long as its value is short, too. */
static inline int kv_short_has_key(const struct kv_store *store, uint32_t key_bytes)
{
	return store->short_lines && key_bytes <= KV_INLINE_MAX;
}

/* The operations of operations.h for keys of 1-8 bytes. A long value goes into index and log. */
int kv_short_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		 uint32_t room, uint32_t *value_bytes);
/* SET, or ADD with `insert_only`. The caller has checked that the value fits into the log. */
int kv_short_write(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		   const uint8_t *value, uint32_t value_bytes, int insert_only);
/* TEST and DELETE, uncounted. */
int kv_short_test(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);
int kv_short_remove(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);
/* INCREMENT, uncounted. */
int kv_short_increment(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		       uint64_t increment, uint64_t *value);
/* RESET of the lines; the caller empties index and log afterwards. */
void kv_short_reset(struct kv_store *store);

/* Return whether a key of 1-8 bytes is in a line, in exclusive mode. */
int kv_short_is_in_line(const struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes);

/* The same operations on index and log, in operations.c. Look-up and removal count nothing. */
int kv_indexed_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		   uint32_t room, uint32_t *value_bytes);
int kv_indexed_look_up(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);
int kv_indexed_write(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		     const uint8_t *value, uint32_t value_bytes, int insert_only);
int kv_indexed_remove(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);

#endif
