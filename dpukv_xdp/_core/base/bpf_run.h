/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* bpf_run.h - run BPF programs, map BPF maps. */
#ifndef KV_BPF_RUN_H
#define KV_BPF_RUN_H

#include "base/integers.h"

/* Run an XDP program once over a copy of `frame`. Return its verdict and up to `room` bytes of the resulting frame. */
int kv_bpf_run_once(int program_fd, const uint8_t *frame, uint32_t frame_bytes, uint8_t *out, uint32_t room,
		    uint32_t *out_bytes, uint32_t *verdict);
/* Run an XDP program `repeat` times in one call, over the same copy of `frame`. */
int kv_bpf_run_again(int program_fd, const uint8_t *frame, uint32_t frame_bytes, uint32_t repeat);
/* Run an XDP program over live frames of `frame_bytes` on an interface until `repeat` runs are done or a signal
 * arrives (-EINTR). */
int kv_bpf_run_live(int program_fd, uint32_t interface_index, uint32_t frame_bytes, uint32_t repeat,
		    uint32_t batch_frames);
/* Run an XDP program over one live frame that appears to have been received on a receive queue. */
int kv_bpf_run_live_frame(int program_fd, uint32_t interface_index, uint32_t queue, const uint8_t *frame,
			  uint32_t frame_bytes);
/* Map a BPF_F_MMAPABLE array. Return NULL and set errno on failure. */
void *kv_bpf_map_memory(int map_fd, size_t bytes);

#endif
