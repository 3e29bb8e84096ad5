// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * kv_load.c - the load generator: kv_generate sends prepared frames (BPF_PROG_RUN with live frames, one long call), and
 * kv_collect, an XDP program on the client's interface, checks every answer and times it.
 *
 * The loader sets with -D: KV_TEMPLATES (prepared frames) and KV_TEMPLATE_ROOM (bytes for each); when it loads the
 * programs: KV_PORT and KV_PORT_COUNT (the server's UDP ports).
 */
#include "abi/limits.h"
#include "abi/load.h"
#include "abi/wire_mica2.h"
#include "base/side.h"

#define KV_OFFSET_MASK 0xfffu
#define KV_WINDOW_MASK (KV_WINDOW_MAX - 1)
#define KV_TEMPLATES_AHEAD 2	  /* templates between the prefetch of one and its sending */
#define KV_IDLE_TURNS_TO_CLOCK 64 /* idle turns between two searches for time-outs */

/* struct kv_template with its frame cut to KV_TEMPLATE_ROOM bytes: less memory means fewer cache misses. */
enum { KV_TEMPLATE_BYTES = offsetof(struct kv_template, frame) + KV_TEMPLATE_ROOM };
struct kv_template_bytes {
	__u8 bytes[KV_TEMPLATE_BYTES];
};
BPF_F_TABLE("array", __u32, struct kv_template_bytes, kv_templates, KV_TEMPLATES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct kv_load_control, kv_load_control, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct kv_load_cursor, kv_load_cursor, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct kv_load_slot, kv_load_slots, KV_WINDOW_MAX, BPF_F_MMAPABLE);
BPF_PERCPU_ARRAY(kv_load_results, struct kv_load_results, 1);

/* Return the slot for the next packet, or NULL while the window is full. */
static __always_inline struct kv_load_slot *kv_next_slot(const struct kv_load_control *control,
							 struct kv_load_cursor *cursor, __u32 *slot_index);

static __always_inline void kv_touch_ahead(const struct kv_load_control *control, const struct kv_load_cursor *cursor);

/* Live-frame entry point: send one frame per call, or return XDP_DROP while there is nothing to send. */
int kv_generate(struct xdp_md *ctx)
{
	struct kv_load_control *control;
	struct kv_load_cursor *cursor;
	struct kv_template *template;
	struct kv_load_slot *slot;
	__u32 zero = 0, slot_index, template_index, frame_bytes_now, opaque;
	__u64 now_ns, start_ns, frame_bytes;

	control = kv_load_control.lookup(&zero);
	cursor = kv_load_cursor.lookup(&zero);
	if (!control || !cursor)
		return XDP_ABORTED;
	if (KV_READ_ONCE(control->state) != KV_LOAD_RUNNING)
		return XDP_DROP;
	if (control->packets_limit && cursor->packets_sent >= control->packets_limit)
		return XDP_DROP;
	slot = kv_next_slot(control, cursor, &slot_index);
	if (!slot)
		return XDP_DROP;
	template_index = control->template_first + cursor->template_next;
	template = (struct kv_template *)kv_templates.lookup(&template_index);
	if (!template)
		return XDP_ABORTED;

	now_ns = bpf_ktime_get_ns();
	start_ns = now_ns;
	if (control->open_loop) {
		if (cursor->next_start_ns == 0)
			cursor->next_start_ns = now_ns;
		start_ns = cursor->next_start_ns;
		if (now_ns < start_ns)
			return XDP_DROP;
		cursor->next_start_ns = start_ns + template->gap_ns;
	}

	frame_bytes = kv_copy_bytes(template->frame_bytes, KV_OFFSET_MASK);
	if (frame_bytes > KV_TEMPLATE_ROOM)
		return XDP_ABORTED;
	KV_OPAQUE(frame_bytes); /* before Linux 6.11 the verifier learns neither bound from a merged comparison */
	if (frame_bytes < KV_PACKET_HEADER_BYTES + KV_ITEM_HEADER_BYTES)
		return XDP_ABORTED;
	/*
	 * Live frames start longer than any template (KV_LIVE_FRAME_MAX, an odd number) and are cut here. The kernel
	 * reuses their pages without resetting the length that the server's adjust_tail left there, and sets it anew
	 * only when this program has changed it; and shrinking, unlike growing, clears no memory.
	 */
	frame_bytes_now = ctx->data_end - ctx->data;
	KV_OPAQUE(frame_bytes_now); /* else "pointer arithmetic on pkt_end prohibited": clang reorders the sum */
	if (bpf_xdp_adjust_tail(ctx, (int)(frame_bytes - frame_bytes_now)) ||
	    bpf_xdp_store_bytes(ctx, 0, template->frame, frame_bytes))
		return XDP_ABORTED;
	slot->epoch++;
	opaque = slot_index << 16 | slot->epoch;
	if (bpf_xdp_store_bytes(ctx, KV_PACKET_HEADER_BYTES + offsetof(struct kv_item_header, opaque), &opaque,
				sizeof(opaque)))
		return XDP_ABORTED;
	slot->start_ns = start_ns;
	slot->template_index = template_index;
	slot->busy = 1;

	cursor->packets_sent++;
	cursor->requests_sent += template->request_count;
	cursor->bytes_sent += frame_bytes;
	cursor->template_next = cursor->template_next + 1 < control->template_count ? cursor->template_next + 1 : 0;
	cursor->slot = slot_index + 1;
	cursor->idle_turns = 0;
	kv_touch_ahead(control, cursor);
	return XDP_TX;
}

/*
 * Prefetch a template. The templates take many megabytes: loading all lines of one at the same time costs one cache
 * miss instead of one per line. Most templates fill their room.
 */
static __always_inline void kv_touch_ahead(const struct kv_load_control *control, const struct kv_load_cursor *cursor)
{
	__u32 ahead = cursor->template_next + KV_TEMPLATES_AHEAD;
	__u32 template_index = control->template_first + (ahead < control->template_count ? ahead : 0);
	struct kv_template_bytes *template = kv_templates.lookup(&template_index);
	__u32 offset;

	if (!template)
		return;
#pragma clang loop unroll(full)
	for (offset = 0; offset < KV_TEMPLATE_BYTES - 8; offset += KV_CACHE_LINE_BYTES)
		KV_TOUCH(*(__u64 *)&template->bytes[offset]);
}

/* Give up a packet that has been outstanding for too long. Return 1 if its slot is free now. */
static __always_inline int kv_expire(const struct kv_load_control *control, struct kv_load_cursor *cursor,
				     struct kv_load_slot *slot)
{
	__u64 now_ns = bpf_ktime_get_ns();
	__u32 template_index = slot->template_index;
	struct kv_template *template;

	if (now_ns < slot->start_ns + control->timeout_ns)
		return 0;
	template = (struct kv_template *)kv_templates.lookup(&template_index);
	if (!template)
		return 0;
	slot->busy = 0;
	cursor->lost_packets++;
	cursor->lost_requests += template->request_count;
	return 1;
}

static __always_inline struct kv_load_slot *kv_next_slot(const struct kv_load_control *control,
							 struct kv_load_cursor *cursor, __u32 *slot_index)
{
	__u32 index = cursor->slot < control->window ? cursor->slot : 0;
	__u32 next = index + 1 < control->window ? index + 1 : 0;
	struct kv_load_slot *slot, *next_slot;

	slot = kv_load_slots.lookup(&index);
	if (!slot)
		return NULL;
	*slot_index = index;
	if (!KV_READ_ONCE(slot->busy))
		return slot;
	/* Answers come nearly in order: a free slot behind a busy one means that the busy one's answer is late. */
	next_slot = kv_load_slots.lookup(&next);
	if (!next_slot)
		return NULL;
	if (!KV_READ_ONCE(next_slot->busy)) {
		if (kv_expire(control, cursor, slot))
			return slot;
		*slot_index = next;
		return next_slot;
	}
	if (++cursor->idle_turns % KV_IDLE_TURNS_TO_CLOCK == 0 && kv_expire(control, cursor, slot))
		return slot;
	return NULL;
}

/* Results of checking an answer. */
struct kv_answer {
	__u64 echo_sum; /* sum of the echoed hashes and opaques */
	__u32 responses;
	__u32 hits;
	__u32 misses;
	__u32 stored;
	__u32 corrupt;
	__u32 refused;
};

static __always_inline void kv_check_answer(struct xdp_md *ctx, const struct kv_load_control *control,
					    struct kv_answer *answer);

/* XDP entry point on the client's interface: check and time an answer, pass every other frame to the stack. */
int kv_collect(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct kv_packet_header *header = data;
	struct kv_item_header *first = (struct kv_item_header *)(header + 1);
	struct kv_load_control *control;
	struct kv_load_results *results;
	struct kv_template *template;
	struct kv_answer answer;
	struct kv_load_slot *slot;
	__u32 zero = 0, slot_index, template_index, first_opaque, bucket;
	__u64 latency_ns, opaque_sum;

	if ((void *)(first + 1) > data_end)
		return XDP_PASS;
	if (header->eth_type != bpf_htons(KV_ETHERTYPE_IPV4) || header->ip_protocol != KV_IP_PROTOCOL_UDP ||
	    (__u32)bpf_ntohs(header->udp_source_port) - KV_PORT >= KV_PORT_COUNT || header->magic != KV_MAGIC_RESPONSE)
		return XDP_PASS;
	control = kv_load_control.lookup(&zero);
	results = kv_load_results.lookup(&zero);
	if (!control || !results)
		return XDP_ABORTED;
	first_opaque = first->opaque;
	slot_index = first_opaque >> 16;
	slot = kv_load_slots.lookup(&slot_index);
	if (!slot || !slot->busy || slot->epoch != (__u16)first_opaque) {
		results->late++;
		return XDP_DROP;
	}
	template_index = slot->template_index;
	latency_ns = bpf_ktime_get_ns() - slot->start_ns;
	slot->busy = 0;
	template = (struct kv_template *)kv_templates.lookup(&template_index);
	if (!template)
		return XDP_ABORTED;

	kv_check_answer(ctx, control, &answer);
	/* Each answer must echo its hash and opaque: the first opaque is the packet's, the others count up from it. */
	opaque_sum = first_opaque + answer.responses * (answer.responses - 1) / 2;
	if (answer.responses != template->request_count || answer.echo_sum != template->hash_sum + opaque_sum)
		answer.corrupt += template->request_count;
	results->packets++;
	results->bytes += data_end - data;
	results->responses += answer.responses;
	results->hits += answer.hits;
	results->misses += answer.misses;
	results->stored += answer.stored;
	results->corrupt += answer.corrupt;
	results->refused += answer.refused;
	results->latency_sum_ns += latency_ns * answer.responses;
	if (latency_ns > results->latency_max_ns)
		results->latency_max_ns = latency_ns;
	bucket = kv_histogram_bucket(latency_ns);
	KV_OPAQUE(bucket);
	bucket &= KV_HISTOGRAM_BUCKETS - 1;
	results->latency[bucket] += answer.responses;
	return XDP_DROP;
}

/* Count an answer by its header word alone. Return whether a value must follow. */
static __always_inline int kv_sort_answer(__u64 header, struct kv_answer *answer)
{
	__u32 operation = KV_HEADER_OPERATION(header);
	__u32 result = KV_HEADER_RESULT(header);

	if (operation == KV_OP_GET && result == KV_SUCCESS) {
		answer->hits++;
		return 1;
	}
	if (header >> 32) /* only a GET's answer has a value */
		answer->corrupt++;
	else if (operation == KV_OP_GET && result == KV_NOT_FOUND)
		answer->misses++;
	else if (operation == KV_OP_SET && result == KV_SUCCESS)
		answer->stored++;
	else
		answer->refused++;
	return 0;
}

/*
 * Check answers whose values are one word. Return 1 if all are right, else 0: kv_check_long() then counts the errors. A
 * hit uses registers only: three sums and the offset.
 */
static __always_inline int kv_check_words(struct xdp_md *ctx, struct kv_answer *answer, __u32 offset)
{
	void *body = (void *)(long)ctx->data + KV_PACKET_HEADER_BYTES;
	void *data_end = (void *)(long)ctx->data_end;
	__u64 echo_sum = 0, wrong_bits = 0, place = offset, i;
	__u32 others = offset;

	KV_KEEP_LOOP
	for (i = 0; i < KV_BATCH_MAX; i++) {
		struct kv_item_header *item;
		__u64 key_hash, *value;

		KV_OPAQUE(place);
		place &= KV_OFFSET_MASK;
		item = body + place;
		value = (__u64 *)(item + 1);
		if ((void *)value > data_end)
			break;
		key_hash = item->key_hash;
		echo_sum += key_hash + item->opaque;
		place += KV_ITEM_HEADER_BYTES;
		if (*(__u64 *)item == KV_HEADER(KV_OP_GET, KV_SUCCESS, 0, 8) && (void *)(value + 1) <= data_end) {
			wrong_bits |= *value ^ KV_LOAD_VALUE_WORD(key_hash, 0);
			place += 8;
		} else if (kv_sort_answer(*(__u64 *)item, answer)) {
			return 0;
		} else {
			others++;
		}
	}
	answer->echo_sum = echo_sum;
	answer->responses = i;
	answer->hits = i - others;
	return !wrong_bits;
}

/*
 * Check values of any length. Each turn takes a header or one word of a value, so that one bounded loop covers a frame.
 */
static __always_inline void kv_check_long(struct xdp_md *ctx, const struct kv_load_control *control,
					  struct kv_answer *answer, __u32 offset)
{
	void *body = (void *)(long)ctx->data + KV_PACKET_HEADER_BYTES;
	void *data_end = (void *)(long)ctx->data_end;
	__u64 key_hash = 0, expected = 0;
	__u32 value_end = offset; /* end of the current value in the body, without padding; the next header follows */
	int turn;

	KV_KEEP_LOOP
	for (turn = 0; turn < KV_FRAME_MAX / 8; turn++) {
		__u64 *words;

		KV_OPAQUE(offset);
		offset &= KV_OFFSET_MASK;
		KV_OPAQUE(value_end);
		value_end &= KV_OFFSET_MASK;
		words = body + offset;
		if ((void *)(words + 1) > data_end)
			break;
		if (offset < value_end) {
			__u32 value_left = value_end - offset;

			expected += KV_LOAD_VALUE_SALT;
			answer->corrupt +=
				words[0] !=
				(value_left >= 8 ? key_hash ^ expected : KV_LOW_BYTES(key_hash ^ expected, value_left));
			offset += 8;
			continue;
		}
		if ((void *)(words + 3) > data_end)
			break;
		answer->responses++;
		key_hash = words[1];
		answer->echo_sum += key_hash + (__u32)words[2];
		expected = 0;
		offset += KV_ITEM_HEADER_BYTES;
		value_end = offset;
		if (kv_sort_answer(words[0], answer)) {
			value_end += control->value_bytes;
			answer->corrupt += words[0] >> 32 != control->value_bytes;
		}
	}
	answer->corrupt += offset < value_end;
}

/*
 * Set all counters to a zero that the verifier does not know. Before Linux 6.8 it walks all turns separately for each
 * mix of known counts ("BPF program is too large. Processed 1000001 insn").
 */
static __always_inline void kv_count_from(struct kv_answer *answer, __u32 zero)
{
	answer->echo_sum = zero;
	answer->responses = zero;
	answer->hits = zero;
	answer->misses = zero;
	answer->stored = zero;
	answer->corrupt = zero;
	answer->refused = zero;
}

static __always_inline void kv_check_answer(struct xdp_md *ctx, const struct kv_load_control *control,
					    struct kv_answer *answer)
{
	__u32 zero = KV_READ_ONCE(control->zero); /* unknown to the verifier, see KV_UNKNOWN_ZERO in side.h */

	kv_count_from(answer, zero);
	if (control->value_bytes == 8 && kv_check_words(ctx, answer, zero))
		return;
	kv_count_from(answer, zero);
	kv_check_long(ctx, control, answer, zero);
}
