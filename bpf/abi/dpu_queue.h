/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * dpu_queue.h - what the communication engine keeps to itself: parked batches, stage clocks, the pipeline.
 */
#ifndef KV_ABI_DPU_QUEUE_H
#define KV_ABI_DPU_QUEUE_H

#include "abi/counters.h"
#include "abi/limits.h"
#include "abi/queue_pair.h"
#include "abi/words.h"

enum kv_pipeline_limit {
	KV_PIPELINE_MAX = 32,	    /* deepest pipeline of parked batches */
	KV_CALM_FRAMES = 64,	    /* frames without a flush before the pipeline grows by one */
	KV_CALM_FLUSH_FRAMES = 64,  /* a flush after so many frames without one says nothing about the depth */
	KV_CALM_FRAMES_MAX = 2048,  /* the same after many flushes */
	KV_WAIT_TURNS = 512,	    /* turns of the wait for a response before it looks at the clock in each */
	KV_WAIT_CLOCK_TURNS = 3500, /* turns with the clock, at most: the verifier allows 8192 jumps in sequence */
	KV_WAIT_NS = 60000,	    /* longest wait for a response */
	KV_STALLED_WAITS = 4,	    /* waits that ran out in a row before nobody waits for that engine any more */
	KV_SLOWER_TURNS = 256	    /* turns of an emulated slower core's pause, each about 20 ns */
};

enum kv_stage_limit {
	KV_MEAN_SHIFT = 2,    /* a running mean moves by 1/4 of the way to each new value */
	KV_STAGE_FRAMES = 61, /* one frame of so many has its stages timed; a prime: of any burst each in turn */
	KV_GAP_NS = 250,      /* from the end of a frame to one that has been waiting: the driver's own work */
	KV_FITS_ALL = 4096,   /* in kv_dpu_queue.fits: a wait would fit behind every frame */
	KV_FITS_SHIFT = 4     /* which moves by 1/16 of the way to each new value */
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

#ifndef KV_ABI_CDEF

/* What of struct kv_parked_batch a batch needs, rounded up to whole words. */
#define KV_PARKED_BYTES(request_count) (offsetof(struct kv_parked_batch, opaque) + KV_ROUNDUP8(4 * (request_count)))

#endif /* KV_ABI_CDEF */

#endif
