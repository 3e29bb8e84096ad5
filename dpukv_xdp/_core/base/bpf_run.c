// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* bpf_run.c - BPF_PROG_RUN: once, repeatedly, and over live frames; mapping BPF maps. */
#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "abi/limits.h"
#include "base/bpf_run.h"

static int kv_bpf(int command, union bpf_attr *attributes)
{
	long result = syscall(SYS_bpf, command, attributes, sizeof(*attributes));

	return result < 0 ? -errno : (int)result;
}

static union bpf_attr run_attributes(int program_fd, const uint8_t *frame, uint32_t frame_bytes, uint32_t repeat)
{
	union bpf_attr attributes;

	memset(&attributes, 0, sizeof(attributes));
	attributes.test.prog_fd = program_fd;
	attributes.test.data_in = (uintptr_t)frame;
	attributes.test.data_size_in = frame_bytes;
	attributes.test.repeat = repeat;
	return attributes;
}

int kv_bpf_run_once(int program_fd, const uint8_t *frame, uint32_t frame_bytes, uint8_t *out, uint32_t room,
		    uint32_t *out_bytes, uint32_t *verdict)
{
	union bpf_attr attributes = run_attributes(program_fd, frame, frame_bytes, 1);
	int result;

	attributes.test.data_out = (uintptr_t)out;
	attributes.test.data_size_out = room;
	result = kv_bpf(BPF_PROG_TEST_RUN, &attributes);
	*out_bytes = attributes.test.data_size_out;
	*verdict = attributes.test.retval;
	return result;
}

int kv_bpf_run_again(int program_fd, const uint8_t *frame, uint32_t frame_bytes, uint32_t repeat)
{
	union bpf_attr attributes = run_attributes(program_fd, frame, frame_bytes, repeat);

	return kv_bpf(BPF_PROG_TEST_RUN, &attributes);
}

/* Run an XDP program over live frames that appear to have been received on a receive queue. */
static int run_live(int program_fd, uint32_t interface_index, uint32_t queue, const uint8_t *frame,
		    uint32_t frame_bytes, uint32_t repeat, uint32_t batch_frames)
{
	struct xdp_md context = {
		.data_end = frame_bytes,
		.ingress_ifindex = interface_index,
		.rx_queue_index = queue,
	};
	union bpf_attr attributes = run_attributes(program_fd, frame, frame_bytes, repeat);

	attributes.test.ctx_in = (uintptr_t)&context;
	attributes.test.ctx_size_in = sizeof(context);
	attributes.test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
	attributes.test.batch_size = batch_frames;
	return kv_bpf(BPF_PROG_TEST_RUN, &attributes);
}

int kv_bpf_run_live(int program_fd, uint32_t interface_index, uint32_t frame_bytes, uint32_t repeat,
		    uint32_t batch_frames)
{
	uint8_t frame[KV_FRAME_MAX] = { 0 };

	if (frame_bytes > sizeof(frame))
		return -EINVAL;
	return run_live(program_fd, interface_index, 0, frame, frame_bytes, repeat, batch_frames);
}

int kv_bpf_run_live_frame(int program_fd, uint32_t interface_index, uint32_t queue, const uint8_t *frame,
			  uint32_t frame_bytes)
{
	return run_live(program_fd, interface_index, queue, frame, frame_bytes, 1, 1);
}

void *kv_bpf_map_memory(int map_fd, size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, map_fd, 0);

	return memory == MAP_FAILED ? NULL : memory;
}
