// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * short_items.c - operations on keys of 1 to 8 bytes in an inline store.
 *
 * A key is in a line, or in index and log, never in both: a writer that holds the key's group moves it from one to the
 * other. `had_long` of the key's home says that the index has to be asked.
 *
 * There is no deadlock in shared mode: a thread that waits for a group holds nothing, and one that holds a group waits
 * for nothing but buckets and the log, whose holders wait for no group (see keep_apart.h).
 */
#include "store/keep_apart.h"
#include "store/region.h"
#include "store/short_items.h"

/* A short key as a lookup uses it. */
struct short_key {
	uint64_t home; /* number of its home line */
	uint64_t hash;
	const uint8_t *text;
	uint64_t word;
	uint32_t bytes;
};

/* An item in a line. */
struct short_place {
	struct kv_short_line *line;
	uint32_t way;
};

static struct short_key key_of(const struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);
KV_INLINED struct short_place find_in_group(const struct kv_store *store, const struct short_key *key, int shared);

/* ---- GET, TEST: readers ---- */

KV_INLINED int get_word(struct kv_store *store, const struct short_key *key, __u64 *value_word, uint32_t *value_bytes,
			int shared);
static uint32_t version_when_unchanged(const struct kv_short_line *home, uint32_t *turns);
static int is_home_unchanged(const struct kv_short_line *home, uint32_t version);
static struct kv_short_line *line_at(const struct kv_store *store, uint64_t number);

int kv_short_get8_any(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes,
		      __u64 *value_word, uint32_t *value_bytes)
{
	struct short_key key = { kv_short_home(store, key_hash), key_hash, NULL, key_word, key_bytes };

	return store->versions ? get_word(store, &key, value_word, value_bytes, 1)
			       : get_word(store, &key, value_word, value_bytes, 0);
}

int kv_short_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		 uint32_t room, uint32_t *value_bytes)
{
	struct short_key short_key = key_of(store, key_hash, key, key_bytes);
	const struct kv_short_line *home = line_at(store, short_key.home);

	for (;;) {
		uint32_t turns = 0, version = store->versions ? version_when_unchanged(home, &turns) : 0;
		__u64 word;
		int result = kv_short_get8_any(store, key_hash, short_key.word, key_bytes, &word, value_bytes);

		if (result == KV_SUCCESS) {
			if (*value_bytes > room)
				return KV_INSUFFICIENT_SPACE;
			memcpy(value, &word, *value_bytes);
		}
		if (result != KV_SHORT_ASK_INDEX)
			return result;
		result = kv_indexed_get(store, key_hash, key, key_bytes, value, room, value_bytes);
		if (!store->versions || is_home_unchanged(home, version))
			return result;
		/* The key may have moved to a line after that had been looked at: count the next result instead. */
		store->stats.get_found -= result != KV_NOT_FOUND;
		store->stats.get_notfound -= result == KV_NOT_FOUND;
	}
}

int kv_short_test(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes)
{
	struct short_key short_key = key_of(store, key_hash, key, key_bytes);
	const struct kv_short_line *home = line_at(store, short_key.home);
	uint32_t turns = 0, version, is_found;

	do {
		version = store->versions ? version_when_unchanged(home, &turns) : 0;
		is_found = find_in_group(store, &short_key, 1).line ||
			   (__atomic_load_n(&home->had_long, __ATOMIC_RELAXED) &&
			    kv_indexed_look_up(store, key_hash, key, key_bytes) == KV_SUCCESS);
	} while (store->versions && !is_home_unchanged(home, version));
	return is_found ? KV_PRESENT_TEST : KV_MISSING_TEST;
}

int kv_short_is_in_line(const struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes)
{
	struct short_key key = { kv_short_home(store, key_hash), key_hash, NULL, key_word, key_bytes };

	return find_in_group(store, &key, 0).line != NULL;
}

/* GET of a short value: as kv_short_get8(). */
KV_INLINED int get_word(struct kv_store *store, const struct short_key *key, __u64 *value_word, uint32_t *value_bytes,
			int shared)
{
	const struct kv_short_line *home = line_at(store, key->home);
	uint32_t turns = 0, version, had_long;
	struct short_place place;
	int result;

	do {
		version = shared ? version_when_unchanged(home, &turns) : 0;
		result = KV_MISSING_GET;
		*value_word = 0;
		*value_bytes = 0;
		place = find_in_group(store, key, shared);
		if (place.line) {
			result = KV_PRESENT_GET;
			*value_word = kv_load(&place.line->items[place.way].value, shared);
			*value_bytes = KV_SHORT_VALUE_BYTES(kv_short_lengths(place.line, place.way, shared));
		}
		had_long = shared ? __atomic_load_n(&home->had_long, __ATOMIC_RELAXED) : home->had_long;
	} while (shared && !is_home_unchanged(home, version));
	if (result == KV_MISSING_GET && had_long)
		return KV_SHORT_ASK_INDEX;
	store->stats.get_found += result == KV_PRESENT_GET;
	store->stats.get_notfound += result == KV_MISSING_GET;
	return result;
}

/*
 * Find the key's item in its home or, as the home's mark says, in other lines of its group. Its line is NULL if
 * there is none.
 */
KV_INLINED struct short_place find_in_group(const struct kv_store *store, const struct short_key *key, int shared)
{
	const struct kv_short_line *home = line_at(store, key->home);
	uint32_t distances = 1u | (shared ? __atomic_load_n(&home->other_lines, __ATOMIC_RELAXED) : home->other_lines);

	for (; distances; distances &= distances - 1) {
		uint32_t distance = (uint32_t)__builtin_ctz(distances);
		struct kv_short_line *line = line_at(store, key->home ^ distance);
		uint32_t matches = kv_short_matches(line, key->word, key->bytes, distance, shared);

		if (matches) {
			return (struct short_place){ line, (uint32_t)__builtin_ctz(matches) };
		}
	}
	return (struct short_place){ NULL, 0 };
}

/* ---- SET, ADD, DELETE, INCREMENT, RESET: writers ---- */

static int is_empty(const struct kv_short_line *line);
KV_INLINED int write_short(struct kv_store *store, const struct short_key *key, uint64_t value_word,
			   uint32_t value_bytes, int insert_only, int shared);
static int write_long(struct kv_store *store, const struct short_key *key, const uint8_t *value, uint32_t value_bytes,
		      int insert_only);
static void count_as_moved(struct kv_store *store, uint64_t set_new);
KV_INLINED void put(struct kv_store *store, const struct short_key *key, uint64_t value_word, uint32_t value_bytes,
		    int shared);
KV_INLINED void write_place(struct kv_short_line *line, uint32_t way, const struct short_key *key, uint64_t value_word,
			    uint32_t value_bytes, uint32_t distance, int shared);
KV_INLINED void evict(struct kv_store *store, struct kv_short_line *line, uint64_t number, uint32_t way, int shared);
KV_INLINED void clear(struct kv_short_line *line, uint32_t way, struct kv_short_line *home, int shared);
KV_INLINED void save_byte(uint8_t *byte, uint32_t value, int shared);
static void take_group(struct kv_store *store, uint64_t home);
static void release_group(struct kv_store *store, uint64_t home);
static void begin_change(struct kv_short_line *home);
static void end_change(struct kv_short_line *home);

int kv_short_set8(struct kv_store *store, uint64_t key_hash, uint64_t key_word, uint32_t key_bytes, uint64_t value_word,
		  uint32_t value_bytes)
{
	struct short_key key = { kv_short_home(store, key_hash), key_hash, (const uint8_t *)&key_word, key_word,
				 key_bytes };

	return store->versions ? write_short(store, &key, value_word, value_bytes, 0, 1)
			       : write_short(store, &key, value_word, value_bytes, 0, 0);
}

int kv_short_write(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		   const uint8_t *value, uint32_t value_bytes, int insert_only)
{
	struct short_key short_key = key_of(store, key_hash, key, key_bytes);
	uint64_t value_word;

	if (value_bytes > KV_INLINE_MAX)
		return write_long(store, &short_key, value, value_bytes, insert_only);
	value_word = value_bytes ? kv_word_of(value, value_bytes) : 0;
	return store->versions ? write_short(store, &short_key, value_word, value_bytes, insert_only, 1)
			       : write_short(store, &short_key, value_word, value_bytes, insert_only, 0);
}

int kv_short_remove(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes)
{
	struct short_key short_key = key_of(store, key_hash, key, key_bytes);
	struct kv_short_line *home = line_at(store, short_key.home);
	int result = KV_MISSING_DELETE;
	struct short_place place;

	take_group(store, short_key.home);
	place = find_in_group(store, &short_key, 1);
	if (place.line) {
		clear(place.line, place.way, home, 1);
		add(&progress(store, store->versions != NULL)->items, -1, 1);
		result = KV_PRESENT_DELETE;
	} else if (home->had_long) {
		result = kv_indexed_remove(store, key_hash, key, key_bytes);
	}
	release_group(store, short_key.home);
	return result;
}

int kv_short_increment(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		       uint64_t increment, uint64_t *value)
{
	struct short_key short_key = key_of(store, key_hash, key, key_bytes);
	int result = KV_MISSING_INCREMENT;
	struct short_place place;

	take_group(store, short_key.home);
	place = find_in_group(store, &short_key, 1);
	if (place.line) {
		result = KV_ERROR;
		if (KV_SHORT_VALUE_BYTES(place.line->lengths[place.way]) == KV_NUMBER_BYTES) {
			__u64 *word = &place.line->items[place.way].value;

			*value = *word + increment;
			kv_save(word, *value, 1);
			result = KV_PRESENT_INCREMENT;
		}
	} else if (line_at(store, short_key.home)->had_long &&
		   kv_indexed_look_up(store, key_hash, key, key_bytes) == KV_SUCCESS) {
		result = KV_ERROR; /* its value is too long for a line, and so for a number */
	}
	release_group(store, short_key.home);
	return result;
}

void kv_short_reset(struct kv_store *store)
{
	for (uint64_t number = 0; number < store->short_line_count; number++) {
		struct kv_short_line *line = line_at(store, number);
		int64_t items = 0;

		/* Skip an empty line: an item stored there now might as well have been stored after the RESET. */
		if (store->versions && is_empty(line))
			continue;
		take_group(store, number);
		for (uint32_t way = 0; way < KV_SHORT_ITEMS; way++) {
			if (line->lengths[way]) {
				evict(store, line, number, way, store->versions != NULL);
				items++;
			}
		}
		/* In shared mode the mark stays: a key that is still in the log must not be out of sight. */
		if (!store->versions)
			line->had_long = 0;
		release_group(store, number);
		if (items)
			add(&progress(store, store->versions != NULL)->items, -items, 1);
	}
}

static int is_empty(const struct kv_short_line *line)
{
	uint32_t used = 0;

	for (uint32_t way = 0; way < KV_SHORT_ITEMS; way++)
		used |= kv_short_lengths(line, way, 1);
	return !used;
}

/* SET or ADD of a short value. */
KV_INLINED int write_short(struct kv_store *store, const struct short_key *key, uint64_t value_word,
			   uint32_t value_bytes, int insert_only, int shared)
{
	struct kv_short_line *home = line_at(store, key->home);
	int result = KV_SUCCESS;
	struct short_place place;

	if (shared)
		take_group(store, key->home);
	place = find_in_group(store, key, shared);
	if (place.line) {
		if (insert_only) {
			store->stats.set_nooverwrite++;
			result = KV_PRESENT_ADD;
		} else {
			kv_undo_arm_line(store, place.line, place.way, value_bytes);
			write_place(place.line, place.way, key, value_word, value_bytes,
				    KV_SHORT_DISTANCE(place.line->lengths[place.way]), shared);
			kv_undo_disarm(store);
			store->stats.set_inplace++;
		}
	} else if (home->had_long && insert_only &&
		   kv_indexed_look_up(store, key->hash, key->text, key->bytes) == KV_SUCCESS) {
		store->stats.set_nooverwrite++;
		result = KV_PRESENT_ADD;
	} else {
		uint64_t set_new = store->stats.set_new;

		/* In a line first: whoever takes the store over may find the key at both places, but never at none. */
		put(store, key, value_word, value_bytes, shared);
		kv_store_order();
		if (home->had_long && !insert_only &&
		    kv_indexed_remove(store, key->hash, key->text, key->bytes) == KV_PRESENT_DELETE)
			count_as_moved(store, set_new);
	}
	if (shared)
		release_group(store, key->home);
	return result;
}

/* SET or ADD of a long value: index and log get it, then the key leaves its line. */
static int write_long(struct kv_store *store, const struct short_key *key, const uint8_t *value, uint32_t value_bytes,
		      int insert_only)
{
	struct kv_short_line *home = line_at(store, key->home);
	uint64_t set_new = store->stats.set_new;
	struct short_place place;
	int result;

	take_group(store, key->home);
	place = find_in_group(store, key, 1);
	if (place.line && insert_only) {
		store->stats.set_nooverwrite++;
		result = KV_PRESENT_ADD;
	} else {
		save_byte(&home->had_long, 1, 1);
		result = kv_indexed_write(store, key->hash, key->text, key->bytes, value, value_bytes, insert_only);
		kv_store_order();
		if (place.line && result == KV_SUCCESS) {
			clear(place.line, place.way, home, 1);
			add(&progress(store, store->versions != NULL)->items, -1, 1);
			count_as_moved(store, set_new);
		}
	}
	release_group(store, key->home);
	return result;
}

/* Count as moved a key that has just been counted as new. One that replaced another key stays counted as that. */
static void count_as_moved(struct kv_store *store, uint64_t set_new)
{
	if (store->stats.set_new == set_new) {
		store->stats.cleanup++; /* of its old place */
		return;
	}
	store->stats.set_new = set_new;
	store->stats.set_moved++;
}

/* Put a new key's item into a free place of its group, else in place of an item that lies in its home line. */
KV_INLINED void put(struct kv_store *store, const struct short_key *key, uint64_t value_word, uint32_t value_bytes,
		    int shared)
{
	struct kv_short_line *home = line_at(store, key->home);
	uint32_t victim = home->next_victim;

	for (uint32_t distance = 0; distance < KV_SHORT_GROUP; distance++) {
		struct kv_short_line *line = line_at(store, key->home ^ distance);

		for (uint32_t way = 0; way < KV_SHORT_ITEMS; way++) {
			if (line->lengths[way])
				continue;
			write_place(line, way, key, value_word, value_bytes, distance, shared);
			if (distance)
				save_byte(&home->other_lines, home->other_lines | 1u << distance, shared);
			add(&progress(store, shared)->items, 1, shared);
			store->stats.set_new++;
			return;
		}
	}
	evict(store, home, key->home, victim, shared);
	kv_store_order();
	write_place(home, victim, key, value_word, value_bytes, 0, shared);
	save_byte(&home->next_victim, (victim + 1) % KV_SHORT_ITEMS, shared);
	store->stats.set_evicted++;
}

/* Remove an item of a line whose number is `number`; the item's home may be another line. */
KV_INLINED void evict(struct kv_store *store, struct kv_short_line *line, uint64_t number, uint32_t way, int shared)
{
	uint32_t distance = KV_SHORT_DISTANCE(line->lengths[way]);
	struct kv_short_line *home = line_at(store, number ^ distance);

	if (shared && distance)
		begin_change(home);
	clear(line, way, home, shared);
	if (shared && distance)
		end_change(home);
}

KV_INLINED void write_place(struct kv_short_line *line, uint32_t way, const struct short_key *key, uint64_t value_word,
			    uint32_t value_bytes, uint32_t distance, int shared)
{
	uint16_t lengths = (uint16_t)KV_SHORT_LENGTHS(key->bytes, value_bytes, distance);

	kv_save(&line->items[way].key, key->word, shared);
	kv_save(&line->items[way].value, value_word, shared);
	kv_store_order();
	if (shared)
		__atomic_store_n(&line->lengths[way], lengths, __ATOMIC_RELAXED);
	else
		line->lengths[way] = lengths;
}

/* Free an item's place, and the mark of its home if this was the home's last item in this line. */
KV_INLINED void clear(struct kv_short_line *line, uint32_t way, struct kv_short_line *home, int shared)
{
	uint32_t distance = KV_SHORT_DISTANCE(line->lengths[way]), left = 0;

	__atomic_store_n(&line->lengths[way], 0, __ATOMIC_RELAXED);
	for (uint32_t i = 0; i < KV_SHORT_ITEMS; i++)
		left += line->lengths[i] && KV_SHORT_DISTANCE(line->lengths[i]) == distance;
	if (distance && !left)
		save_byte(&home->other_lines, home->other_lines & ~(1u << distance), shared);
}

KV_INLINED void save_byte(uint8_t *byte, uint32_t value, int shared)
{
	if (shared)
		__atomic_store_n(byte, (uint8_t)value, __ATOMIC_RELAXED);
	else
		*byte = (uint8_t)value;
}

/* ---- Shared mode ---- */

/* Take the key's group for a writer, and begin to change the items of its home. Nothing in exclusive mode. */
static void take_group(struct kv_store *store, uint64_t home)
{
	uint8_t *is_taken = &line_at(store, home & ~(uint64_t)(KV_SHORT_GROUP - 1))->is_taken;
	uint32_t turns = 0;

	if (!store->versions || (KV_STORE_UNCHECKED & CHECK_TAKEN))
		return;
	while (__atomic_exchange_n(is_taken, 1, __ATOMIC_ACQUIRE)) {
		while (__atomic_load_n(is_taken, __ATOMIC_RELAXED))
			kv_wait_a_turn(&turns);
	}
	begin_change(line_at(store, home));
}

static void release_group(struct kv_store *store, uint64_t home)
{
	if (!store->versions || (KV_STORE_UNCHECKED & CHECK_TAKEN))
		return;
	end_change(line_at(store, home));
	__atomic_store_n(&line_at(store, home & ~(uint64_t)(KV_SHORT_GROUP - 1))->is_taken, 0, __ATOMIC_RELEASE);
}

/* Make a home's version odd. A reader of anything written from now on sees it. */
static void begin_change(struct kv_short_line *home)
{
	__atomic_store_n(&home->version, home->version + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

static void end_change(struct kv_short_line *home)
{
	__atomic_store_n(&home->version, home->version + 1, __ATOMIC_RELEASE);
}

/* Wait until nobody is changing items of a home, and return its version. */
static uint32_t version_when_unchanged(const struct kv_short_line *home, uint32_t *turns)
{
	uint32_t version;

	while ((version = __atomic_load_n(&home->version, __ATOMIC_ACQUIRE)) & 1)
		kv_wait_a_turn(turns);
	return version;
}

/* Return whether everything read of a home's items is consistent: nobody has changed one since. */
static int is_home_unchanged(const struct kv_short_line *home, uint32_t version)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return (KV_STORE_UNCHECKED & CHECK_VERSION) || __atomic_load_n(&home->version, __ATOMIC_RELAXED) == version;
}

/* ---- Small helpers ---- */

static struct short_key key_of(const struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes)
{
	return (struct short_key){ kv_short_home(store, key_hash), key_hash, key, kv_word_of(key, key_bytes),
				   key_bytes };
}

static struct kv_short_line *line_at(const struct kv_store *store, uint64_t number)
{
	return &store->short_lines[number];
}
