/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * process.h - step 3 inside XDP: turn a batch of request records into response records, with the same results as
 * dpukv_xdp/_core/service/engine.c on the host. Setting, filled in at load:
 *
 *	KV_RESPONSE_BYTES_MAX	response bytes of one packet, behind the packet header
 *
 * BPF has no prefetch instruction. To overlap the latencies of memory, one loop loads a word from every bucket of the
 * batch, a second one from every item, and only the last one executes. An inline store has short items in its lines, so
 * one loop is enough.
 */
#ifndef KV_PROCESS_H
#define KV_PROCESS_H

#include "abi/partitions.h"
#include "net/headers.h"
#include "queue/dpu_end.h"
#include "service/semantics.h"
#include "store/dpu_short_items.h"
#include "store/dpu_store.h"

#define KV_BODY_MASK (KV_OFFSET_MASK & ~7u) /* mask of the offset of a word in a body, or among long values */

/* Copy between two map values that both have room for KV_OFFSET_MASK bytes. */
static __always_inline void kv_copy(void *to, __u32 bytes, const void *from)
{
	KV_OPAQUE(bytes);
	bytes &= KV_OFFSET_MASK;
	bpf_probe_read_kernel(to, bytes, from);
}

/* The batch at work. */
struct kv_batch {
	__u32 engine;
	__u32 room;			  /* bytes on the wire that the current response may take */
	__u64 appended;			  /* the store's counter of appended items when the batch began */
	const struct kv_dpu_queue *queue; /* for KV_UNKNOWN_ZERO */
	struct kv_dpu_store *store;
	const struct kv_request *requests;
	struct kv_response *responses;
};

/* Return the packet's body, and the place for long values. */
static __always_inline const __u8 *kv_body_of(const struct kv_batch *batch)
{
	return (const __u8 *)(batch->requests + KV_BATCH_MAX);
}

static __always_inline __u8 *kv_values_of(const struct kv_batch *batch)
{
	return (__u8 *)(batch->responses + KV_BATCH_MAX);
}

/* Read the count from memory each time: the verifier would walk the code once per value of a number that it knows. */
static __always_inline __u32 kv_request_count(const struct kv_batch *batch)
{
	return KV_READ_ONCE(batch->queue->requests_here);
}

static __always_inline void kv_touch_lines(const struct kv_batch *batch);
static __always_inline void kv_touch_buckets(const struct kv_batch *batch);
static __always_inline void kv_guess_words(const struct kv_batch *batch);
static __always_inline void kv_touch_items(const struct kv_batch *batch);
static __always_inline void kv_execute_batch(struct kv_batch *batch);
static __always_inline void kv_finish_here(const struct kv_dpu_end *end, const struct kv_dpu_store *store);

/*
 * Process the queue pair's next batch; only this core uses the pair. Its responses have the same numbers as its
 * requests. Return 0, or a drop counter if nothing was done.
 */
static __always_inline int kv_process_batch_here(struct xdp_md *ctx, __u32 engine, __u32 request_count,
						 const struct kv_dpu_end *end)
{
	struct kv_batch batch = { .engine = KV_DPU_ENGINES == 1 ? 0 : engine };
	struct kv_dpu_store_bytes *leaf;

	batch.requests = kv_next_batch(end).records;
	batch.responses = &end->pair->responses[end->queue->records_taken & KV_RECORD_MASK];
	end->queue->requests_here = request_count;
	batch.queue = end->queue;
	leaf = kv_store_at(KV_DPU_SHARED ? 0 : batch.engine);
	if (!leaf)
		return KV_COUNTER_DROP_NO_ENGINE;
	if (!kv_store_claim(leaf))
		return KV_COUNTER_DROP_PARTITION_BUSY;
	batch.store = (struct kv_dpu_store *)leaf;
	batch.appended = batch.store->appended;
	batch.store->number = KV_DPU_SHARED ? 0 : batch.engine;
	batch.store->wire_bytes = 0;
	batch.store->values_bytes = 0;

	if (KV_DPU_SHORT_LINES) {
		kv_touch_lines(&batch);
	} else {
		kv_touch_buckets(&batch);
		kv_guess_words(&batch);
		kv_touch_items(&batch);
	}
	kv_execute_batch(&batch);
	kv_cleanup(batch.store, batch.store->appended - batch.appended, end->queue);

	kv_finish_here(end, batch.store);
	batch.store->batches++;
	batch.store->requests += end->queue->requests_here;
	batch.store->buckets = KV_DPU_BUCKETS;
	batch.store->log_bytes = KV_DPU_LOG_BYTES;
	batch.store->short_lines = KV_DPU_SHORT_LINES;
	kv_store_release(batch.store);
	return 0;
}

/* Note what the processed batch takes, as an engine would. */
static __always_inline void kv_finish_here(const struct kv_dpu_end *end, const struct kv_dpu_store *store)
{
	struct kv_answer_entry *answer = &end->pair->answers[end->queue->published & KV_BATCH_MASK];
	struct kv_parked_batch *parked = kv_next_batch(end).parked;
	__u32 request_count = end->queue->requests_here;

	answer->wire_bytes = store->wire_bytes;
	answer->first_record = end->queue->records_taken;
	parked->count = request_count;
	parked->body_records = KV_BATCH_MAX - request_count + KV_VALUE_RECORDS(store->values_bytes);
}

/* ---- Ahead of time ---- */

/* Return the index without the verifier knowing it; otherwise it walks the rest of the program once per value. */
static __always_inline __u32 kv_unknown_index(const struct kv_batch *batch, __u32 index)
{
	index += KV_UNKNOWN_ZERO(batch->queue);
	KV_OPAQUE(index);
	return index & (KV_BATCH_MAX - 1);
}

/* Load a word of every short key's line, and of every long key's bucket, ahead of its use. */
static __always_inline void kv_touch_lines(const struct kv_batch *batch)
{
	int i;

	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX; i++) {
		const struct kv_request *request = &batch->requests[i];

		if (i >= kv_request_count(batch))
			break;
		if (KV_HEADER_KEY_BYTES(request->header) <= KV_INLINE_MAX) {
			struct kv_short_line *line = kv_short_line_at(kv_short_home(batch->store, request->key_hash));

			if (line)
				KV_TOUCH(line->items[0].key);
		} else {
			struct kv_line *line = kv_line_of(batch->store, kv_bucket_of(request->key_hash), 0);

			if (line)
				KV_TOUCH(line->words[0]);
		}
	}
}

/* Load a word of every request's bucket ahead of its use. */
static __always_inline void kv_touch_buckets(const struct kv_batch *batch)
{
	int i;

	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX; i++) {
		struct kv_line *line;

		if (i >= kv_request_count(batch))
			break;
		line = kv_line_of(batch->store, kv_bucket_of(batch->requests[i].key_hash), 0);
		if (line)
			KV_TOUCH(line->words[0]);
	}
}

/*
 * Guess each item's word in the index and keep it in the response's value; it is valid until the batch appends an item.
 * Guessing and touching are two loops, so that many loads fit into the processor's out-of-order window.
 */
static __always_inline void kv_guess_words(const struct kv_batch *batch)
{
	int i;

	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX; i++) {
		struct kv_line *line;
		__u64 key_hash;
		__u32 index;

		if (i >= kv_request_count(batch))
			break;
		index = kv_unknown_index(batch, i);
		key_hash = batch->requests[index].key_hash;
		line = kv_line_of(batch->store, kv_bucket_of(key_hash), 0);
		if (!line)
			break;
		batch->responses[index].value = kv_guess_word(line, kv_tag_of(key_hash));
	}
}

/* Load a word of every item that was guessed ahead of its use. */
static __always_inline void kv_touch_items(const struct kv_batch *batch)
{
	int i;

	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX; i++) {
		struct kv_item *item;

		if (i >= kv_request_count(batch))
			break;
		item = kv_item_of(batch->store, batch->responses[kv_unknown_index(batch, i)].value);
		if (item)
			KV_TOUCH(item->key_hash);
	}
}

/* ---- Execution ---- */

_Static_assert((KV_OPS_THAT_READ >> KV_OP_GET & 1) == (KV_OP_GET & 1) &&
		       (KV_OPS_THAT_READ >> KV_OP_SET & 1) == (KV_OP_SET & 1),
	       "kv_execute_short() takes the lowest bit of these two codes for the column \"reads\"");

static __always_inline int kv_execute_short(struct kv_batch *batch, const struct kv_request *request,
					    struct kv_response *response);

static __always_inline void kv_execute_batch(struct kv_batch *batch)
{
	int i;

	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX; i++) {
		const struct kv_request *request = &batch->requests[i];
		struct kv_response *response = &batch->responses[i];
		__u64 header;

		if (i >= kv_request_count(batch))
			break;
		if (kv_execute_short(batch, request, response))
			continue;
		batch->room = kv_room_for_next(batch->store->wire_bytes, kv_request_count(batch) - 1 - i,
					       KV_RESPONSE_BYTES_MAX);
		header = kv_execute(batch, request, response);
		response->header = header;
		batch->store->wire_bytes += kv_response_wire_bytes(header);
	}
}

static __always_inline __u64 *kv_guessed_value(const struct kv_batch *batch, const struct kv_request *request,
					       const struct kv_response *response);
static __always_inline __u64 *kv_value_in_line(const struct kv_batch *batch, const struct kv_request *request);

/*
 * Execute the common case: a GET, or a SET in place, of an 8/8 item that kv_guess_words() found, or that lies in its
 * home line. Return 1, or 0 for any other case, with nothing done.
 */
static __always_inline int kv_execute_short(struct kv_batch *batch, const struct kv_request *request,
					    struct kv_response *response)
{
	struct kv_dpu_store *store = batch->store;
	__u64 header = request->header;
	__u64 *value;

	if (header != KV_HEADER(KV_OP_GET, 0, 8, 0) && header != KV_HEADER(KV_OP_SET, 0, 8, 8))
		return 0;
	if (kv_is_rejected(batch, request->key_hash, header & 1)) /* of these two, GET reads, and its code is odd */
		return 0;
	if (KV_DPU_SHORT_LINES)
		value = kv_value_in_line(batch, request);
	else
		value = kv_guessed_value(batch, request, response);
	if (!value)
		return 0;
	if (header == KV_HEADER(KV_OP_GET, 0, 8, 0)) {
		store->counts.gets++;
		store->get_found++;
		response->value = *value;
		response->header = KV_HEADER(KV_OP_GET, KV_SUCCESS, 0, 8);
		batch->store->wire_bytes += KV_INLINE_REPLY_BYTES;
	} else {
		store->counts.sets++;
		store->set_inplace++;
		*value = request->value;
		response->value = 0;
		response->header = KV_HEADER(KV_OP_SET, KV_SUCCESS, 0, 0);
		batch->store->wire_bytes += KV_ITEM_HEADER_BYTES;
	}
	return 1;
}

/* Return the value of the 8/8 item that kv_guess_words() found, or NULL if it is not the request's. */
static __always_inline __u64 *kv_guessed_value(const struct kv_batch *batch, const struct kv_request *request,
					       const struct kv_response *response)
{
	const struct kv_dpu_store *store = batch->store;
	__u64 word = response->value;
	struct kv_item *item;

	if (store->appended != batch->appended)
		return 0;
	item = kv_item_of(batch->store, word);
	if (!item || word == 0 || kv_distance(store, word) > KV_DPU_LOG_BYTES)
		return 0;
	if (item->key_hash != request->key_hash || item->words[0] != request->key ||
	    item->kv_length != (8u << KV_LENGTH_KEY_SHIFT | 8))
		return 0;
	return &item->words[1];
}

/* Return the value of the request's 8/8 item in its home line, or NULL if there is none. */
static __always_inline __u64 *kv_value_in_line(const struct kv_batch *batch, const struct kv_request *request)
{
	struct kv_short_line *line = kv_short_line_at(kv_short_home(batch->store, request->key_hash));
	__u64 way;

	if (!line)
		return 0;
	way = kv_short_match(batch->store, line, request->key, 8, 0) - 1;
	KV_OPAQUE(way);
	if (way >= KV_SHORT_ITEMS || KV_SHORT_VALUE_BYTES(line->lengths[way]) != 8)
		return 0;
	return &line->items[way].value;
}

static __always_inline void kv_take_key(const struct kv_batch *batch, const struct kv_request *request,
					struct kv_key *key);
static __always_inline const __u8 *kv_long_key_of(const struct kv_batch *batch, const struct kv_request *request);
static __always_inline int kv_is_in_lines(struct kv_batch *batch, const struct kv_request *request);
static __always_inline __u64 kv_finish_in_line(struct kv_batch *batch, const struct kv_request *request,
					       struct kv_response *response);
static __always_inline __u64 kv_finish_set_with_lines(struct kv_batch *batch, const struct kv_request *request,
						      struct kv_key *key);
static __always_inline __u64 kv_finish_set(struct kv_batch *batch, const struct kv_request *request,
					   const struct kv_key *key);
static __always_inline __u64 kv_finish_found(struct kv_batch *batch, const struct kv_request *request,
					     struct kv_response *response, const struct kv_key *key);

/* semantics.h says what this does. */
static __always_inline __u64 kv_execute_on_key(struct kv_batch *batch, const struct kv_request *request,
					       struct kv_response *response)
{
	struct kv_dpu_store *store = batch->store;
	__u64 header;
	struct kv_key key;
	__u32 operation, refusal;

	kv_take_key(batch, request, &key);
	header = KV_READ_ONCE(request->header);
	refusal = kv_refuse(batch, KV_HEADER_OPERATION(header), header, &batch->room, KV_RESPONSE_BYTES_MAX);
	if (refusal)
		return KV_HEADER(KV_HEADER_OPERATION(header), refusal, 0, 0);
	/*
	 * Read the header again, here and below: the verifier would carry what the branches above taught it through the
	 * rest.
	 */
	key.bytes = KV_HEADER_KEY_BYTES(KV_READ_ONCE(request->header));
	if (kv_is_in_lines(batch, request))
		return kv_finish_in_line(batch, request, response);
	key.bytes = KV_HEADER_KEY_BYTES(KV_READ_ONCE(request->header));
	kv_find(store, &key);
	if (key.bytes > KV_INLINE_MAX && kv_place_is_own(store)) {
		const struct kv_item *item = kv_item_of(batch->store, kv_place_word(store));

		if (item)
			store->place_own = kv_rest_is_equal(item, kv_long_key_of(batch, request), key.bytes);
	}
	key.bytes = KV_HEADER_KEY_BYTES(KV_READ_ONCE(request->header));
	operation = KV_HEADER_OPERATION(KV_READ_ONCE(request->header));
	if (!kv_operation_is_in(KV_OPS_THAT_STORE, operation))
		return kv_finish_found(batch, request, response, &key);
	if (!KV_DPU_SHORT_LINES)
		return kv_finish_set(batch, request, &key);
	return kv_finish_set_with_lines(batch, request, &key);
}

static __always_inline int kv_is_rejected(const struct kv_batch *batch, __u64 key_hash, __u32 reads)
{
	const struct kv_partition_table *table;
	__u32 partitions, partition;

	if (KV_ENGINES == 1)
		return 0;
	table = kv_partition_table_at(0);
	if (!table || kv_mode_allows(table, reads))
		return 0;
	partitions = KV_READ_ONCE(table->partitions);
	if (partitions == 0 || partitions > KV_PARTITIONS_MAX)
		return 1;
	partition = KV_PARTITION(key_hash, partitions);
	KV_OPAQUE(partition);
	return table->owner[partition & (KV_PARTITIONS_MAX - 1)] != batch->engine;
}

static __always_inline struct kv_operation_counts *kv_counts_of(struct kv_batch *batch)
{
	return &batch->store->counts;
}

static __always_inline const struct kv_partition_table *kv_partitions_of(const struct kv_batch *batch)
{
	return kv_partition_table_at(0);
}

/*
 * To the batch a RESET looks like KV_CLEANUP_BUCKETS appended items: no guess holds any more, and the cleanup goes on,
 * also where the next RESET has to wait for it.
 */
static __always_inline __u32 kv_forget_items(struct kv_batch *batch)
{
	batch->appended -= KV_CLEANUP_BUCKETS;
	return kv_forget_all(batch->store) ? KV_SUCCESS : KV_NOT_PROCESSED;
}

/* Fill in `key` from the request: the key's bytes are in the record or in the packet's body. */
static __always_inline void kv_take_key(const struct kv_batch *batch, const struct kv_request *request,
					struct kv_key *key)
{
	key->hash = request->key_hash;
	key->bytes = KV_HEADER_KEY_BYTES(request->header);
	key->first_word = request->key;
	if (key->bytes > KV_INLINE_MAX)
		key->first_word = *(const __u64 *)kv_long_key_of(batch, request);
}

/* Return where a long key lies in the packet's body. */
static __always_inline const __u8 *kv_long_key_of(const struct kv_batch *batch, const struct kv_request *request)
{
	return kv_body_of(batch) + (request->key & KV_BODY_MASK);
}

/* ---- GET, TEST, DELETE, INCREMENT ---- */

_Static_assert(KV_MISSING_GET == KV_MISSING_TEST && KV_MISSING_GET == KV_MISSING_DELETE &&
		       KV_MISSING_GET == KV_MISSING_INCREMENT,
	       "one answer for a key that is not there");
_Static_assert(KV_PRESENT_TEST == KV_PRESENT_DELETE, "one answer for a key that is there");

static __always_inline void kv_count_found(struct kv_dpu_store *store, __u32 operation, __u32 is_missing);
static __always_inline __u64 kv_finish_get(struct kv_batch *batch, struct kv_response *response,
					   const struct kv_key *key, const __u8 *segment, __u64 word);
static __always_inline __u64 kv_finish_increment(struct kv_batch *batch, const struct kv_request *request,
						 struct kv_response *response, const struct kv_key *key, __u8 *segment,
						 __u64 word);
static __always_inline __u32 kv_value_offset(const struct kv_key *key, __u64 word);

/* Execute GET, TEST, DELETE or INCREMENT on the item that kv_find() found, if any. Return the header word. */
static __always_inline __u64 kv_finish_found(struct kv_batch *batch, const struct kv_request *request,
					     struct kv_response *response, const struct kv_key *key)
{
	__u32 operation = KV_HEADER_OPERATION(KV_READ_ONCE(request->header));
	__u64 word = kv_place_word(batch->store);
	__u8 *segment;

	segment = kv_place_is_own(batch->store) ? kv_segment_of(batch->store, word) : 0;
	if (!segment) {
		kv_count_found(batch->store, operation, 1);
		return KV_HEADER(operation, KV_MISSING_GET, 0, 0);
	}
	kv_count_found(batch->store, operation, 0);
	if (operation == KV_OP_GET)
		return kv_finish_get(batch, response, key, segment, word);
	if (operation == KV_OP_INCREMENT)
		return kv_finish_increment(batch, request, response, key, segment, word);
	if (operation == KV_OP_DELETE) {
		/* Invalidate guesses of later requests in this batch: no key has a length of 0. */
		((struct kv_item *)(segment + (word & KV_SEGMENT_MASK)))->kv_length = 0;
		kv_remove_word(batch->store, request->key_hash);
	}
	return KV_HEADER(operation, KV_PRESENT_TEST, 0, 0);
}

/* Count in one of get_found ... increment_notfound, which are in the order of the operations' codes. */
static __always_inline void kv_count_found(struct kv_dpu_store *store, __u32 operation, __u32 is_missing)
{
	__u32 index = (operation - KV_OP_GET) * 2 + is_missing;
	__u64 *counters = &store->get_found;

	_Static_assert(offsetof(struct kv_dpu_store, increment_notfound) ==
			       offsetof(struct kv_dpu_store, get_found) +
				       ((KV_OP_INCREMENT - KV_OP_GET) * 2 + 1) * sizeof(__u64),
		       "two counters for each operation");
	KV_OPAQUE(index);
	counters[index & 7]++;
}

/* Return the offset of an item's value in its segment. */
static __always_inline __u32 kv_value_offset(const struct kv_key *key, __u64 word)
{
	return ((__u32)word + sizeof(struct kv_item) + KV_ROUNDUP8(key->bytes)) & KV_SEGMENT_MASK;
}

/* Copy the item's value into the response or behind the responses, if there is room. Return the header word. */
static __always_inline __u64 kv_finish_get(struct kv_batch *batch, struct kv_response *response,
					   const struct kv_key *key, const __u8 *segment, __u64 word)
{
	__u32 room = kv_room_for_value(batch->room);
	__u32 value_offset, value_bytes, values_offset;

	value_bytes = ((const struct kv_item *)(segment + (word & KV_SEGMENT_MASK)))->kv_length & KV_OFFSET_MASK;
	if (value_bytes > room)
		return KV_HEADER(KV_OP_GET, KV_INSUFFICIENT_SPACE, 0, 0);
	value_offset = kv_value_offset(key, word);
	if (value_bytes <= KV_INLINE_MAX) {
		if (value_bytes)
			response->value = *(const __u64 *)(segment + value_offset);
		return KV_HEADER(KV_OP_GET, KV_SUCCESS, 0, value_bytes);
	}
	values_offset = batch->store->values_bytes & KV_BODY_MASK;
	response->value = values_offset;
	batch->store->values_bytes = values_offset + KV_ROUNDUP8(value_bytes);
	*(__u64 *)(kv_values_of(batch) + ((batch->store->values_bytes - 8) & KV_BODY_MASK)) = 0; /* the padding */
	kv_copy(kv_values_of(batch) + values_offset, value_bytes, segment + value_offset);
	return KV_HEADER(KV_OP_GET, KV_SUCCESS, 0, value_bytes);
}

/* Add to the item's value in place, if it has KV_NUMBER_BYTES. Return the header word. */
static __always_inline __u64 kv_finish_increment(struct kv_batch *batch, const struct kv_request *request,
						 struct kv_response *response, const struct kv_key *key, __u8 *segment,
						 __u64 word)
{
	__u64 *value = (__u64 *)(segment + kv_value_offset(key, word));
	__u64 increment = request->value;

	if ((((const struct kv_item *)(segment + (word & KV_SEGMENT_MASK)))->kv_length & KV_LENGTH_VALUE_MASK) !=
	    KV_NUMBER_BYTES)
		return KV_HEADER(KV_OP_INCREMENT, KV_ERROR, 0, 0);
	if (key->bytes > KV_INLINE_MAX) /* see kv_parse_item() */
		increment = *(const __u64 *)(kv_body_of(batch) + (increment & KV_BODY_MASK));
	*value += increment;
	response->value = *value;
	return KV_HEADER(KV_OP_INCREMENT, KV_PRESENT_INCREMENT, 0, KV_NUMBER_BYTES);
}

/* ---- Short keys of an inline store ---- */

/*
 * Look for a short key in its lines. Return whether the request is finished there: a long value leaves them. A request
 * that stores a long value always looks into the index first, because that look-up keeps the items of one tag few.
 */
static __always_inline int kv_is_in_lines(struct kv_batch *batch, const struct kv_request *request)
{
	struct kv_dpu_store *store = batch->store;

	if (!KV_DPU_SHORT_LINES)
		return 0;
	KV_WRITE_ONCE(store->short_way, 0);
	KV_WRITE_ONCE(store->had_long, 1);
	if (KV_HEADER_KEY_BYTES(KV_READ_ONCE(request->header)) > KV_INLINE_MAX)
		return 0;
	kv_find_short(store, request);
	KV_WRITE_ONCE(store->had_long,
		      store->had_long |
			      kv_is_below(KV_INLINE_MAX, KV_HEADER_VALUE_BYTES(KV_READ_ONCE(request->header))));
	if (!kv_short_is_found(store))
		return 0;
	return KV_HEADER_OPERATION(KV_READ_ONCE(request->header)) != KV_OP_SET ||
	       KV_HEADER_VALUE_BYTES(KV_READ_ONCE(request->header)) <= KV_INLINE_MAX;
}

/* Execute an operation on the item that kv_find_short() found. Return the header word. */
static __always_inline __u64 kv_finish_in_line(struct kv_batch *batch, const struct kv_request *request,
					       struct kv_response *response)
{
	__u32 operation = KV_HEADER_OPERATION(KV_READ_ONCE(request->header));
	__u64 value_bytes = KV_HEADER_VALUE_BYTES(KV_READ_ONCE(request->header));
	struct kv_dpu_store *store = batch->store;
	struct kv_short_line *line;
	__u64 way;

	line = kv_short_place(store, &way);
	if (!line)
		return KV_HEADER(operation, KV_ERROR, 0, 0);
	if (operation == KV_OP_ADD) {
		if (value_bytes > KV_VALUE_MAX) {
			store->set_refused++;
			return KV_HEADER(KV_OP_ADD, KV_INSUFFICIENT_SPACE, 0, 0);
		}
		store->set_nooverwrite++;
		return KV_HEADER(KV_OP_ADD, KV_PRESENT_ADD, 0, 0);
	}
	if (operation == KV_OP_SET) {
		store->set_inplace++;
		line->items[way].value = request->value;
		line->lengths[way] = (line->lengths[way] & ~KV_SHORT_LENGTHS(0u, 15u, 0u)) |
				     KV_SHORT_LENGTHS(0u, value_bytes & 15, 0u);
		return KV_HEADER(KV_OP_SET, KV_SUCCESS, 0, 0);
	}
	kv_count_found(store, operation, 0);
	value_bytes = KV_SHORT_VALUE_BYTES(line->lengths[way]);
	if (operation == KV_OP_GET) {
		response->value = line->items[way].value;
		return KV_HEADER(KV_OP_GET, KV_SUCCESS, 0, value_bytes);
	}
	if (operation == KV_OP_INCREMENT) {
		if (value_bytes != KV_NUMBER_BYTES)
			return KV_HEADER(KV_OP_INCREMENT, KV_ERROR, 0, 0);
		line->items[way].value += request->value;
		response->value = line->items[way].value;
		return KV_HEADER(KV_OP_INCREMENT, KV_PRESENT_INCREMENT, 0, KV_NUMBER_BYTES);
	}
	if (operation == KV_OP_DELETE)
		kv_clear_short(store);
	return KV_HEADER(operation, KV_PRESENT_TEST, 0, 0);
}

static __always_inline __u64 kv_finish_short_set(struct kv_batch *batch, const struct kv_request *request,
						 const struct kv_key *key);

/*
 * SET or ADD that kv_finish_in_line() has not finished: a short item goes into a line, all others into the log. Return
 * the header word.
 */
static __always_inline __u64 kv_finish_set_with_lines(struct kv_batch *batch, const struct kv_request *request,
						      struct kv_key *key)
{
	__u32 value_bytes = KV_HEADER_VALUE_BYTES(KV_READ_ONCE(request->header));
	struct kv_dpu_store *store = batch->store;
	__u64 header, set_new, is_new;

	if (key->bytes <= KV_INLINE_MAX && value_bytes <= KV_INLINE_MAX)
		return kv_finish_short_set(batch, request, key);
	if (key->bytes <= KV_INLINE_MAX)
		kv_mark_long(store);
	key->bytes = KV_HEADER_KEY_BYTES(KV_READ_ONCE(request->header));
	set_new = store->set_new;
	header = kv_finish_set(batch, request, key);
	if (header != KV_HEADER(KV_OP_SET, KV_SUCCESS, 0, 0) || !kv_short_is_found(store))
		return header;
	/* The key's value was short: moved, and not new. One that has replaced another key stays counted as that. */
	kv_clear_short(store);
	is_new = store->set_new - set_new;
	store->set_new = set_new;
	store->set_moved += is_new;
	store->cleanup += 1 - is_new;
	return header;
}

/* SET or ADD of a short item that is in no line. Return the header word. */
static __always_inline __u64 kv_finish_short_set(struct kv_batch *batch, const struct kv_request *request,
						 const struct kv_key *key)
{
	__u32 operation = KV_HEADER_OPERATION(KV_READ_ONCE(request->header));
	struct kv_dpu_store *store = batch->store;

	if (kv_place_is_own(store)) { /* its value in the log is long */
		if (operation == KV_OP_ADD) {
			store->set_nooverwrite++;
			return KV_HEADER(KV_OP_ADD, KV_PRESENT_ADD, 0, 0);
		}
		kv_remove_word(store, key->hash);
	}
	kv_put_short(store, request, kv_place_is_own(store) & 1);
	return KV_HEADER(operation, KV_SUCCESS, 0, 0);
}

/* ---- SET and ADD ---- */

static __always_inline __u64 kv_new_item(struct kv_batch *batch, const struct kv_request *request,
					 const struct kv_key *key, __u32 capacity);

/*
 * Overwrite the item in place if it has room, else append a new one; ADD leaves it unchanged. Return the header word.
 */
static __always_inline __u64 kv_finish_set(struct kv_batch *batch, const struct kv_request *request,
					   const struct kv_key *key)
{
	__u32 operation = KV_HEADER_OPERATION(KV_READ_ONCE(request->header));
	__u32 value_bytes = KV_HEADER_VALUE_BYTES(KV_READ_ONCE(request->header)) & KV_OFFSET_MASK;
	__u32 capacity = KV_ROUNDUP8(value_bytes + kv_is_below(value_bytes, 1));
	__u64 word = kv_place_word(batch->store);
	struct kv_item *item;
	__u32 value_offset;
	__u8 *segment;

	if (value_bytes > KV_VALUE_MAX) {
		batch->store->set_refused++;
		return KV_HEADER(operation, KV_INSUFFICIENT_SPACE, 0, 0);
	}
	if (operation == KV_OP_ADD && kv_place_is_own(batch->store)) {
		batch->store->set_nooverwrite++;
		return KV_HEADER(KV_OP_ADD, KV_PRESENT_ADD, 0, 0);
	}
	item = kv_place_is_own(batch->store) ? kv_item_of(batch->store, word) : 0;
	if (item && value_bytes <= item->value_capacity)
		batch->store->set_inplace++;
	else
		word = kv_new_item(batch, request, key, capacity);
	segment = kv_segment_of(batch->store, word);
	if (!segment)
		return KV_HEADER(operation, KV_INSUFFICIENT_SPACE, 0, 0);
	item = (struct kv_item *)(segment + (word & KV_SEGMENT_MASK));
	item->kv_length = key->bytes << KV_LENGTH_KEY_SHIFT | value_bytes;
	value_offset = kv_value_offset(key, word);
	if (value_bytes <= KV_INLINE_MAX && key->bytes <= KV_INLINE_MAX) {
		*(__u64 *)(segment + value_offset) = request->value;
		return KV_HEADER(operation, KV_SUCCESS, 0, 0);
	}
	*(__u64 *)(segment + ((value_offset + capacity - 8) & KV_SEGMENT_MASK)) = 0; /* the padding */
	kv_copy(segment + value_offset, value_bytes, kv_body_of(batch) + (request->value & KV_BODY_MASK));
	return KV_HEADER(operation, KV_SUCCESS, 0, 0);
}

/* Append an item with this key and no value yet, and enter it in the index. Return its word. */
static __always_inline __u64 kv_new_item(struct kv_batch *batch, const struct kv_request *request,
					 const struct kv_key *key, __u32 capacity)
{
	struct kv_dpu_store *store = batch->store;
	__u32 entry_bytes = sizeof(struct kv_item) + KV_ROUNDUP8(key->bytes) + capacity;
	__u64 word = kv_append(store, entry_bytes) | kv_tag_of(key->hash) << KV_LOG_OFFSET_BITS;
	__u64 *index_word;
	__u8 *segment;
	struct kv_item *item;
	__u32 way = kv_place_way(store);

	if (kv_place_is_own(store))
		store->set_moved++;
	else if (kv_place_word(store))
		store->set_evicted++;
	else
		way = kv_way_for_new(store, key->hash);
	way = KV_UNKNOWN(store, way);
	KV_OPAQUE(way);
	way &= KV_WAY_MASK;
	index_word = kv_way_of(batch->store, kv_bucket_of(key->hash), way);
	segment = kv_segment_of(batch->store, word);
	if (!index_word || !segment)
		return word;
	*index_word = word;
	item = (struct kv_item *)(segment + (word & KV_SEGMENT_MASK));
	item->value_capacity = capacity;
	item->key_hash = key->hash;
	item->words[0] = key->first_word;
	if (key->bytes > KV_INLINE_MAX) {
		__u32 key_room = KV_ROUNDUP8(key->bytes);

		*(__u64 *)(segment + (((__u32)word + sizeof(*item) + key_room - 8) & KV_SEGMENT_MASK)) = 0;
		kv_copy(segment + (((__u32)word + sizeof(*item)) & KV_SEGMENT_MASK), key->bytes,
			kv_long_key_of(batch, request));
	}
	return word;
}

#endif
