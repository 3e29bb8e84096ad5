/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * kv_core.h - the native core's interface: what Python (cffi) and the C tests may call.
 *
 * Plain C11, no Python.h: it can be fuzzed and sanitised alone. Functions return 0 or a negative errno unless they say
 * otherwise. Nothing here prints, exits or allocates after its create call.
 */
#ifndef KV_CORE_H
#define KV_CORE_H

#include "abi/all.h"
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

/* Counters of one handle, named as MICA2 names its table's (LTable::Stats), with set_moved, set_refused, increment_*,
 * resets and overflow_buckets of our own. */
struct kv_store_stats {
	uint64_t count; /* items in the index, through all handles; a cache's cleanup has yet to drop dead ones */
	uint64_t set_nooverwrite; /* ADD of a key that was there */
	uint64_t set_new;	  /* a new key, in a free place of its bucket */
	uint64_t set_inplace;
	uint64_t set_moved;   /* overwritten by a larger value elsewhere */
	uint64_t set_evicted; /* a new key, put where the full bucket's oldest item was */
	uint64_t set_refused; /* a length outside the limits, an item larger than the log, or no space */
	uint64_t get_found;
	uint64_t get_notfound;
	uint64_t test_found;
	uint64_t test_notfound;
	uint64_t delete_found;
	uint64_t delete_notfound;
	uint64_t increment_found;
	uint64_t increment_notfound;
	uint64_t resets;
	uint64_t cleanup; /* index entries dropped because the log had overwritten their item */
	uint64_t move_to_head_performed;
	uint64_t move_to_head_skipped; /* a GET of an item that is near enough to the log's head, or by a reader */
	uint64_t move_to_head_failed;  /* in shared mode: somebody else was writing the bucket */
	uint64_t overflow_buckets;     /* in use, of a lossless store */
	uint64_t index_bytes;
	uint64_t log_bytes; /* or of the allocator's memory */
	uint64_t pages;	    /* enum kv_pages of the log */
};

struct kv_store;

enum kv_store_kind {
	KV_STORE_CACHE = 0,   /* MICA's cache mode: a lossy index, a circular log, the oldest item goes first */
	KV_STORE_LOSSLESS = 1 /* MICA's store mode: overflow buckets and an allocator; full is KV_INSUFFICIENT_SPACE */
};

struct kv_store_options {
	uint64_t item_count; /* the index is laid out for about so many, KV_ITEMS_PER_BUCKET to a bucket */
	uint64_t log_bytes;  /* of the log, or of the allocator's memory; rounded up to whole cache lines */
	uint32_t kind;	     /* enum kv_store_kind */
	uint32_t want_huge;
	/* GET moves an item to the log's head that is farther than this share of the log from it, in 1/65536: 0 is LRU,
	 * 65536 (never) is FIFO, between them approximate LRU. Cache only. */
	uint32_t move_to_head;
	uint32_t padding;
};

/* A partition: one thread at a time may use it. The index is sized so that losing even one of item_count hashed keys is
 * improbable at KV_ITEMS_PER_BUCKET. NULL and errno on failure: EINVAL for a size of 0 or beyond reason. */
struct kv_store *kv_store_create(const struct kv_store_options *options);
/* Bytes that such a store's index and log take; 0 if it cannot be created. Shared mode adds 4 for each bucket. */
uint64_t kv_store_memory_bytes(const struct kv_store_options *options);
/* A further handle on the same store, with counters of its own. From the first one on all handles are in shared mode:
 * each may be used by one thread, all at the same time. Call it while no thread uses the store. NULL and errno on
 * failure: ENOSPC for more than KV_ENGINES_MAX handles. */
struct kv_store *kv_store_share(struct kv_store *store);
/* Whether a handle only reads (CREW: another thread owns the partition): then its GETs leave items where they are. */
void kv_store_set_reader(struct kv_store *handle, int is_reader);
/* Give a handle back while no thread uses the store; the last one takes the store with it. */
void kv_store_destroy(struct kv_store *store);
/* Bytes that such an item takes in the log: item_count * this, as log_bytes, holds item_count of them. */
uint32_t kv_store_entry_bytes(uint32_t key_bytes, uint32_t value_bytes);
void kv_store_get_stats(const struct kv_store *store, struct kv_store_stats *stats);

/*
 * The operations. All give KV_ERROR for a key of no or more than KV_KEY_MAX bytes.
 *
 * GET: KV_SUCCESS or KV_NOT_FOUND; the value's exact length comes back in *value_bytes. A value longer than `room`
 * gives KV_INSUFFICIENT_SPACE with nothing copied.
 */
int kv_store_get(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes, uint8_t *value,
		 uint32_t room, uint32_t *value_bytes);
/* SET, insert or overwrite: KV_SUCCESS, or KV_INSUFFICIENT_SPACE for a value over KV_VALUE_MAX, an item larger than the
 * log, or a lossless store that is full; a refused SET leaves what was there. */
int kv_store_set(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes);
/* ADD, insert only: as SET, and KV_EXISTS for a key that is there. */
int kv_store_add(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		 const uint8_t *value, uint32_t value_bytes);
/* TEST: KV_SUCCESS or KV_NOT_FOUND. */
int kv_store_test(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);
/* DELETE: KV_SUCCESS or KV_NOT_FOUND. A lossless store has the item's memory back. */
int kv_store_delete(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes);
/* INCREMENT: add to a value of 8 bytes, modulo 2^64, in place; the new one comes back in *value. KV_NOT_FOUND, or
 * KV_ERROR for a value of another length. */
int kv_store_increment(struct kv_store *store, uint64_t key_hash, const uint8_t *key, uint32_t key_bytes,
		       uint64_t increment, uint64_t *value);
/* RESET: forget all items. */
void kv_store_reset(struct kv_store *store);

/* ---- host.c: a host core ---- */

struct kv_engine;
struct kv_communicator;

enum kv_host_limit {
	KV_HOST_PAIRS_MAX = KV_CPUS_MAX + KV_QUEUES_MAX, /* queue pairs of one engine */
	KV_HOST_COMMUNICATORS_MAX = KV_QUEUES_MAX + KV_ENGINES_MAX
};

/* What one host core does, in one polling loop: communication engines, processing engines, or both ("fused"). */
struct kv_host {
	uint32_t cpu;
	uint32_t stop; /* set by anybody to make kv_host_run() return */
	uint32_t engine_count;
	uint32_t communicator_count;
	struct kv_engine *engines[KV_ENGINES_MAX];
	struct kv_communicator *communicators[KV_HOST_COMMUNICATORS_MAX];
	uint64_t rounds;
	uint64_t total_ticks;
};

/* Run until `stop` is set. Call it on the core's own, pinned thread. */
int kv_host_run(struct kv_host *host);
/*
 * Give a partition to another engine while both work. Unless everybody may write, nobody owns it for the two turns
 * after which all hosts have seen that and have finished what they had begun before: requests meanwhile are rejected.
 * 0, or -ETIMEDOUT if a host does not get round to it within 200 ms: then the old owner has it again.
 */
int kv_partition_move(struct kv_partition_table *table, uint32_t partition, uint32_t engine,
		      struct kv_host *const *hosts, uint32_t host_count);
/* Ticks of the host's clock in a second. */
uint64_t kv_ticks_per_second(void);

/* ---- engine.c: the processing engine ---- */

/* Per engine; written by its thread only, read by anybody at any time. */
struct kv_engine_stats {
	uint64_t batches;
	uint64_t requests;
	uint64_t gets;
	uint64_t sets; /* and ADDs */
	uint64_t tests;
	uint64_t deletes;
	uint64_t increments;
	uint64_t resets;
	uint64_t noops;
	uint64_t errors; /* requests that break a limit */
	uint64_t not_supported;
	uint64_t rejected;    /* requests for a partition of another engine */
	uint64_t bad_batches; /* counters or counts out of range in the request queue */
	uint64_t wakeups;     /* times a sender was woken for an overdue response */
	uint64_t busy_ticks;  /* time stamp counter's ticks spent on batches */
};

/* The sender of one communication core: wakes up to let overdue responses out. */
struct kv_sender {
	uint32_t wake; /* futex: engines count it up */
	uint32_t stop;
	uint32_t overdue[KV_ENGINES_MAX]; /* set by engine e: its oldest response waits too long */
	uint32_t cpu;
	uint32_t cpus; /* KV_CPUS of the loaded programs */
	uint32_t engines;
	int32_t program_fd;	 /* kv_flush */
	int32_t socket_fd;	 /* a packet socket bound to the interface */
	uint32_t polled_engines; /* the first ones are in XDP, where nobody can wake it: it looks for itself */
	uint64_t frames_sent;
	uint64_t send_failures; /* frames that the packet socket refused */
	uint64_t run_failures;	/* BPF_PROG_RUN calls that failed */
};

/* An emulated bus between DPU and host: what a transfer waits, beside what the machine itself takes. All zero: none. */
struct kv_bus {
	uint64_t latency_ticks; /* of each transfer */
	uint64_t ticks_per_mib; /* its bandwidth, shared by all transfers in one direction */
	uint64_t free_ticks[2]; /* when requests' and responses' direction has carried what it was given */
	uint64_t transfers[2];
	uint64_t bytes[2];
};

/* When to have a response sent that no frame has come to carry. */
struct kv_overdue {
	uint64_t since_ticks; /* of the last response, or the last wake-up */
	uint32_t woken;	      /* 1 after the sender was woken for what is there now */
	uint32_t padding;
};

/* One queue pair of an engine, seen from the host's end. */
struct kv_engine_pair {
	struct kv_queue_pair *pair;
	struct kv_sender *sender; /* of the communication core at the other end; NULL where that end polls */
	uint32_t processed;	  /* batches */
	uint32_t published;	  /* batches handed back: fewer while the emulated bus carries some */
	uint32_t seen;		  /* batches whose arrival over the emulated bus is known */
	uint32_t refused;	  /* the counter out of range that was counted last */
	struct kv_overdue overdue;
	uint64_t arrives_ticks[KV_SLOTS];
	uint64_t leaves_ticks[KV_SLOTS];
};

struct kv_ringbuf;

struct kv_engine {
	const struct kv_partition_table *partitions;
	struct kv_store *stores[KV_PARTITIONS_MAX]; /* its handle on each partition's store */
	uint32_t partition_count;		    /* of the table, which never changes */
	uint32_t partition_step;		    /* 2^32 / partition_count, rounded up: kv_engine_begin() sets it */
	uint32_t takes_all;	 /* 1: there is nobody else, or everybody may read and write: no look at the owner */
	struct kv_ringbuf *ring; /* where requests come from instead of the pairs, or NULL */
	uint32_t id;
	uint32_t cpu; /* where this engine runs */
	uint32_t pair_count;
	uint32_t next_pair;	       /* that a round begins with */
	uint32_t response_bytes_max;   /* of one packet, behind the packet header */
	uint32_t transfer_per_request; /* 1: wait for each record and hand each response back by itself */
	uint64_t flush_after_ticks;    /* a response older than this is overdue */
	struct kv_bus bus;
	struct kv_engine_stats stats;
	uint64_t partition_requests[KV_PARTITIONS_MAX]; /* counted where there are several */
	struct kv_engine_pair pairs[KV_HOST_PAIRS_MAX]; /* communication cores first, by number */
};

/* ---- communicate.c: the host's communication engine ---- */

struct kv_frame;

/* Where frames come from and go to: what any source of them can do. */
struct kv_port {
	/* Up to `room` frames that have come in; they are the caller's until sent or released. Never blocks. */
	uint32_t (*receive)(void *source, struct kv_frame *frames, uint32_t room);
	/* Queue an answer in the place of a frame received from this source. */
	void (*send)(void *source, const struct kv_frame *frame);
	/* Give a frame back unsent. */
	void (*release)(void *source, const struct kv_frame *frame);
	/* Have everything sent that is queued. */
	void (*flush)(void *source);
};

/* One source of frames and what came of them; its own queue pair with every engine. Made by kv_communicator_create(),
 * which leaves the rest to be filled in before kv_host_run(). */
struct kv_communicator {
	struct kv_socket *socket;    /* frames come through AF_XDP, or */
	struct kv_queue_pair *rings; /* whole, through `ring_count` mapped rings, one for each core, or */
	const struct kv_port *port;  /* through another port than these, */
	void *source;		     /* from what this port calls its source */
	struct kv_sender *senders;   /* of those cores */
	uint64_t flush_after_ticks;  /* as in struct kv_engine */
	uint32_t ring_count;
	uint32_t ring_engine; /* whose rings they are */
	uint32_t engines;
	uint32_t first_port;	     /* engine 0's */
	uint32_t address;	     /* network order, 0 = any */
	uint32_t noted;		     /* 1: struct kv_frame_note stands in front of every frame */
	uint32_t send_after_parse;   /* 1: a batch's responses wait for the next batch's parsing, as in MICA */
	struct kv_queue_pair *pairs; /* [engines] */
	struct kv_dpu_queue *queues; /* [engines], the private side with the counters; stages in the first one */
	struct kv_communicator_state *state;
};

/* The host's end of a BPF ring buffer; NULL and errno on failure. */
struct kv_ringbuf *kv_ringbuf_create(int map_fd, uint32_t bytes);
void kv_ringbuf_destroy(struct kv_ringbuf *ring);

/* NULL and errno on failure. */
struct kv_communicator *kv_communicator_create(uint32_t engines);
void kv_communicator_destroy(struct kv_communicator *communicator);

/* ---- sender.c ---- */

/* Wait for engines to report overdue responses and let them out, until `stop`. On a thread pinned to `cpu`. */
int kv_sender_run(struct kv_sender *sender);
/* Wake a sender, for example after setting `stop`. */
void kv_sender_wake(struct kv_sender *sender);

/* ---- Frames, as the host's communication engine sees them ---- */

struct kv_frame {
	uint8_t *data;
	uint8_t *reply; /* where its answer is built: the same place, for a socket's frames */
	uint32_t bytes;
	uint32_t room; /* bytes that the answer may have */
	uint64_t tag;  /* where it came from: its port's own */
};

/* ---- socket.c: one AF_XDP socket for one receive queue, through libxdp ---- */

enum kv_socket_mode { KV_SOCKET_COPY = 0, KV_SOCKET_ZERO_COPY = 1 };

/* Steps of opening one, in order; the reason of a failure depends on the step. */
enum kv_socket_step {
	KV_SOCKET_ALLOCATE = 0, /* memory for frames, in this process */
	KV_SOCKET_CREATE,	/* socket(AF_XDP) */
	KV_SOCKET_REGISTER,	/* pin and register that memory (UMEM), fill and completion ring */
	KV_SOCKET_BIND,		/* receive and transmit ring, bind to the queue */
	KV_SOCKET_STEPS
};

struct kv_socket_stats {
	uint64_t received;
	uint64_t sent;		  /* frames whose chunks have come back after it */
	uint64_t wakeups;	  /* system calls that made the kernel send or receive */
	uint64_t rx_dropped;	  /* by the kernel: see XDP_STATISTICS in linux/if_xdp.h */
	uint64_t rx_ring_full;	  /* frames dropped because the receive ring was full */
	uint64_t fill_ring_empty; /* frames dropped because no chunk was free to receive into */
	uint64_t tx_invalid;	  /* frames that were empty, or not inside the chunk that they came in */
	uint64_t tx_dropped;	  /* frames refused by the device, or by a transmit ring that stayed full */
	uint32_t mode;		  /* enum kv_socket_mode that the kernel gave */
	uint32_t fd;
	uint32_t chunks;      /* places for a frame in this socket's memory */
	uint32_t chunks_busy; /* of them: held by the caller, or in the kernel's hands with a frame in it */
};

struct kv_socket;

/* A bound socket with `descriptors` receive descriptors (a power of two) and its own memory for frames, every fill
 * descriptor in place. It receives once its descriptor is in an XSKMAP at index `queue`. On failure NULL, errno, and
 * the step that failed in `*step`: dpukv_xdp/sockets.py has what they mean. One thread at a time may use it; the
 * statistics may be read from any. */
struct kv_socket *kv_socket_open(const char *interface, uint32_t queue, uint32_t descriptors, int zero_copy,
				 enum kv_socket_step *step);
void kv_socket_close(struct kv_socket *socket);
/* Up to `room` frames that have come in; they are the caller's until sent or released. Never blocks. */
uint32_t kv_socket_receive(struct kv_socket *socket, struct kv_frame *frames, uint32_t room);
/* Queue an answer, `bytes` long at `reply`, in the chunk of a frame received from this socket; kv_socket_flush() sends.
 * If the ring is full, what is in it is sent first. */
void kv_socket_send(struct kv_socket *socket, const struct kv_frame *frame);
/* Up to `room` frames with nothing in them, to be filled and sent, or released. */
uint32_t kv_socket_take(struct kv_socket *socket, struct kv_frame *frames, uint32_t room);
/* Give a frame back unsent. */
void kv_socket_release(struct kv_socket *socket, const struct kv_frame *frame);
/* Hand everything queued to the kernel and take back what it has sent. */
void kv_socket_flush(struct kv_socket *socket);
void kv_socket_get_stats(struct kv_socket *socket, struct kv_socket_stats *stats);

/* ---- udp.c: one UDP socket of the kernel's for one endpoint ---- */

struct kv_udp_stats {
	uint64_t received;   /* datagrams */
	uint64_t sent;	     /* likewise */
	uint64_t rx_dropped; /* by the kernel, because too many waited already */
	uint64_t rx_errors;  /* system calls that failed to receive */
	uint64_t tx_invalid; /* answers that were empty, or to port 0 */
	uint64_t tx_full;    /* answers for which the socket had no room */
	uint64_t tx_refused; /* answers that the kernel did not send for another reason: no way there, a filter */
	uint32_t fd;
	uint32_t chunks;      /* places for a frame */
	uint32_t chunks_busy; /* of them: held by the caller */
	uint32_t padding;
};

struct kv_udp;

/* A socket bound to an address (network order) and a port (host order) that lets about `datagrams` wait. Its frames
 * have a packet header that is made up, without Ethernet addresses: the kernel has taken the real one off, and puts its
 * own on answers. NULL and errno on failure: EADDRINUSE somebody else has the port, EADDRNOTAVAIL no interface here has
 * the address. One thread at a time may use it; the statistics may be read from any. */
struct kv_udp *kv_udp_open(uint32_t address, uint32_t port, uint32_t datagrams);
void kv_udp_close(struct kv_udp *udp);
void kv_udp_get_stats(struct kv_udp *udp, struct kv_udp_stats *stats);
/* What struct kv_communicator takes as its port; a struct kv_udp is the source. */
const struct kv_port *kv_udp_port(void);

/* ---- dpdk.c: one queue of a DPDK device. Not linked in: dpukv_xdp/dpdk.py loads it where DPDK is installed ---- */

enum kv_dpdk_limit { KV_DPDK_REASON_BYTES = 200 };

struct kv_dpdk_stats {
	uint64_t received;   /* frames, over all queues of the device */
	uint64_t sent;	     /* likewise */
	uint64_t rx_missed;  /* frames dropped because nobody took them out in time, as far as the driver knows */
	uint64_t rx_errors;  /* frames that the driver dropped as broken */
	uint64_t rx_no_room; /* frames dropped because no buffer was free to receive into */
	uint64_t tx_errors;  /* frames that the driver failed to send */
	uint64_t tx_invalid; /* answers that were empty, or longer than their buffer */
	uint64_t tx_dropped; /* answers that the driver did not take: its ring stayed full */
	uint64_t buffers;
	uint64_t buffers_busy;
};

struct kv_dpdk;

/* What the shared object has: its one symbol is kv_dpdk_calls. */
struct kv_dpdk_calls {
	const struct kv_port *port; /* a struct kv_dpdk_queue is the source */
	/* Start the EAL, once in a process: 0, or a negative errno. */
	int (*start)(int count, char **arguments);
	/* Begin with a device: `bus` and `name` are DPDK's, `options` the driver's, each queue has `descriptors` to
	 * receive and as many to send, and buffers for `held` frames more. NULL and what failed in `reason`
	 * (KV_DPDK_REASON_BYTES). */
	struct kv_dpdk *(*open)(const char *bus, const char *name, const char *options, uint32_t queues,
				uint32_t descriptors, uint32_t held, uint32_t mtu, char *reason);
	/* The source for one queue of the device. One thread at a time may use it. */
	void *(*queue)(struct kv_dpdk *device, uint32_t queue);
	void (*get_stats)(struct kv_dpdk *device, struct kv_dpdk_stats *stats);
	void (*close)(struct kv_dpdk *device);
};

/* ---- transfer.c: the host's end of the transfer primitives that `dpukv qp-bench` compares ---- */

/* What the host does: the pair of one program in kv_transfer.c. */
enum kv_transfer_end {
	KV_TRANSFER_RING_RECEIVE,
	KV_TRANSFER_RING_SEND,
	KV_TRANSFER_RINGBUF_RECEIVE,
	KV_TRANSFER_SOCKET_RECEIVE,
	KV_TRANSFER_SOCKET_SEND,
	KV_TRANSFER_ENDS
};

struct kv_transfer {
	struct kv_transfer_control *control; /* mapped, as the next two */
	uint8_t *slots;			     /* the mapped ring: KV_TRANSFER_SLOTS of KV_TRANSFER_BYTES_MAX bytes */
	uint8_t *payloads;		     /* what the host sends: see kv_transfer_fill() */
	uint64_t *stamps;		     /* control->operations + 1 of them: the clock between operations */
	struct kv_socket *socket;	     /* for the two ends that need one */
	int32_t ringbuf_fd;
	uint32_t ringbuf_bytes;
	uint32_t end;		/* enum kv_transfer_end */
	uint32_t sleeps;	/* 1: the host waits in epoll_wait() or poll(), not in a loop */
	int32_t program_fd;	/* the DPU's end */
	uint32_t batch_frames;	/* live frames to run it over, or to send, at a time; 0: no frames */
	uint32_t frame_bytes;	/* of one of them */
	uint32_t interface;	/* index of the one they seem to come from */
	uint64_t timeout_ticks; /* after which both ends give up */
	uint32_t wrong;		/* payloads that were not what they must be, as the host saw them */
	uint32_t padding;
};

/* Write the KV_TRANSFER_PAYLOADS payloads, KV_TRANSFER_BYTES_MAX bytes each. */
void kv_transfer_fill(uint8_t *payloads);
/* Hand over, or take, all operations. On the host's thread: 0, -ETIMEDOUT, -ECANCELED after control->stop, or what a
 * system call said. Stops the other end when it fails. */
int kv_transfer_run_host(struct kv_transfer *transfer);
/* The same on the DPU's thread, which runs the program as often as it takes. */
int kv_transfer_run_dpu(struct kv_transfer *transfer);

/* ---- bpf_run.c: running programs; mapping maps ---- */

/* Run an XDP program once over a copy of `frame`; *verdict and up to `room` bytes of the frame come back. */
int kv_bpf_run_once(int program_fd, const uint8_t *frame, uint32_t frame_bytes, uint8_t *out, uint32_t room,
		    uint32_t *out_bytes, uint32_t *verdict);
/* Run an XDP program `repeat` times in one call, over the same copy of `frame`. */
int kv_bpf_run_again(int program_fd, const uint8_t *frame, uint32_t frame_bytes, uint32_t repeat);
/* Run an XDP program over live frames of `frame_bytes` on an interface until `repeat` runs are done or a signal
 * arrives (-EINTR). */
int kv_bpf_run_live(int program_fd, uint32_t interface_index, uint32_t frame_bytes, uint32_t repeat,
		    uint32_t batch_frames);
/* One live frame, as if it had come in on a receive queue. */
int kv_bpf_run_live_frame(int program_fd, uint32_t interface_index, uint32_t queue, const uint8_t *frame,
			  uint32_t frame_bytes);
/* Map a BPF_F_MMAPABLE array; NULL and errno on failure. */
void *kv_bpf_map_memory(int map_fd, size_t bytes);

/* ---- abi.c: what abi/histogram.h has as inline functions, for Python ---- */

uint64_t kv_latency_floor_ns(uint32_t bucket);
uint32_t kv_latency_bucket(uint64_t value_ns);

/* ---- peer_protocol.c, peer_load.c: load for stores with other protocols, for `dpukv compare` ---- */

enum kv_peer_protocol {
	KV_PEER_RESP,	       /* Redis: every request a command of its own, pipelined */
	KV_PEER_RESP_MGET,     /* Redis: a message's GETs are one MGET */
	KV_PEER_MEMCACHED,     /* memcached's text protocol: a message's GETs are one multi-get */
	KV_PEER_MEMCACHED_UDP, /* the same, a message in one datagram behind an 8-byte frame header */
	KV_PEER_PROTOCOLS
};

enum kv_peer_limit {
	KV_PEER_LINE_MAX = 512,	     /* bytes in a line of an answer, its key included */
	KV_PEER_BUFFER_BYTES = 16384 /* of what has come in and is not understood yet, for each stream */
};

enum kv_peer_state { KV_PEER_RUNNING, KV_PEER_DRAINING, KV_PEER_STOPPED };

struct kv_peer_request {
	uint64_t key_hash; /* says what value belongs to it: KV_LOAD_VALUE_WORD() */
	uint32_t key_at;   /* where its key's text stands, from the message's first byte on */
	uint32_t padding;
};

/* One to KV_BATCH_MAX requests that are sent together, the GETs before the SETs. */
struct kv_peer_message {
	uint64_t at; /* its first byte in the plan */
	uint32_t bytes;
	uint32_t first; /* its first request in the plan */
	uint32_t gets;
	uint32_t sets;
};

/* Prepared messages, sent over and over. The memory belongs to the caller. */
struct kv_peer_plan {
	uint8_t *bytes;
	struct kv_peer_message *messages;
	struct kv_peer_request *requests;
	uint64_t bytes_room;
	uint32_t message_count;
	uint32_t protocol; /* enum kv_peer_protocol */
	uint32_t key_size; /* its text has twice as many bytes: hexadecimal digits */
	uint32_t value_bytes;
};

/* Write messages of `per_message` requests each, the last one with the rest: `keys` are plan->key_size bytes each. Sets
 * plan->message_count. Bytes written, -ENOBUFS if they do not fit, -EINVAL for a plan beyond the limits. */
int64_t kv_peer_encode(struct kv_peer_plan *plan, const uint8_t *keys, const uint64_t *key_hashes,
		       const uint8_t *is_get, uint32_t count, uint32_t per_message);

/* How far the answer to one message has been understood; all zero before its first byte. */
struct kv_peer_answer {
	uint32_t position; /* requests that are answered */
	uint32_t bracket;  /* 1: what stands before (MGET) or behind (multi-get) all values has come */
	uint32_t complete;
	uint32_t hits;
	uint32_t misses;
	uint32_t stored;
	uint32_t corrupt; /* a wrong value, or one that nobody asked for */
	uint32_t refused; /* the server said that it does not do this */
};

/* Understand as much of `data` as is whole and belongs to the answer to this message. Bytes that were used up, or
 * -EPROTO if no server that speaks the protocol would say that. */
int64_t kv_peer_parse(const struct kv_peer_plan *plan, const struct kv_peer_message *message,
		      struct kv_peer_answer *answer, const uint8_t *data, uint32_t bytes);

/* Written by the generator's thread only, read by anybody at any time. */
struct kv_peer_results {
	uint64_t requests_sent;
	uint64_t bytes_sent;
	uint64_t messages_sent;
	uint64_t messages; /* answered */
	uint64_t responses;
	uint64_t bytes;
	uint64_t hits;
	uint64_t misses;
	uint64_t stored;
	uint64_t corrupt;
	uint64_t refused;
	uint64_t late; /* datagrams that nobody waits for any more */
	uint64_t lost; /* requests without an answer in time */
	uint64_t latency_sum_ns;
	uint64_t polls;
	uint64_t idle_ns;			/* in polls that found nothing to do */
	uint64_t latency[KV_HISTOGRAM_BUCKETS]; /* requests by round trip of their message, see kv_histogram_bucket() */
};

struct kv_peer_load {
	struct kv_peer_plan plan;
	uint32_t state;		 /* enum kv_peer_state, set by anybody */
	uint32_t protocol_error; /* 1 after an answer that cannot be understood; its beginning is in `offending` */
	uint64_t messages_limit; /* sent in this run; 0: no limit */
	uint64_t timeout_ns;
	struct kv_peer_results results;
	uint8_t offending[64];
	struct kv_peer_load_state *own;
};

/* `sockets` are connected, do not block and stay the caller's. A stream socket keeps `window` messages outstanding and
 * is one stream of bytes; a datagram socket keeps as many, up to KV_BATCH_MAX. NULL and errno on failure. */
struct kv_peer_load *kv_peer_load_create(const int32_t *sockets, uint32_t count, uint32_t window, int is_datagram);
void kv_peer_load_destroy(struct kv_peer_load *load);
/* Send the plan's messages until `state` says otherwise or the limit is reached, then wait for what is out. On the
 * generator's thread. 0, -EPROTO, -EPIPE when the server has hung up, -ETIMEDOUT when a stream stays silent, or what a
 * system call said. */
int kv_peer_load_run(struct kv_peer_load *load);

#endif
