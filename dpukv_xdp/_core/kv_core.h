/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * kv_core.h - the native core's interface: what Python (cffi) and the C tests may call.
 *
 * Plain C11, no Python.h: it can be fuzzed and sanitised alone. Functions return 0 or a negative errno unless they say
 * otherwise. Nothing here prints, exits or allocates after its create call.
 */
#ifndef KV_CORE_H
#define KV_CORE_H

#include "kv_abi.h"
#ifndef KV_ABI_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

/* ---- hash.c: CityHash64 v1.1 ---- */

uint64_t kv_hash(const uint8_t *key, size_t key_bytes);
/* Hash `count` keys of the same length that lie `stride` bytes apart. */
void kv_hash_many(const uint8_t *keys, size_t stride, size_t key_bytes, size_t count, uint64_t *hashes);

/* ---- memory.c: where long-lived memory comes from ---- */

enum kv_pages { KV_PAGES_SMALL = 0, KV_PAGES_TRANSPARENT = 1, KV_PAGES_HUGE = 2 };

/* A zeroed private mapping; `want_huge` tries hugetlbfs, then transparent huge pages. *pages says what it became.
 * NULL and errno on failure. */
void *kv_memory_map(size_t bytes, int want_huge, int *pages);
void kv_memory_unmap(void *memory, size_t bytes);

/* ---- store.c: one partition: MICA's lossy index and circular log ---- */

struct kv_store_stats {
	uint64_t items_estimate; /* index entries; the cleanup has yet to drop those of overwritten items */
	uint64_t get_found;
	uint64_t get_not_found;
	uint64_t set_new; /* a new key, in a free place of its bucket */
	uint64_t set_in_place;
	uint64_t set_moved;   /* overwritten by a larger value elsewhere in the log */
	uint64_t set_evicted; /* a new key, put where the full bucket's oldest item was */
	uint64_t set_refused; /* a length outside the limits, or an item larger than the log */
	uint64_t cleanup;     /* index entries dropped because the log had overwritten their item */
	uint64_t index_bytes;
	uint64_t log_bytes;
	uint64_t pages; /* enum kv_pages of the log */
};

struct kv_store;

/* A partition for about `item_count` items with a log of at least `log_bytes` bytes (rounded up to a power of two). The
 * index is sized so that losing even one of item_count hashed keys is improbable. One thread at a time may use it.
 * NULL and errno on failure: EINVAL for a size of 0 or beyond reason. */
struct kv_store *kv_store_create(uint64_t item_count, uint64_t log_bytes, int want_huge);
void kv_store_destroy(struct kv_store *store);
/* Bytes that such an item takes in the log: item_count * this, as log_bytes, holds item_count of them. */
uint32_t kv_store_entry_bytes(uint32_t key_bytes, uint32_t value_bytes);
void kv_store_get_stats(const struct kv_store *store, struct kv_store_stats *stats);

/* KV_SUCCESS, KV_NOT_FOUND, or KV_ERROR for a key of no or more than KV_KEY_MAX bytes. The value's exact length comes
 * back in *value_bytes; a value longer than `room` gives KV_INSUFFICIENT_SPACE with nothing copied. */
int kv_store_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		 uint32_t room, uint32_t *value_bytes);
/* Insert or overwrite: KV_SUCCESS, KV_ERROR as above, or KV_INSUFFICIENT_SPACE for a value over KV_VALUE_MAX or an item
 * larger than the log; a refused SET leaves what was there. */
int kv_store_set(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes);

/* ---- engine.c: the processing engine ---- */

/* Per engine; written by its thread only, read by anybody at any time. */
struct kv_engine_stats {
	uint64_t batches;
	uint64_t requests;
	uint64_t gets;
	uint64_t sets;
	uint64_t noops;
	uint64_t errors; /* requests that break a limit */
	uint64_t not_supported;
	uint64_t rejected;    /* requests for a partition of another engine */
	uint64_t bad_batches; /* counters or counts out of range in the request queue */
	uint64_t wakeups;     /* times a sender was woken for an overdue response */
	uint64_t busy_ticks;  /* time stamp counter's ticks spent on batches */
	uint64_t total_ticks; /* and in all */
	uint64_t rounds;      /* of the polling loop */
};

/* The sender of one communication core: wakes up to let overdue responses out. */
struct kv_sender {
	uint32_t wake; /* futex: engines count it up */
	uint32_t stop;
	uint32_t overdue[KV_ENGINES_MAX]; /* set by engine e: its oldest response waits too long */
	uint32_t cpu;
	uint32_t cpus; /* KV_CPUS of the loaded programs */
	uint32_t engines;
	int32_t program_fd; /* kv_flush */
	int32_t socket_fd;  /* a packet socket bound to the interface */
	uint32_t padding;
	uint64_t frames_sent;
	uint64_t send_failures; /* frames that the packet socket refused */
	uint64_t run_failures;	/* BPF_PROG_RUN calls that failed */
};

struct kv_engine_pair {
	uint32_t processed;   /* batches */
	uint32_t woken;	      /* 1 after the sender was woken for what is there now */
	uint64_t since_ticks; /* of the last batch, or the last wake-up */
};

struct kv_engine {
	struct kv_queue_pair *pairs; /* `cpus` of them, one for each communication core */
	struct kv_sender *senders;   /* as many, or NULL */
	struct kv_store *store;
	uint32_t id;
	uint32_t engines;
	uint32_t cpu; /* where this engine runs */
	uint32_t cpus;
	uint32_t response_bytes_max; /* of one packet, behind the packet header */
	uint32_t stop;		     /* set by anybody to make kv_engine_run() return */
	uint64_t flush_after_ticks;  /* a response older than this is overdue */
	struct kv_engine_stats stats;
	struct kv_engine_pair state[KV_CPUS_MAX];
};

/* Serve the queue pairs until `stop` is set. Call it on the engine's own, pinned thread. */
int kv_engine_run(struct kv_engine *engine);
/* Ticks of the engine's clock in a second. */
uint64_t kv_ticks_per_second(void);

/* ---- sender.c ---- */

/* Wait for engines to report overdue responses and let them out, until `stop`. On a thread pinned to `cpu`. */
int kv_sender_run(struct kv_sender *sender);
/* Wake a sender, for example after setting `stop`. */
void kv_sender_wake(struct kv_sender *sender);

/* ---- Frames, as the host's communication engine sees them ---- */

struct kv_frame {
	uint8_t *data;
	uint32_t bytes;
	uint32_t room; /* bytes that the frame may grow to, in place */
	uint64_t tag;  /* where it came from: its port's own */
};

/* ---- socket.c: one AF_XDP socket for one receive queue, through libxdp ---- */

enum kv_socket_mode { KV_SOCKET_COPY = 0, KV_SOCKET_ZERO_COPY = 1 };

struct kv_socket_stats {
	uint64_t received;
	uint64_t sent;
	uint64_t wakeups;	 /* system calls that made the kernel send or receive */
	uint64_t rx_dropped;	 /* by the kernel: see XDP_STATISTICS in linux/if_xdp.h */
	uint64_t rx_ring_full;
	uint64_t fill_ring_empty;
	uint64_t tx_invalid;
	uint32_t mode; /* enum kv_socket_mode that the kernel gave */
	uint32_t fd;
};

struct kv_socket;

/* A bound socket with `descriptors` receive descriptors (a power of two) and its own memory for frames, every fill
 * descriptor in place. It receives once its descriptor is in an XSKMAP at index `queue`. NULL and errno on failure. */
struct kv_socket *kv_socket_open(const char *interface, uint32_t queue, uint32_t descriptors, int zero_copy);
void kv_socket_close(struct kv_socket *socket);
/* Up to `room` frames that have come in; they are the caller's until sent or released. Never blocks. */
uint32_t kv_socket_receive(struct kv_socket *socket, struct kv_frame *frames, uint32_t room);
/* Queue a frame, received from this socket and rewritten in place, for sending; kv_socket_flush() sends. A frame that
 * finds the ring full is sent first. */
void kv_socket_send(struct kv_socket *socket, const struct kv_frame *frame);
/* Give a received frame back unsent. */
void kv_socket_release(struct kv_socket *socket, const struct kv_frame *frame);
/* Hand everything queued to the kernel and take back what it has sent. */
void kv_socket_flush(struct kv_socket *socket);
void kv_socket_get_stats(struct kv_socket *socket, struct kv_socket_stats *stats);

/* ---- bpf_run.c: bpf(2) where no library has it ---- */

/* Run an XDP program once over a copy of `frame`; *verdict and up to `room` bytes of the frame come back. */
int kv_bpf_run_once(int program_fd, const uint8_t *frame, uint32_t frame_bytes, uint8_t *out, uint32_t room,
		    uint32_t *out_bytes, uint32_t *verdict);
/* Run an XDP program over live frames of `frame_bytes` on an interface until `repeat` runs are done or a signal
 * arrives (-EINTR). */
int kv_bpf_run_live(int program_fd, uint32_t interface_index, uint32_t frame_bytes, uint32_t repeat,
		    uint32_t batch_frames);
/* A file descriptor that keeps the kernel's BPF run-time statistics on while it is open. */
int kv_bpf_enable_stats(void);
/* Run time and number of runs of a program while the statistics were on. */
int kv_bpf_program_stats(int program_fd, uint64_t *run_time_ns, uint64_t *run_count);
/* Map a BPF_F_MMAPABLE array; NULL and errno on failure. */
void *kv_bpf_map_memory(int map_fd, size_t bytes);

/* ---- abi.c: what kv_abi.h has as inline functions, for Python ---- */

uint64_t kv_latency_floor_ns(uint32_t bucket);
uint32_t kv_latency_bucket(uint64_t value_ns);

#endif
