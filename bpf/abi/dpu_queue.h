/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * dpu_queue.h - the communication engine's private state: parked batches, stage clocks, the pipeline's depth.
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
	KV_CALM_FLUSH_FRAMES = 64,  /* frames since the last flush from which on a flush does not reduce the depth */
	KV_CALM_FRAMES_MAX = 2048,  /* most that KV_CALM_FRAMES grows to after many flushes */
	KV_WAIT_TURNS = 512,	    /* turns of the wait for a response that do not read the clock */
	KV_WAIT_CLOCK_TURNS = 3500, /* most turns that read it: the verifier allows 8192 jumps in sequence */
	KV_WAIT_NS = 60000,	    /* longest wait for a response, in ns */
	KV_STALLED_WAITS = 4,	    /* time-outs in a row after which the core stops waiting for that engine */
	KV_BACKLOG_MAX = 64,	    /* finished responses from which on the sender helps the frames that carry them */
	KV_SLOWER_TURNS = 256	    /* most turns of an emulated slower core's pause, about 20 ns each */
};

enum kv_stage_limit {
	KV_MEAN_SHIFT = 2,    /* a running mean moves by 1/4 of the way to each new value */
	KV_STAGE_FRAMES = 61, /* one frame of 61 is timed; a prime, so that every place in a burst has its turn */
	KV_GAP_NS = 250,      /* ns between two frames of one burst, spent in the driver */
	KV_FITS_ALL = 4096,   /* value of kv_dpu_queue.fits if a wait would fit behind every frame */
	KV_FITS_SHIFT = 4     /* `fits` moves by 1/16 of the way to each new value */
};

/*
 * Stages of a batch's way through the server: the paper's Table 1 and Figure 6. The XDP program and the host's loop
 * time one frame of KV_STAGE_FRAMES.
 */
enum kv_stage {
	KV_STAGE_RECEIVE, /* start on a frame and check its headers */
	KV_STAGE_PARSE,	  /* turn its requests into records and hand them over */
	KV_STAGE_PROCESS, /* execute them, where the same core does that */
	KV_STAGE_WAIT,	  /* wait for an engine on another core */
	KV_STAGE_PREPARE, /* write the response: addresses, headers, values */
	KV_STAGE_SEND,	  /* queue it for transmission; the driver's part of XDP_TX cannot be timed here */
	KV_STAGES
};

/*
 * The part of a batch that stays on the DPU (section 4.2.1 of the paper), besides an opaque for each request: addresses
 * of its response, and what it takes in the queue pair.
 */
struct kv_parked_batch {
	__u8 eth_destination[6];    /*  0, already swapped: "prepare response" */
	__u8 eth_source[6];	    /*  6 */
	__u16 vlan_tag;		    /* 12, network order */
	__u16 ip_sum;		    /* 14, sum of the IP header's words except the length, folded */
	__u32 ip_source;	    /* 16, already swapped, network order */
	__u32 ip_destination;	    /* 20 */
	__u16 udp_source_port;	    /* 24, already swapped, network order */
	__u16 udp_destination_port; /* 26 */
	__u8 count;		    /* 28, requests */
	__u8 has_vlan_tag;	    /* 29, 1 or 0 */
	__u16 body_records;	    /* 30, records that it takes besides one for each request */
};
KV_ASSERT(sizeof(struct kv_parked_batch) == 32);

/* Parked batches of one queue pair: by number % KV_BATCHES, and opaques by the index of the request's record. */
struct kv_parked {
	struct kv_parked_batch batches[KV_BATCHES];
	__u32 opaques[KV_RECORDS + KV_REQUEST_SLACK];
};

/* The private side of one queue pair. Only the core that owns the pair uses it, with bottom halves off. */
struct kv_dpu_queue {
	__u32 published;	     /*  0, batches published: a private copy of the shared counter */
	__u32 answered;		     /*  4, number of batches answered */
	__u32 depth;		     /*  8, batches that may stay parked at present */
	__u32 ceiling;		     /* 12, greatest depth that needed no flush */
	__u32 calm;		     /* 16, frames since the depth last changed */
	__u32 calm_wanted;	     /* 20, frames without a flush before the depth may exceed the ceiling */
	__u32 stalled;		     /* 24, waits in a row that timed out */
	__u32 stalled_at;	     /* 28, the engine's counter at the last time-out */
	__u32 flushing;		     /* 32, 1 while the sender program works on this queue on the same core */
	__u32 zero;		     /* 36, always 0; a zero that the verifier does not know, see KV_UNKNOWN_ZERO */
	__u32 since_flush;	     /* 40, frames since the last flush */
	__u32 sampled;		     /* 44, frames since the last one whose stages were timed */
	__u32 finished;		     /* 48, the engine's counter when it was last read */
	__u32 records_taken;	     /* 52, number of the next request record */
	__u32 records_freed;	     /* 56, number of the oldest one that is in use */
	__u32 requests_here;	     /* 60, requests of the batch at work, where batches are processed in XDP */
	__u64 counters[KV_COUNTERS]; /* 64 */
	__u64 stage_frames;	     /* frames whose stages were timed */
	__u64 stage_requests;	     /* requests in them */
	__u64 stage_last_ns;	     /* when the current stage began, in ns; 0: this frame is not timed */
	__u64 start_ns;		     /* when the current work began, in ns, where a slower core is emulated */
	/*
	 * Per core, used in its queue with the first engine: whether there is time to wait for responses,
	 * kv_judge_gap()
	 */
	__u64 ended_ns; /* when the last work on a timed frame ended, in ns; 0: the previous frame was not timed */
	__u64 wait_ns;	/* running mean of the time that a response takes, in ns */
	__u32 fits; /* running mean over frames: KV_FITS_ALL where a wait would have fitted behind the frame, else 0 */
	__u32 has_time;	      /* whether waits fit behind most frames */
	__u32 draining;	      /* copy of the field `drain` of struct kv_request_control */
	__u32 waiting_engine; /* argument of the tail call kv_wait: the engine to wait for */
	__u32 refused;	      /* number behind that of the last batch whose response no frame could hold */
	__u32 silent;	      /* whether the engine was silent at the last look, see kv_engine_is_silent() */
	__u64 looked_at_tick; /* tick of the kernel in which its heartbeat was looked at */
	__u64 scratch;	      /* a place for KV_UNKNOWN to read from */
	__u64 stage_ns[KV_STAGES];
};

#ifndef KV_ABI_CDEF

/* Bytes of a batch's opaques, rounded up to whole words. */
#define KV_OPAQUE_BYTES(request_count) KV_ROUNDUP8(4 * (request_count))

#endif /* KV_ABI_CDEF */

#endif
