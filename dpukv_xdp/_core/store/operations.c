// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * operations.c - the store's operations for keys and values of any legal length. The terms are those of MICA (Lim et
 * al., NSDI 2014).
 *
 * hot_path.h describes the layout and has the paths for small items; keep_apart.h describes how several threads use one
 * store; lossless.c has the parts that only a lossless store uses.
 */
#include "store/allocator.h"
#include "store/hot_path.h"
#include "store/index_log.h"
#include "store/keep_apart.h"
#include "store/lossless.h"
#include "store/region.h"
#include "store/short_items.h"

/* A key as a lookup uses it. */
struct lookup {
	uint64_t hash;
	uint64_t bucket;
	uint64_t first_word;
	const uint8_t *rest; /* the bytes behind the first 8 */
	uint32_t bytes;
	uint32_t rest_bytes;
};

/* Result of a lookup: the item, the bucket's word that points to it, that word's content, and the bucket's version. */
struct found {
	struct kv_item *item; /* NULL: not found */
	__u64 *place;
	uint64_t word;
	uint32_t version;
};

static struct lookup lookup_of(const struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);

uint32_t kv_store_entry_bytes(uint32_t key_bytes, uint32_t value_bytes)
{
	return (uint32_t)sizeof(struct kv_item) + KV_ROUNDUP8(key_bytes) + value_capacity(value_bytes);
}

/* ---- GET, TEST ---- */

KV_INLINED int get(struct kv_store *store, struct lookup key, uint8_t *value, uint32_t room, uint32_t *value_bytes,
		   int shared);
KV_INLINED int look_up(struct kv_store *store, struct lookup key, struct found *found, uint8_t *value, uint32_t room,
		       uint32_t *value_bytes, int shared);
KV_INLINED struct kv_item *find(const struct kv_store *store, const struct lookup *key, __u64 **place, int shared);
static void move_to_head_shared(struct kv_store *store, uint64_t bucket, const struct found *found);

int kv_store_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		 uint32_t room, uint32_t *value_bytes)
{
	*value_bytes = 0;
	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return KV_ERROR;
	if (kv_short_has_key(store, key_bytes))
		return kv_short_get(store, key_hash, key, key_bytes, value, room, value_bytes);
	return kv_indexed_get(store, key_hash, key, key_bytes, value, room, value_bytes);
}

int kv_indexed_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		   uint32_t room, uint32_t *value_bytes)
{
	store->indexed++;
	if (store->versions)
		return get(store, lookup_of(store, key_hash, key, key_bytes), value, room, value_bytes, 1);
	return get(store, lookup_of(store, key_hash, key, key_bytes), value, room, value_bytes, 0);
}

/* kv_store_get8() for shared mode. */
int kv_store_get8_shared(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes,
			 __u64 *value_word, uint32_t *value_bytes)
{
	struct lookup key = { key_hash, kv_store_bucket(store, key_hash), key_word, NULL, key_bytes, 0 };
	uint8_t value[8];
	int result = get(store, key, value, 8, value_bytes, 1);

	*value_word = *value_bytes <= 8 ? kv_word_of(value, *value_bytes) : 0;
	if (result != KV_INSUFFICIENT_SPACE)
		return result;
	store->stats.get_found--; /* kv_store_get(), which the caller calls next, counts it */
	return KV_SUCCESS;
}

int kv_store_test(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes)
{
	int result;

	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return KV_ERROR;
	if (kv_short_has_key(store, key_bytes))
		result = kv_short_test(store, key_hash, key, key_bytes);
	else
		result = kv_indexed_look_up(store, key_hash, key, key_bytes);
	if (result == KV_NOT_FOUND)
		store->stats.test_notfound++;
	else
		store->stats.test_found++;
	return result == KV_NOT_FOUND ? KV_MISSING_TEST : KV_PRESENT_TEST;
}

int kv_indexed_look_up(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes)
{
	struct lookup lookup = lookup_of(store, key_hash, key, key_bytes);
	struct found found;
	uint32_t value_bytes;

	store->indexed++;
	if (store->versions)
		return look_up(store, lookup, &found, NULL, ~0u, &value_bytes, 1);
	return look_up(store, lookup, &found, NULL, ~0u, &value_bytes, 0);
}

KV_INLINED int get(struct kv_store *store, struct lookup key, uint8_t *value, uint32_t room, uint32_t *value_bytes,
		   int shared)
{
	struct found found;
	int result = look_up(store, key, &found, value, room, value_bytes, shared);

	if (result == KV_NOT_FOUND) {
		store->stats.get_notfound++;
		return result;
	}
	store->stats.get_found++;
	if (result == KV_SUCCESS && kv_store_distance(store, found.word, shared) > store->move_distance) {
		if (shared)
			move_to_head_shared(store, key.bucket, &found);
		else
			kv_store_move_to_head(store, found.place);
	}
	return result;
}

/* Find the item and, unless `value` is NULL, copy its value. Return an enum kv_result. */
KV_INLINED int look_up(struct kv_store *store, struct lookup key, struct found *found, uint8_t *value, uint32_t room,
		       uint32_t *value_bytes, int shared)
{
	uint32_t turns = 0;
	int result;

	do {
		found->version = shared ? version_when_free(store, key.bucket, &turns) : 0;
		*value_bytes = 0;
		found->word = 0;
		result = KV_MISSING_GET;
		found->item = find(store, &key, &found->place, shared);
		if (found->item) {
			found->word = kv_load(found->place, shared);
			result = KV_PRESENT_GET;
			if (value)
				result = read_value(store, found->item, key.bytes, value, room, value_bytes, shared);
		}
	} while (shared && !is_unchanged(store, key.bucket, found->version, found->word));
	return result;
}

KV_INLINED struct kv_item *find(const struct kv_store *store, const struct lookup *key, __u64 **place, int shared)
{
	return kv_store_find(store, key->hash, key->bytes, key->first_word, key->rest, key->rest_bytes, place, shared);
}

static struct lookup lookup_of(const struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes)
{
	return (struct lookup){
		.hash = key_hash,
		.bucket = kv_store_bucket(store, key_hash),
		.first_word = kv_word_of(key, key_bytes),
		.rest = key_bytes > 8 ? key + 8 : NULL,
		.bytes = key_bytes,
		.rest_bytes = key_bytes > 8 ? key_bytes - 8 : 0,
	};
}

/* ---- Move to head ---- */

static int is_far(const struct kv_store *store, uint64_t word, uint64_t tail, uint32_t entry_bytes);
KV_INLINED uint32_t trimmed_bytes(uint32_t kv_length);

const struct kv_item *kv_store_move_to_head(struct kv_store *store, __u64 *word)
{
	struct kv_item *item = kv_store_item(store, *word), *moved;
	uint32_t length = item->kv_length;
	uint32_t entry_bytes = trimmed_bytes(length);
	uint64_t new_word;

	if (!is_far(store, *word, store->progress.tail, entry_bytes))
		return item;
	new_word = (*word & ~KV_LOG_OFFSET_MASK) | append(store, entry_bytes, 0);
	moved = kv_store_item(store, new_word);
	/* The new place may overlap the old one from below. */
	memmove(moved, item, entry_bytes);
	write_lengths(moved, length >> KV_LENGTH_KEY_SHIFT, length & KV_LENGTH_VALUE_MASK,
		      value_capacity(length & KV_LENGTH_VALUE_MASK), 0);
	kv_store_order();
	*word = new_word;
	store->stats.move_to_head_performed++;
	cleanup(store, 0);
	return moved;
}

/* Move an item to the head in shared mode, unless another thread holds its bucket. */
static void move_to_head_shared(struct kv_store *store, uint64_t bucket, const struct found *found)
{
	uint32_t length = kv_item_length(found->item, 1), value_bytes = length & KV_LENGTH_VALUE_MASK;
	uint32_t entry_bytes = trimmed_bytes(length);
	__u64 words[KV_ITEM_WORDS_MAX], *new_words;
	uint64_t new_word;

	if (!is_far(store, found->word, kv_store_tail(store, 1), entry_bytes))
		return;
	if (entry_bytes > sizeof(words) || !kv_store_holds(store, (__u64 *)found->item, entry_bytes, 1) ||
	    !try_to_take_bucket(store, bucket, found->version)) {
		store->stats.move_to_head_failed++;
		return;
	}
	/* Nobody has written the item since it was found. But the log may overwrite it at any time, even with the room
	 * reserved for the copy: copy the item before that room is reserved. */
	for (uint32_t i = 0; i < entry_bytes / 8; i++)
		words[i] = kv_load((const __u64 *)found->item + i, 1);
	if (!is_still_alive(store, found->word)) {
		release_bucket(store, bucket);
		store->stats.move_to_head_failed++;
		return;
	}
	new_word = (found->word & ~KV_LOG_OFFSET_MASK) | append(store, entry_bytes, 1);
	new_words = (__u64 *)kv_store_item(store, new_word);
	kv_save(new_words, (uint64_t)value_capacity(value_bytes) << 32 | length, 1);
	for (uint32_t i = 1; i < entry_bytes / 8; i++)
		kv_save(&new_words[i], words[i], 1);
	kv_store_order();
	kv_save(found->place, new_word, 1);
	stop_writing(store);
	release_bucket(store, bucket);
	store->stats.move_to_head_performed++;
	cleanup(store, 1);
}

/* Return whether the item is so far from the tail that it should be moved. The last item never is. The unused rest of a
 * span does not count as distance. */
static int is_far(const struct kv_store *store, uint64_t word, uint64_t tail, uint32_t entry_bytes)
{
	uint64_t distance = (tail - word) & KV_LOG_OFFSET_MASK;

	if (distance > (tail & (store->span - 1)))
		distance -= store->span - store->log_bytes;
	return distance > store->move_distance && distance > entry_bytes;
}

/* Return the bytes of an item with these lengths that has no more room than its value needs. */
KV_INLINED uint32_t trimmed_bytes(uint32_t kv_length)
{
	return kv_store_entry_bytes(kv_length >> KV_LENGTH_KEY_SHIFT, kv_length & KV_LENGTH_VALUE_MASK);
}

/* ---- SET, ADD ---- */

static int write_item(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		      const uint8_t *value, uint32_t value_bytes, int insert_only);
KV_INLINED int set(struct kv_store *store, struct lookup key, const uint8_t *key_text, const uint8_t *value,
		   uint32_t value_bytes, int insert_only, int shared);
KV_INLINED int set_in_place(struct kv_store *store, const struct lookup *key, struct kv_item *item, uint64_t word,
			    const uint8_t *value, uint32_t value_bytes, int shared);
KV_INLINED void give_rest(struct kv_store *store, const struct lookup *key, struct kv_item *item, uint64_t word,
			  uint32_t value_bytes, int shared);
KV_INLINED int set_elsewhere(struct kv_store *store, const struct lookup *key, __u64 *place, const uint8_t *key_text,
			     const uint8_t *value, uint32_t value_bytes, int shared);

int kv_store_set(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes)
{
	return write_item(store, key_hash, key, key_bytes, value, value_bytes, 0);
}

int kv_store_add(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes)
{
	return write_item(store, key_hash, key, key_bytes, value, value_bytes, 1);
}

static int write_item(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		      const uint8_t *value, uint32_t value_bytes, int insert_only)
{
	int result;

	if (key_bytes == 0 || key_bytes > KV_KEY_MAX) {
		store->stats.set_refused++;
		return KV_ERROR;
	}
	if (value_bytes > KV_VALUE_MAX || kv_store_entry_bytes(key_bytes, value_bytes) > store->log_bytes)
		result = KV_INSUFFICIENT_SPACE;
	else if (kv_short_has_key(store, key_bytes))
		result = kv_short_write(store, key_hash, key, key_bytes, value, value_bytes, insert_only);
	else
		result = kv_indexed_write(store, key_hash, key, key_bytes, value, value_bytes, insert_only);
	if (result == KV_INSUFFICIENT_SPACE)
		store->stats.set_refused++;
	return result;
}

int kv_indexed_write(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		     const uint8_t *value, uint32_t value_bytes, int insert_only)
{
	struct lookup lookup = lookup_of(store, key_hash, key, key_bytes);

	store->indexed++;
	if (store->versions)
		return set(store, lookup, key, value, value_bytes, insert_only, 1);
	return set(store, lookup, key, value, value_bytes, insert_only, 0);
}

KV_INLINED int set(struct kv_store *store, struct lookup key, const uint8_t *key_text, const uint8_t *value,
		   uint32_t value_bytes, int insert_only, int shared)
{
	struct kv_item *item;
	__u64 *place = NULL;
	int result = KV_SUCCESS, appended = 0;

	if (shared)
		take_bucket(store, key.bucket);
	item = find(store, &key, &place, shared);
	if (!item)
		place = NULL;
	if (item && insert_only && (!shared || is_still_alive(store, kv_load(place, 1)))) {
		store->stats.set_nooverwrite++;
		result = KV_PRESENT_ADD;
	} else if (item && value_bytes <= capacity_of(item, shared) &&
		   set_in_place(store, &key, item, *place, value, value_bytes, shared)) {
		store->stats.set_inplace++;
	} else {
		result = set_elsewhere(store, &key, place, key_text, value, value_bytes, shared);
		appended = !store->lossless;
	}
	if (shared) {
		stop_writing(store);
		release_bucket(store, key.bucket);
	}
	if (appended)
		cleanup(store, shared);
	return result;
}

/* Overwrite the item's value, which has room for the new one. Return 0 if the log has overwritten the item. */
KV_INLINED int set_in_place(struct kv_store *store, const struct lookup *key, struct kv_item *item, uint64_t word,
			    const uint8_t *value, uint32_t value_bytes, int shared)
{
	uint32_t capacity_bytes = capacity_of(item, shared);

	if (shared && !start_in_place(store, word))
		return 0;
	kv_undo_arm(store, item, key->bytes, value_bytes);
	write_lengths(item, key->bytes, value_bytes, capacity_bytes, shared);
	write_padded(value_words(item, key->bytes), value, value_bytes, shared);
	kv_undo_disarm(store);
	if (capacity_bytes > store->capacity_max &&
	    capacity_bytes - value_capacity(value_bytes) >= KV_ALLOCATOR_BLOCK_MIN)
		give_rest(store, key, item, word, value_bytes, shared);
	return 1;
}

/* Give back the memory of a lossless store's item behind its value, which has become shorter. */
KV_INLINED void give_rest(struct kv_store *store, const struct lookup *key, struct kv_item *item, uint64_t word,
			  uint32_t value_bytes, int shared)
{
	uint32_t entry_bytes = kv_store_entry_bytes(key->bytes, value_bytes);
	uint32_t capacity_bytes = value_capacity(value_bytes), left_bytes;

	/* The capacity first: the block behind it may be another item's at once. */
	write_lengths(item, key->bytes, value_bytes, capacity_bytes, shared);
	kv_store_order();
	left_bytes = (uint32_t)kv_lossless_shrink(store, word & KV_LOG_OFFSET_MASK, entry_bytes) - entry_bytes;
	if (left_bytes)
		write_lengths(item, key->bytes, value_bytes, capacity_bytes + left_bytes, shared);
}

/* Write a new item for a new key (`place` is NULL), or in place of the item that the word at `place` points to. */
KV_INLINED int set_elsewhere(struct kv_store *store, const struct lookup *key, __u64 *place, const uint8_t *key_text,
			     const uint8_t *value, uint32_t value_bytes, int shared)
{
	uint32_t entry_bytes = kv_store_entry_bytes(key->bytes, value_bytes);
	uint32_t capacity_bytes = value_capacity(value_bytes);
	uint64_t taken_bytes = entry_bytes, offset, new_word;
	struct kv_item *item;

	if (store->lossless)
		offset = kv_lossless_take(store, entry_bytes, &taken_bytes);
	else
		offset = append(store, entry_bytes, shared);
	if (offset == KV_ALLOCATOR_NONE)
		return KV_INSUFFICIENT_SPACE;
	new_word = KV_STORE_TAG(key->hash) << KV_LOG_OFFSET_BITS | offset;
	item = kv_store_item(store, new_word);
	write_lengths(item, key->bytes, value_bytes, capacity_bytes + (uint32_t)(taken_bytes - entry_bytes), shared);
	kv_save(&item->key_hash, key->hash, shared);
	write_padded(item->words, key_text, key->bytes, shared);
	write_padded(value_words(item, key->bytes), value, value_bytes, shared);
	kv_store_order();
	if (place) {
		uint64_t old_word = *place;

		kv_save(place, new_word, shared);
		if (store->lossless)
			kv_lossless_give(store, old_word & KV_LOG_OFFSET_MASK);
		store->stats.set_moved++;
	} else if (!store->lossless) {
		put_word(store, key->bucket, new_word, shared);
	} else if (kv_lossless_put_word(store, key->bucket, new_word)) {
		add(&progress(store, shared)->items, 1, shared);
		store->stats.set_new++;
	} else {
		kv_lossless_give(store, offset);
		return KV_INSUFFICIENT_SPACE;
	}
	return KV_SUCCESS;
}

/* ---- DELETE, INCREMENT, RESET ---- */

KV_INLINED int remove_item(struct kv_store *store, struct lookup key, int shared);
KV_INLINED int increment_by(struct kv_store *store, struct lookup key, uint64_t increment, uint64_t *value, int shared);

int kv_store_delete(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes)
{
	int result;

	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return KV_ERROR;
	if (kv_short_has_key(store, key_bytes))
		result = kv_short_remove(store, key_hash, key, key_bytes);
	else
		result = kv_indexed_remove(store, key_hash, key, key_bytes);
	if (result == KV_SUCCESS)
		store->stats.delete_found++;
	else
		store->stats.delete_notfound++;
	return result;
}

int kv_indexed_remove(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes)
{
	if (store->versions)
		return remove_item(store, lookup_of(store, key_hash, key, key_bytes), 1);
	return remove_item(store, lookup_of(store, key_hash, key, key_bytes), 0);
}

KV_INLINED int remove_item(struct kv_store *store, struct lookup key, int shared)
{
	int result = KV_MISSING_DELETE;
	__u64 *place;

	if (shared)
		take_bucket(store, key.bucket);
	if (find(store, &key, &place, shared) && (!shared || is_still_alive(store, kv_load(place, 1)))) {
		uint64_t word = *place;

		if (store->lossless) {
			kv_lossless_remove_word(store, key.bucket, place);
			kv_lossless_give(store, word & KV_LOG_OFFSET_MASK);
		} else {
			remove_word(store, key.bucket, place, shared);
		}
		add(&progress(store, shared)->items, -1, shared);
		result = KV_PRESENT_DELETE;
	}
	if (shared)
		release_bucket(store, key.bucket);
	return result;
}

int kv_store_increment(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		       uint64_t increment, uint64_t *value)
{
	int result;

	*value = 0;
	if (key_bytes == 0 || key_bytes > KV_KEY_MAX)
		return KV_ERROR;
	if (kv_short_has_key(store, key_bytes))
		result = kv_short_increment(store, key_hash, key, key_bytes, increment, value);
	else if (store->versions)
		result = increment_by(store, lookup_of(store, key_hash, key, key_bytes), increment, value, 1);
	else
		result = increment_by(store, lookup_of(store, key_hash, key, key_bytes), increment, value, 0);
	if (result == KV_NOT_FOUND)
		store->stats.increment_notfound++;
	else
		store->stats.increment_found++;
	return result;
}

KV_INLINED int increment_by(struct kv_store *store, struct lookup key, uint64_t increment, uint64_t *value, int shared)
{
	int result = KV_MISSING_INCREMENT;
	struct kv_item *item;
	__u64 *place;

	if (shared)
		take_bucket(store, key.bucket);
	item = find(store, &key, &place, shared);
	if (item && (!shared || start_in_place(store, *place))) {
		result = KV_ERROR;
		if ((kv_item_length(item, shared) & KV_LENGTH_VALUE_MASK) == KV_NUMBER_BYTES) {
			__u64 *word = value_words(item, key.bytes);

			*value = kv_load(word, shared) + increment;
			kv_save(word, *value, shared);
			result = KV_PRESENT_INCREMENT;
		}
	}
	if (shared) {
		stop_writing(store);
		release_bucket(store, key.bucket);
	}
	return result;
}

void kv_store_reset(struct kv_store *store)
{
	store->stats.resets++;
	if (store->short_lines)
		kv_short_reset(store);
	if (!store->versions) {
		/* Whole words, which memset() does not promise. */
		for (uint64_t i = 0; i < 2 * store->buckets_all; i++)
			for (uint32_t word = 0; word < KV_LINE_WORDS; word++)
				kv_save(&store->lines[i].words[word], 0, 1);
		store->progress.items = 0;
		kv_store_order();
		if (store->lossless)
			kv_lossless_reset(store);
		return;
	}
	for (uint64_t bucket = 0; bucket < store->buckets; bucket++) {
		uint64_t words;

		/*
		 * Skip a bucket that looks empty: an item stored there now might as well have been stored after the
		 * RESET.
		 */
		if (!kv_load(kv_store_line(store, bucket, 0), 1))
			continue;
		take_bucket(store, bucket);
		words = store->lossless ? kv_lossless_empty(store, bucket) : empty_bucket(store, bucket);
		add(&progress(store, 1)->items, -(int64_t)words, 1);
		release_bucket(store, bucket);
	}
}
