/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * kv_abi.h - every byte that two parts of dpukv_xdp must agree on.
 *
 * The BPF programs (bcc), the native core (cc) and Python (cffi, and from it numpy and scapy) all read this file;
 * nothing in it is written a second time anywhere. All integers are little endian, as on the MICA2 wire, except the
 * Ethernet, IP and UDP fields, which are network order.
 *
 * Only enumerations, structures and KV_ASSERT may stand outside the "C only" part at the end: the rest is handed to
 * cffi's parser as it is.
 */
#ifndef KV_ABI_H
#define KV_ABI_H

#ifdef KV_ABI_CDEF /* cffi's parser knows no _Static_assert */
#define KV_ASSERT(condition)
#else
#include <linux/types.h> /* not <stdint.h>: bcc has none */
#define KV_ASSERT(condition) _Static_assert(condition, #condition)
#endif

/* ---- Limits ---- */

enum kv_limit {
	KV_KEY_MAX = 255,    /* bytes in a key; the wire gives the length one byte */
	KV_FRAME_MAX = 3520, /* bytes in an Ethernet frame with a batch: a page less what XDP keeps of it */
	KV_LIVE_FRAME_MAX =
		3367,	     /* bytes in a frame that BPF_PROG_RUN sends: the kernel keeps more of that page, Linux 6.1
				     up to 3368; odd, so that no batch is as long */
	KV_ITEM_MAX = 3440,  /* bytes of roundup8(key) + roundup8(value) that a frame of that size can carry */
	KV_VALUE_MAX = 3432, /* bytes in a value: an item's budget less the smallest key */
	KV_BATCH_MAX = 64,   /* requests in one batch, that is, in one packet */
	KV_SLOTS = 64,	     /* batches in flight in one queue pair; a power of two */
	KV_ROUND_REQUESTS = 256, /* that an engine takes of one queue pair in one round, and the rest of a batch */
	KV_INLINE_MAX = 8,	 /* bytes of key or value that travel inside a record */
	KV_PAYLOAD_BYTES = 8192, /* room beside the records of a slot for longer items: twice KV_FRAME_MAX, rounded up,
				     so that any masked offset plus any masked length stays inside */
	KV_PIPELINE_MAX = 32,	 /* deepest pipeline of parked batches */
	KV_ENGINES_MAX = 16,	 /* processing engines, each behind a UDP port of its own */
	KV_PARTITIONS_MAX = 256, /* parts of the key space, each owned by one engine */
	KV_OWNER_NONE = 255,	 /* in place of an engine: all reject the partition */
	KV_QUEUES_MAX = 64,	 /* receive queues of an interface that AF_XDP serves */
	KV_CPUS_MAX = 256,	 /* cores that may run the communication engine */
	KV_CALM_FRAMES = 64,	 /* frames without a flush before the pipeline grows by one */
	KV_CALM_FLUSH_FRAMES = 64,  /* a flush after so many frames without one says nothing about the depth */
	KV_CALM_FRAMES_MAX = 2048,  /* the same after many flushes */
	KV_WAIT_TURNS = 512,	    /* turns of the wait for a response before it looks at the clock in each */
	KV_WAIT_CLOCK_TURNS = 3500, /* turns with the clock, at most: the verifier allows 8192 jumps in sequence */
	KV_SLOWER_TURNS = 256,	    /* turns of an emulated slower core's pause, each about 20 ns */
	KV_WAIT_NS = 60000,	    /* longest wait for a response */
	KV_STALLED_WAITS = 4,	    /* waits that ran out in a row before nobody waits for that engine any more */
	KV_MEAN_SHIFT = 2,	    /* a running mean moves by 1/4 of the way to each new value */
	KV_STAGE_FRAMES = 61,	    /* one frame of so many has its stages timed; a prime: of any burst each in turn */
	KV_GAP_NS = 250,	    /* from the end of a frame to one that has been waiting: the driver's own work */
	KV_FITS_ALL = 4096,	    /* in kv_dpu_queue.fits: a wait would fit behind every frame */
	KV_FITS_SHIFT = 4,	    /* which moves by 1/16 of the way to each new value */
	KV_TEMPLATE_FRAME = 4096,   /* bytes for one prepared frame of the load generator */
	KV_WINDOW_MAX = 4096,	    /* packets the load generator keeps outstanding; a power of two */
	KV_HISTOGRAM_SUB_BITS = 5,  /* 2^5 buckets to each power of two: 3 % resolution */
	KV_HISTOGRAM_BUCKETS = 1024
};

/* ---- The wire: public MICA2 (its datagram protocol), exactly ---- */

enum kv_magic { KV_MAGIC_REQUEST = 0x78, KV_MAGIC_RESPONSE = 0x79 };

enum kv_operation {
	KV_OP_RESET = 0,
	KV_OP_NOOP_READ = 1,
	KV_OP_NOOP_WRITE = 2,
	KV_OP_ADD = 3,
	KV_OP_SET = 4,
	KV_OP_GET = 5,
	KV_OP_TEST = 6,
	KV_OP_DELETE = 7,
	KV_OP_INCREMENT = 8
};

enum kv_result {
	KV_SUCCESS = 0,
	KV_ERROR = 1,		   /* the request breaks a limit, for example an empty key */
	KV_INSUFFICIENT_SPACE = 2, /* the item is too large, or the value does not fit into this response packet */
	KV_EXISTS = 3,
	KV_NOT_FOUND = 4,
	KV_PARTIAL_VALUE = 5,
	KV_NOT_PROCESSED = 6,
	KV_NOT_SUPPORTED = 7, /* an operation that this server does not know */
	KV_TIMED_OUT = 8,     /* made by clients, never sent */
	KV_REJECTED = 9	      /* this endpoint does not own the key's partition */
};

enum kv_frame_constant {
	KV_ETHERTYPE_IPV4 = 0x0800,
	KV_ETHERTYPE_VLAN = 0x8100,
	KV_IP_VERSION_IHL = 0x45,
	KV_IP_TTL = 64,
	KV_IP_FRAGMENT_MASK = 0x3fff, /* more-fragments and the offset, not don't-fragment */
	KV_IP_PROTOCOL_UDP = 17
};

/* Everything before the requests: Ethernet, IPv4, UDP, batch header. Unaligned by nature: Ethernet takes 14 bytes. */
struct kv_packet_header {
	__u8 eth_destination[6];    /*  0 */
	__u8 eth_source[6];	    /*  6 */
	__u16 eth_type;		    /* 12, network order */
	__u8 ip_version_ihl;	    /* 14 */
	__u8 ip_tos;		    /* 15 */
	__u16 ip_total_length;	    /* 16, network order */
	__u16 ip_id;		    /* 18 */
	__u16 ip_fragment;	    /* 20, network order */
	__u8 ip_ttl;		    /* 22 */
	__u8 ip_protocol;	    /* 23 */
	__u16 ip_checksum;	    /* 24 */
	__u8 ip_source[4];	    /* 26 */
	__u8 ip_destination[4];	    /* 30 */
	__u16 udp_source_port;	    /* 34, network order */
	__u16 udp_destination_port; /* 36, network order */
	__u16 udp_length;	    /* 38, network order */
	__u16 udp_checksum;	    /* 40 */
	__u8 magic;		    /* 42, enum kv_magic */
	__u8 request_count;	    /* 43, informative: readers walk by length */
	__u8 reserved[4];	    /* 44, zero in responses */
};
KV_ASSERT(sizeof(struct kv_packet_header) == 48);

/*
 * Before each key and value. The first eight bytes, read as one word, are called the "header word"; the queue pair's
 * records begin with the same word.
 */
struct kv_item_header {
	__u8 operation;	 /*  0, enum kv_operation */
	__u8 result;	 /*  1, enum kv_result; 0 in requests */
	__u16 reserved0; /*  2, zero */
	__u32 kv_length; /*  4, value length in the low 24 bits, key length in the high 8 */
	__u64 key_hash;	 /*  8, CityHash64 of the key, computed by the client */
	__u32 opaque;	 /* 16, the client's own, echoed */
	__u32 reserved1; /* 20, zero in responses */
};
KV_ASSERT(sizeof(struct kv_item_header) == 24);

/*
 * Which engine owns which partition: (key_hash >> 48) % partitions, as MICA2 counts them. Written by Python, read by
 * every engine.
 */
struct kv_partition_table {
	__u32 partitions;	       /* 0, in use: 1 to KV_PARTITIONS_MAX */
	__u8 concurrent_read;	       /* 4, 1: any engine may read (CREW, CRCW); 0: the owner only (EREW) */
	__u8 concurrent_write;	       /* 5, 1: any engine may write (CRCW); 0: the owner only */
	__u8 reset_allowed;	       /* 6, 1: KV_OP_RESET empties the partitions that an engine owns */
	__u8 padding;		       /* 7 */
	__u8 owner[KV_PARTITIONS_MAX]; /* 8, engine of each partition, or KV_OWNER_NONE while it moves */
};
KV_ASSERT(sizeof(struct kv_partition_table) == 8 + KV_PARTITIONS_MAX);

/* ---- The queue pair ---- */

/* How requests get from XDP to the host. */
enum kv_transport {
	KV_TRANSPORT_RING = 0,	  /* struct kv_queue_pair, mapped by both */
	KV_TRANSPORT_RINGBUF = 1, /* a BPF ring buffer for each engine; responses still through the mapped pair */
	KV_TRANSPORT_AF_XDP = 2	  /* the frame itself, with records behind it or without, through a socket */
};

/*
 * A request as the processing engine sees it (the paper's Figure 8a): 32 bytes with key and value inside when both
 * are at most KV_INLINE_MAX bytes, zero padded. A longer key or value lies in the slot's payload instead, and its
 * field holds the offset there.
 */
struct kv_request {
	__u64 header;	/*  0, header word */
	__u64 key_hash; /*  8 */
	__u64 key;	/* 16 */
	__u64 value;	/* 24 */
};
KV_ASSERT(sizeof(struct kv_request) == 32);

/* A response: 16 bytes with the value inside when it is at most KV_INLINE_MAX bytes, else its offset in the payload. */
struct kv_response {
	__u64 header; /* 0, header word with result and value length filled in and key length 0 */
	__u64 value;  /* 8 */
};
KV_ASSERT(sizeof(struct kv_response) == 16);

/* One cache line, written by the communication engine only. Counters of batches; slot = counter % KV_SLOTS. */
struct kv_request_control {
	__u32 published;  /*  0, batches appended: the one store that hands over a batch */
	__u32 answered;	  /*  4, batches whose response has been taken */
	__u32 drain;	  /*  8, 1: have the sender let out all that is parked */
	__u8 padding[52]; /* 12 */
};
KV_ASSERT(sizeof(struct kv_request_control) == 64);

/* One cache line, written by the processing engine only. */
struct kv_response_control {
	__u32 published;  /*  0, batches processed: the one store that hands back a batch */
	__u16 alive;	  /*  4, 1 while an engine serves this queue pair */
	__u16 engine_cpu; /*  6, its core: the communication engine must not wait for it there */
	__u8 padding[56]; /*  8 */
};
KV_ASSERT(sizeof(struct kv_response_control) == 64);

/* A batch of requests. The head shares a cache line with the first record: a batch of one is one line. */
struct kv_request_slot {
	__u8 count;	   /*  0, the paper's RC: requests in the batch */
	__u8 has_payload;  /*  1, 1 if the payload holds this batch's packet body */
	__u16 pair;	   /*  2, in a shared ring buffer: the communication core that it is from */
	__u16 frame_bytes; /*  4, of a whole frame in the payload, on its way to a host door */
	__u16 ready;	   /*  6, records written, where each is handed over by itself */
	__u8 padding[24];  /*  8 */
	struct kv_request records[KV_BATCH_MAX]; /* 32 */
	__u8 padding1[32];
	__u8 payload[KV_PAYLOAD_BYTES]; /* 2112 */
};
KV_ASSERT(sizeof(struct kv_request_slot) == 2112 + KV_PAYLOAD_BYTES);

struct kv_response_slot {
	__u16 wire_bytes;			  /*  0, that the responses take on the wire, their headers included; or
						     the length of a whole frame in the payload, 0 for none */
	__u16 ready;				  /*  2, as in the request slot */
	__u8 padding[12];			  /*  4 */
	struct kv_response records[KV_BATCH_MAX]; /* 16 */
	__u8 padding1[48];
	__u8 payload[KV_PAYLOAD_BYTES]; /* 1088 */
};
KV_ASSERT(sizeof(struct kv_response_slot) == 1088 + KV_PAYLOAD_BYTES);

/*
 * In front of a frame that goes to the host through AF_XDP, as the kernel's XDP metadata. With records_offset set the
 * frame has been parsed: there, behind it, stand the beginning of struct kv_parked_batch, as much as the batch needs
 * (KV_PARKED_BYTES), and its records.
 */
struct kv_frame_note {
	__u16 records_offset; /*  0, from the start of the frame; 0: not parsed */
	__u16 frame_bytes;    /*  2, of the frame itself */
	__u8 engine;	      /*  4 */
	__u8 count;	      /*  5, records */
	__u8 has_payload;     /*  6, as in the request slot; the payload is the frame's body */
	__u8 header_offset;   /*  7, of the packet header: 4 behind a VLAN tag */
};
KV_ASSERT(sizeof(struct kv_frame_note) == 8);

/* One per pair of a communication core and a processing engine; shared memory of the two. */
struct kv_queue_pair {
	struct kv_request_control request_control;   /* 0 */
	__u8 padding0[64];			     /* 64: the adjacent-line prefetcher pairs lines */
	struct kv_response_control response_control; /* 128 */
	__u8 padding1[64];			     /* 192 */
	struct kv_request_slot requests[KV_SLOTS];   /* 256 */
	struct kv_response_slot responses[KV_SLOTS];
};
KV_ASSERT(sizeof(struct kv_queue_pair) == 256 + KV_SLOTS * (2112 + 1088 + 2 * KV_PAYLOAD_BYTES));

/* ---- What the communication engine keeps to itself ---- */

enum kv_counter {
	KV_COUNTER_FRAMES_RECEIVED,	/* frames that were ours and well formed */
	KV_COUNTER_REQUESTS_RECEIVED,	/* requests in them */
	KV_COUNTER_BYTES_RECEIVED,	/* bytes of those frames, Ethernet header included */
	KV_COUNTER_FRAMES_SENT,		/* response frames */
	KV_COUNTER_RESPONSES_SENT,	/* responses in them */
	KV_COUNTER_BYTES_SENT,		/* bytes of those frames */
	KV_COUNTER_QP_REQUEST_BYTES,	/* bytes handed to the engine: records, count, payload */
	KV_COUNTER_QP_RESPONSE_BYTES,	/* bytes handed back */
	KV_COUNTER_PASSED,		/* frames that are not ours, given to the kernel's stack */
	KV_COUNTER_REDIRECTED,		/* frames given to a host door, which counts what is in them */
	KV_COUNTER_RESPONSES_WAITED,	/* batches answered in their own frame */
	KV_COUNTER_RESPONSES_CARRIED,	/* batches answered in a later frame */
	KV_COUNTER_RESPONSES_FLUSHED,	/* batches answered by the sender because no frame followed */
	KV_COUNTER_WAIT_TIMEOUTS,	/* waits for the engine that ran out of turns */
	KV_COUNTER_TAIL_REFUSED,	/* responses left to the sender because the frame could not grow */
	KV_COUNTER_DROP_IP_HEADER,	/* IP options, or lengths that do not match the frame */
	KV_COUNTER_DROP_FRAGMENT,	/* first fragment of a larger datagram */
	KV_COUNTER_DROP_UDP_LENGTH,	/* UDP length does not match the IP length */
	KV_COUNTER_DROP_FRAME_LENGTH,	/* shorter than a packet header with one request, or over KV_FRAME_MAX */
	KV_COUNTER_DROP_MAGIC,		/* not a request */
	KV_COUNTER_DROP_TRUNCATED,	/* a request's key or value runs past the end */
	KV_COUNTER_DROP_BATCH_LENGTH,	/* more than KV_BATCH_MAX requests */
	KV_COUNTER_DROP_NO_ENGINE,	/* no processing engine serves the port */
	KV_COUNTER_DROP_QUEUE_FULL,	/* KV_SLOTS batches are waiting for the engine */
	KV_COUNTER_DROP_BAD_RESPONSE,	/* the engine's response breaks its own lengths */
	KV_COUNTER_DROP_NO_QUEUE_PAIR,	/* a core without a queue pair received the frame */
	KV_COUNTER_DROP_NO_SOCKET,	/* no AF_XDP socket serves the frame's receive queue */
	KV_COUNTER_DROP_RINGBUF_FULL,	/* the BPF ring buffer has no room for the batch */
	KV_COUNTER_DROP_PARTITION_BUSY, /* another core has used the partition for too long */
	KV_COUNTER_DROP_SUPER_PACKET,	/* datagrams that a kernel left or made one packet (GSO, GRO) */
	KV_COUNTERS
};

/*
 * Where a batch's time goes: the paper's Table 1 and Figure 6. Program and host loop time one frame of KV_STAGE_FRAMES.
 */
enum kv_stage {
	KV_STAGE_RECEIVE, /* a frame at hand, and its headers checked */
	KV_STAGE_PARSE,	  /* requests into records, and handed over */
	KV_STAGE_PROCESS, /* on the store, where that is the same thread of control */
	KV_STAGE_WAIT,	  /* for an engine elsewhere */
	KV_STAGE_PREPARE, /* the response: addresses, headers, values */
	KV_STAGE_SEND,	  /* to the transmit ring; XDP_TX is the driver's, and not seen here */
	KV_STAGES
};

/* What of a batch stays on the DPU (section 4.2.1 of the paper): addresses, and an opaque for each request. */
struct kv_parked_batch {
	__u8 eth_destination[6];    /*  0, already swapped: "prepare response" */
	__u8 eth_source[6];	    /*  6 */
	__u16 vlan_type;	    /* 12, KV_ETHERTYPE_VLAN in network order, or 0 */
	__u16 vlan_tag;		    /* 14, network order */
	__u32 ip_source;	    /* 16, already swapped, network order */
	__u32 ip_destination;	    /* 20 */
	__u16 udp_source_port;	    /* 24, already swapped, network order */
	__u16 udp_destination_port; /* 26 */
	__u32 ip_checksum_base;	    /* 28, sum of the IP header's words but the length */
	__u32 request_count;	    /* 32 */
	__u8 padding[28];	    /* 36 */
	__u32 opaque[KV_BATCH_MAX]; /* 64 */
};
KV_ASSERT(sizeof(struct kv_parked_batch) == 64 + 4 * KV_BATCH_MAX);

/* The private side of one queue pair. Only the core that owns it touches it, with bottom halves off. */
struct kv_dpu_queue {
	__u32 published;	     /*  0, our own copy: the shared one is for the engine to read */
	__u32 answered;		     /*  4 */
	__u32 depth;		     /*  8, batches that may stay parked now */
	__u32 ceiling;		     /* 12, deepest pipeline that needed no flush */
	__u32 calm;		     /* 16, frames since the depth last changed */
	__u32 calm_wanted;	     /* 20, frames that must pass before the depth may grow over the ceiling */
	__u32 stalled;		     /* 24, waits in a row that ran out */
	__u32 stalled_at;	     /* 28, the engine's counter then */
	__u32 flushing;		     /* 32, 1 while the sender program works on this queue on the same core */
	__u32 zero;		     /* 36, always 0; a zero that the verifier does not know, see KV_UNKNOWN_ZERO */
	__u32 since_flush;	     /* 40, frames since the last flush */
	__u32 sampled;		     /* 44, frames since one had its stages timed */
	__u32 finished;		     /* 48, the engine's counter when it was last looked at */
	__u32 padding;		     /* 52 */
	__u64 counters[KV_COUNTERS]; /* 56 */
	__u64 stage_frames;	     /* frames whose stages were timed */
	__u64 stage_requests;	     /* requests in them */
	__u64 stage_last_ns;	     /* when the stage at hand began; 0: this frame is not timed */
	__u64 start_ns;		     /* of the work at hand, where a slower core is emulated */
	/* Of the core, in its queue with the first engine: would a wait for each response fit? kv_judge_gap() */
	__u64 ended_ns; /* when the last work on a timed frame ended; 0: the frame before this one was not timed */
	__u64 wait_ns;	/* that a response takes, a running mean */
	__u32 fits;	/* a running mean of KV_FITS_ALL, behind frames where it would, and 0 */
	__u32 has_time; /* whether it would, by and large */
	__u32 draining; /* as in struct kv_request_control */
	__u32 waiting_engine; /* for kv_wait */
	__u64 scratch;	      /* see KV_UNKNOWN */
	__u64 stage_ns[KV_STAGES];
	struct kv_parked_batch parked[KV_SLOTS];
	__u8 slack[8]; /* the verifier rounds the length of a parked batch up */
};

/* ---- The store: MICA's lossy index and circular log, laid out alike on the host and in XDP ---- */

enum kv_store_limit {
	KV_BUCKET_WAYS = 15,	   /* item words in a bucket; a cache's last word of its second line stays 0 */
	KV_LINE_WORDS = 8,	   /* words in a cache line */
	KV_LOG_OFFSET_BITS = 48,   /* an item word: its tag in the 16 bits above, its offset in the log below */
	KV_ITEMS_PER_BUCKET = 3,   /* intended load; store.c says why */
	KV_VALUE_CAPACITY_MIN = 8, /* bytes that even an empty value has, so that short ones are overwritten in place */
	KV_LENGTH_KEY_SHIFT = 24,  /* in kv_length */
	KV_SEGMENT_BYTES = 65536,  /* XDP's log is made of these: a map's value, and what a 16-bit offset reaches */
	KV_SEGMENT_SLACK = 4096	   /* behind each, so that any offset plus any masked length stays inside */
};

/* Half a bucket. Small items' lookups read the first half only, so the first halves stand together and fill caches. */
struct kv_line {
	__u64 words[KV_LINE_WORDS];
};
KV_ASSERT(sizeof(struct kv_line) == 64);

/* In the log: then the key, then the value, each zero padded to 8 bytes. An 8/8 item takes 32 bytes. */
struct kv_item {
	__u32 kv_length;      /*  0, as on the wire: value length in the low 24 bits, key length in the high 8 */
	__u32 value_capacity; /*  4, bytes that a value in place may have: a multiple of 8 */
	__u64 key_hash;	      /*  8 */
	__u64 words[];	      /* 16 */
};
KV_ASSERT(sizeof(struct kv_item) == 16);

/* A partition in XDP: what its engine knows besides index and log, which are maps of their own. */
struct kv_dpu_store {
	__u32 lock;	/*  0, struct bpf_spin_lock: only the kernel's helpers touch it */
	__u32 owner;	/*  4, 1 + the core that works on this partition, 0 if none does */
	__u64 tail;	/*  8, bytes ever appended; position in the log = tail % log_bytes */
	__u64 appended; /* 16, items ever appended */
	__u64 cleaned;	/* 24, buckets ever visited by the cleanup; position = cleaned % buckets */
	__u64 buckets;	/* 32, as loaded */
	__u64 log_bytes;
	__u64 round_tail; /* 48, tail when the cleanup's present round through the buckets began */
	/* The batch and the request at hand: here, so that the verifier knows nothing of them */
	__u32 wire_bytes;    /* 56, of the responses so far */
	__u32 payload_bytes; /* 60, likewise */
	__u64 scratch;	     /* 64, see KV_UNKNOWN in bpf/side.h */
	__u64 place_word;    /* 72, see kv_find() in bpf/store.h */
	__u32 place_way;     /* 80 */
	__u32 place_own;     /* 84 */
	/* As in struct kv_engine_stats */
	__u64 batches;
	__u64 requests;
	__u64 gets;
	__u64 sets;
	__u64 noops;
	__u64 errors;
	__u64 not_supported;
	__u64 rejected;
	/* As in struct kv_store_stats */
	__u64 set_nooverwrite;
	__u64 set_new;
	__u64 set_inplace;
	__u64 set_moved;
	__u64 set_evicted;
	__u64 set_refused;
	__u64 get_found;
	__u64 get_notfound;
	__u64 test_found;
	__u64 test_notfound;
	__u64 delete_found;
	__u64 delete_notfound;
	__u64 increment_found;
	__u64 increment_notfound;
	__u64 resets;
	__u64 cleanup;
};
KV_ASSERT(sizeof(struct kv_dpu_store) == 280);

/* ---- The load generator ---- */

/* A frame ready to be sent, with what its answer must look like. */
struct kv_template {
	__u32 frame_bytes;	       /*  0 */
	__u32 request_count;	       /*  4 */
	__u32 gap_ns;		       /*  8, open loop: intended time after the previous packet */
	__u32 get_count;	       /* 12 */
	__u64 hash_sum;		       /* 16, sum of the requests' key hashes: every answer must echo its own */
	__u64 reserved;		       /* 24 */
	__u8 frame[KV_TEMPLATE_FRAME]; /* 32 */
};
KV_ASSERT(sizeof(struct kv_template) == 32 + KV_TEMPLATE_FRAME);

enum kv_load_state { KV_LOAD_STOPPED = 0, KV_LOAD_RUNNING = 1, KV_LOAD_DRAINING = 2 };

/* Set by Python, read by the generator program. */
struct kv_load_control {
	__u32 state;	      /*  0, enum kv_load_state */
	__u32 window;	      /*  4, packets outstanding at most */
	__u32 template_first; /*  8, first template to send */
	__u32 template_count; /* 12, templates in use from there */
	__u64 packets_limit;  /* 16, packets to send in all; 0 = no limit */
	__u64 timeout_ns;     /* 24, after which an unanswered packet is lost */
	__u32 open_loop;      /* 32, 1 = send at each template's gap, latency from the intended time */
	__u32 value_bytes;    /* 36, length that every value must have */
	__u32 zero;	      /* 40, always 0, see KV_UNKNOWN_ZERO */
	__u32 padding[5];     /* 44 */
};
KV_ASSERT(sizeof(struct kv_load_control) == 64);

/* One outstanding packet. */
struct kv_load_slot {
	__u64 start_ns;	      /*  0, when it was sent, or should have been */
	__u32 template_index; /* 8 */
	__u16 epoch;	      /* 12, tells a late answer from the slot's next packet */
	__u16 busy;	      /* 14 */
};
KV_ASSERT(sizeof(struct kv_load_slot) == 16);

/* The generator's own position; only its core touches it. */
struct kv_load_cursor {
	__u64 packets_sent;  /*  0 */
	__u64 requests_sent; /*  8 */
	__u64 bytes_sent;    /* 16 */
	__u64 lost_packets;  /* 24 */
	__u64 lost_requests; /* 32 */
	__u64 next_start_ns; /* 40, open loop */
	__u32 slot;	     /* 48 */
	__u32 template_next; /* 52 */
	__u32 idle_turns;    /* 56 */
	__u32 padding;	     /* 60 */
};
KV_ASSERT(sizeof(struct kv_load_cursor) == 64);

/* What came back; one per core. */
struct kv_load_results {
	__u64 packets;	      /* answered packets */
	__u64 responses;      /* answered requests */
	__u64 bytes;	      /* of answered packets */
	__u64 hits;	      /* GETs with a value */
	__u64 misses;	      /* GETs without */
	__u64 stored;	      /* SETs that succeeded */
	__u64 corrupt;	      /* answers with a wrong value, key, length or count */
	__u64 refused;	      /* any other result code */
	__u64 late;	      /* answers to packets already given up */
	__u64 latency_sum_ns; /* over requests */
	__u64 latency_max_ns;
	__u64 latency[KV_HISTOGRAM_BUCKETS]; /* requests by round trip, see kv_histogram_bucket() */
};

/* ---- Transfer primitives: what `dpukv qp-bench` measures, see kv_transfer.c ---- */

enum kv_transfer_limit {
	KV_TRANSFER_BYTES_MAX = 8192, /* of one payload */
	KV_TRANSFER_SLOTS = 64,	      /* of the mapped ring: payloads in flight at most; a power of two */
	KV_TRANSFER_PAYLOADS = 3, /* different ones, taken in turn: a slot never holds the same one twice in a row */
	KV_TRANSFER_FRAGMENT_MAX = 1024, /* bytes of a payload in one frame: fits the usual MTU */
	KV_TRANSFER_TURNS = 1500,	 /* turns that one run of a program polls */
	KV_TRANSFER_RINGBUF_PAGES = 256, /* room for KV_TRANSFER_SLOTS of the largest payloads */
	KV_TRANSFER_ETHERTYPE = 0x88b5	 /* for local experiments: IEEE 802 */
};

/* Shared by the two ends. Each line has one writer; counters are of operations handed over or taken. */
struct kv_transfer_control {
	__u32 operations;     /*   0, set before the start, to the end of the line */
	__u32 bytes;	      /*   4, of a payload */
	__u32 window;	      /*   8, operations in flight at most: 1 is blocking */
	__u32 ringbuf_wakeup; /*  12, flags of bpf_ringbuf_output() */
	__u32 stop;	      /*  16, 1: give up */
	__u8 padding0[108];   /*  20: the adjacent-line prefetcher pairs lines */
	__u32 dpu_count;      /* 128, written by the DPU */
	__u8 padding1[124];   /* 132 */
	__u32 host_count;     /* 256, written by the host */
	__u8 padding2[124];   /* 260 */
	__u32 dpu_fragments;  /* 384, the DPU's own: fragments of the operation at hand that are done */
	__u32 dpu_wrong;      /* 388, payloads that were not what they must be */
	__u8 padding3[120];   /* 392 */
};
KV_ASSERT(sizeof(struct kv_transfer_control) == 512);

/* A frame with a payload, or one fragment of it behind the other. */
struct kv_transfer_frame {
	__u8 eth_destination[6]; /*  0 */
	__u8 eth_source[6];	 /*  6 */
	__u16 eth_type;		 /* 12, KV_TRANSFER_ETHERTYPE in network order */
	__u16 fragment;		 /* 14 */
	__u32 operation;	 /* 16 */
	__u32 reserved;		 /* 20, zero: the payload begins at a multiple of 8 */
};
KV_ASSERT(sizeof(struct kv_transfer_frame) == 24);

/* ---- C only ---- */
#ifndef KV_ABI_CDEF

#define KV_ITEM_HEADER_BYTES ((__u32)sizeof(struct kv_item_header))
#define KV_PACKET_HEADER_BYTES ((__u32)sizeof(struct kv_packet_header))
#define KV_VLAN_BYTES 4
#define KV_ETH_BYTES 14
#define KV_IP_BYTES 20
#define KV_UDP_BYTES 8

/* What of struct kv_parked_batch a batch needs, rounded up to whole words. */
#define KV_PARKED_BYTES(request_count) (offsetof(struct kv_parked_batch, opaque) + KV_ROUNDUP8(4 * (request_count)))

/* What a reply's header word may hold: operation, result and value length; reserved bytes and key length are 0. */
#define KV_RESPONSE_HEADER_MASK 0x00ffffff0000ffffULL

#define KV_HEADER(operation, result, key_bytes, value_bytes) \
	((__u64)(operation) | (__u64)(result) << 8 | (__u64)(value_bytes) << 32 | (__u64)(key_bytes) << 56)
#define KV_HEADER_OPERATION(header) ((__u32)((header)&0xff))
#define KV_HEADER_RESULT(header) ((__u32)((header) >> 8 & 0xff))
#define KV_HEADER_VALUE_BYTES(header) ((__u32)((header) >> 32 & 0xffffff))
#define KV_HEADER_KEY_BYTES(header) ((__u32)((header) >> 56))

#define KV_LOG_OFFSET_MASK ((1ULL << KV_LOG_OFFSET_BITS) - 1)
#define KV_LENGTH_VALUE_MASK 0xffffffu

/* The high bits of an item's word in the index: a word in use is never 0. */
#define KV_STORE_TAG(key_hash) (((key_hash)&0xffff) ? ((key_hash)&0xffff) : 1)
/* Hash bits 16-47, scaled to the number of buckets: it need not be a power of two. */
#define KV_STORE_BUCKET(key_hash, buckets) ((__u64)(__u32)((key_hash) >> 16) * (buckets) >> 32)
/* Hash bits 48-63 choose the partition. */
#define KV_PARTITION(key_hash, partitions) ((__u32)((key_hash) >> 48) % (partitions))

#define KV_ROUNDUP8(bytes) (((bytes) + 7u) & ~7u)

/* The first bytes (1-8) of a little-endian word. */
#define KV_LOW_BYTES(word, bytes) ((word) & (~0ULL >> (64 - 8 * (bytes))))

/* The value that the load generator stores under a key: word i of it. Every answer is checked against this. */
#define KV_LOAD_VALUE_SALT 0x9e3779b97f4a7c15ULL
#define KV_LOAD_VALUE_WORD(key_hash, i) ((key_hash) ^ (KV_LOAD_VALUE_SALT * ((__u64)(i) + 1)))

/* Word i of a prepared payload of the transfer primitives, and what the next word is larger by. */
#define KV_TRANSFER_STEP (KV_LOAD_VALUE_SALT * KV_TRANSFER_PAYLOADS)
#define KV_TRANSFER_WORD(payload, i) (KV_LOAD_VALUE_SALT * ((payload) + 1) + KV_TRANSFER_STEP * (__u64)(i))

/*
 * Latency histogram: exact below 2^KV_HISTOGRAM_SUB_BITS ns, then 2^KV_HISTOGRAM_SUB_BITS buckets to each power of two.
 */
static inline __attribute__((always_inline)) __u32 kv_histogram_bucket(__u64 value_ns)
{
	__u32 exponent = 0;
	__u64 rest = value_ns >> KV_HISTOGRAM_SUB_BITS;

	if (rest >> 16)
		exponent += 16, rest >>= 16;
	if (rest >> 8)
		exponent += 8, rest >>= 8;
	if (rest >> 4)
		exponent += 4, rest >>= 4;
	if (rest >> 2)
		exponent += 2, rest >>= 2;
	if (rest >> 1)
		exponent += 1, rest >>= 1;
	exponent += rest != 0;
	if (exponent == 0)
		return value_ns;
	/* The mantissa's top bit is always set, so each power of two starts 2^SUB_BITS after the one before. */
	return ((exponent - 1) << KV_HISTOGRAM_SUB_BITS) + (value_ns >> (exponent - 1));
}

/* The smallest value that falls into a bucket. */
static inline __u64 kv_histogram_floor_ns(__u32 bucket)
{
	__u32 exponent = bucket >> KV_HISTOGRAM_SUB_BITS;

	if (exponent == 0)
		return bucket;
	return (__u64)((1u << KV_HISTOGRAM_SUB_BITS) + (bucket & ((1u << KV_HISTOGRAM_SUB_BITS) - 1)))
	       << (exponent - 1);
}

#endif /* KV_ABI_CDEF */
#endif /* KV_ABI_H */
