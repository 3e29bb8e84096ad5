# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""AF_XDP sockets of the native core (_core/port/socket.c) on a veth pair: every frame arrives or
is counted, and no chunk of a socket's memory is lost.
"""

import errno
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from net.serving import set_link
from pyroute2 import IPRoute

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import SocketError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.kernel import loader, nic
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.kernel.veth import End
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.native.sockets import ReceiveSocket, open_socket

pytestmark = [pytest.mark.needs("AF_XDP", "AF_XDP need_wakeup"), pytest.mark.shares_cores]

TIMEOUT_SECONDS = patient(5.0)
"""Time-out of a frame, far longer than any frame takes."""

SOCKET_MAC = b"\x02kv\xd0\x00\x01"
CLIENT_MAC = b"\x02kv\xd0\x00\x02"
ETHERTYPE = b"\x88\xb5"  # reserved for local experiments, so no other program sends it
HEAD = SOCKET_MAC + CLIENT_MAC + ETHERTYPE
HEAD_BACK = CLIENT_MAC + SOCKET_MAC + ETHERTYPE
MARK = 0x6B76
CHUNK_BYTES = 4096  # of socket.c
KERNEL_HEADROOM_BYTES = 256  # XDP_PACKET_HEADROOM of linux/bpf.h


class XdpSocket:
    """One kv_socket on the server's end of a lab."""

    def __init__(self, end: End, queue: int = 0, descriptors: int = 64) -> None:
        with in_namespace(end.namespace):
            self.native = open_native(end.interface, queue, descriptors)
        self._frames = ffi.new("struct kv_frame[]", 4096)
        self._stats = ffi.new("struct kv_socket_stats *")
        self.held: list[Any] = []
        """Received frames that were neither sent nor released."""

    def close(self) -> None:
        lib.kv_socket_close(self.native)

    @property
    def stats(self) -> Any:
        lib.kv_socket_get_stats(self.native, self._stats)
        return self._stats

    def receive(self, room: int = 4096) -> list[Any]:
        """Receive the frames that have arrived; return and hold them."""
        count = lib.kv_socket_receive(self.native, self._frames, room)
        frames = [ffi.new("struct kv_frame *", self._frames[i]) for i in range(count)]
        self.held += frames
        return frames

    def receive_all(self, count: int) -> list[Any]:
        """Receive `count` frames within TIMEOUT_SECONDS."""
        frames: list[Any] = []
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(frames) < count:
            assert time.monotonic() < deadline, f"{len(frames)} of {count} frames arrived"
            frames += self.receive()
        assert len(frames) == count
        return frames

    def send(self, frame: Any, content: bytes | None = None) -> None:
        """Queue a frame for sending, with its bytes replaced by `content`."""
        if content is not None:
            ffi.memmove(frame.reply, content, len(content))
            frame.bytes = len(content)
        self.held.remove(frame)
        lib.kv_socket_send(self.native, frame)

    def release(self, frames: Sequence[Any] | None = None) -> None:
        """Release some frames, by default all that are held."""
        for frame in list(self.held if frames is None else frames):
            self.held.remove(frame)
            lib.kv_socket_release(self.native, frame)

    def flush(self) -> None:
        lib.kv_socket_flush(self.native)

    def assert_nothing_is_lost(self) -> None:
        """Assert that each chunk is held by the caller or free for the next frame."""
        self.flush()
        assert self.stats.chunks_busy == len(self.held)


class Wire:
    """The client's end of the link, for raw frames."""

    def __init__(self, end: End) -> None:
        self._interface = end.interface
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind((end.interface, int.from_bytes(ETHERTYPE, "big")))
        self._socket.settimeout(TIMEOUT_SECONDS)

    def close(self) -> None:
        self._socket.close()

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            ethertype = int.from_bytes(frame[12:14], "big")
            assert self._socket.sendto(frame, (self._interface, ethertype)) == len(frame)

    def receive(self, count: int) -> list[bytes]:
        return [self._socket.recv(CHUNK_BYTES) for _ in range(count)]

    def assert_silent(self) -> None:
        assert select.select([self._socket], [], [], 0)[0] == []


def open_native(interface: str, queue: int, descriptors: int, zero_copy: int = 0) -> Any:
    """Return a kv_socket in the current namespace, by default in copy mode. Raises OSError."""
    step = ffi.new("enum kv_socket_step *")
    native = lib.kv_socket_open(interface.encode(), queue, descriptors, zero_copy, step)
    if native == ffi.NULL:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return native


@pytest.fixture(scope="module")
def program() -> Iterator[loader.LoadedObject]:
    """Yield the XDP program of the tests, whose sockets go into its map."""
    settings = {
        "TEST_QUEUES": 2,
        "TEST_MAC_START": int.from_bytes(SOCKET_MAC[:4], "little"),
        "TEST_MARK": MARK,
    }
    loaded = loader.load(str(Path(__file__).parent / "redirect.c"), ["redirect"], settings)
    yield loaded
    loaded.close()


@pytest.fixture
def wire(lab: Lab, program: loader.LoadedObject) -> Iterator[Wire]:
    """Yield the client's end of a lab whose server's end runs the program."""
    with in_namespace(lab.server.namespace):
        nic.attach_xdp(lab.server.interface, program.programs["redirect"])
    with in_namespace(lab.client.namespace):
        own = Wire(lab.client)
    yield own
    own.close()


@contextmanager
def opened(
    lab: Lab, program: loader.LoadedObject, *, queue: int = 0, descriptors: int = 64
) -> Iterator[XdpSocket]:
    """Yield a socket in the program's map; at the end, no chunk of it may be missing."""
    own = XdpSocket(lab.server, queue, descriptors)
    try:
        program.set_fd("sockets", queue, own.stats.fd)
        yield own
    finally:
        own.close()


def numbered(number: int, bytes_: int = 60, head: bytes = HEAD) -> bytes:
    """Return a frame that contains its number, and whose bytes reveal a shift."""
    body = number.to_bytes(4, "big") + bytes((number + i) % 251 for i in range(bytes_))
    return (head + body)[:bytes_]


def content(frame: Any) -> bytes:
    return bytes(ffi.buffer(frame.data, frame.bytes))


# ---- Frames in and out


@pytest.mark.parametrize("bytes_", [14, 15, 59, 60, 61, 1513, 1514])
def test_a_frame_arrives_exactly(
    lab: Lab, program: loader.LoadedObject, wire: Wire, bytes_: int
) -> None:
    with opened(lab, program) as own:
        assert own.receive() == []
        wire.send(numbered(7, bytes_))
        assert select.select([own.stats.fd], [], [], TIMEOUT_SECONDS)[0], "poll() tells"
        (frame,) = own.receive()
        assert content(frame) == numbered(7, bytes_)
        assert frame.room == CHUNK_BYTES - KERNEL_HEADROOM_BYTES
        mark = ffi.cast("uint32_t *", frame.data) - 2
        assert (mark[0], mark[1]) == (MARK, 0), "the metadata in front of the frame"
        assert (own.stats.received, own.stats.mode) == (1, lib.KV_SOCKET_COPY)


@pytest.mark.parametrize("bytes_", [60, 14, 100, 1000, 1514])
def test_the_answer_goes_back_in_the_request_s_place(
    lab: Lab, program: loader.LoadedObject, wire: Wire, bytes_: int
) -> None:
    with opened(lab, program) as own:
        wire.send(numbered(1, 100))
        own.send(*own.receive_all(1), numbered(2, bytes_, HEAD_BACK))
        wire.assert_silent()
        own.flush()
        assert wire.receive(1) == [numbered(2, bytes_, HEAD_BACK)]
        assert own.stats.sent == 1
        own.assert_nothing_is_lost()


def test_a_frame_may_start_elsewhere_in_its_chunk(
    lab: Lab, program: loader.LoadedObject, wire: Wire
) -> None:
    """A longer header, as with a VLAN tag, grows into the headroom."""
    with opened(lab, program) as own:
        wire.send(numbered(1))
        (frame,) = own.receive_all(1)
        frame.reply -= KERNEL_HEADROOM_BYTES
        own.send(frame, numbered(2, 100, HEAD_BACK))
        own.flush()
        assert wire.receive(1) == [numbered(2, 100, HEAD_BACK)]
        own.assert_nothing_is_lost()


def test_ten_thousand_frames_through_a_small_ring(
    lab: Lab, program: loader.LoadedObject, wire: Wire
) -> None:
    """One in three is released; the others are answered, some in separate flushes."""
    with opened(lab, program, descriptors=16) as own:
        answered = 0
        for first in range(0, 10_000, 10):
            wire.send(*(numbered(number) for number in range(first, first + 10)))
            frames = own.receive_all(10)
            assert [content(frame) for frame in frames] == [
                numbered(number) for number in range(first, first + 10)
            ]
            for number, frame in enumerate(frames, first):
                if number % 3 == 0:
                    own.release([frame])
                else:
                    own.send(frame, numbered(number, 60 + number % 8, HEAD_BACK))
            own.flush()
            replies = [number for number in range(first, first + 10) if number % 3]
            answered += len(replies)
            assert wire.receive(len(replies)) == [
                numbered(number, 60 + number % 8, HEAD_BACK) for number in replies
            ]
        stats = own.stats
        assert (stats.received, stats.sent) == (10_000, answered)
        assert (stats.rx_ring_full, stats.rx_dropped, stats.fill_ring_empty) == (0, 0, 0)
        assert (stats.tx_invalid, stats.tx_dropped) == (0, 0)
        own.assert_nothing_is_lost()


def test_frames_that_come_from_another_core_meanwhile(
    lab: Lab, program: loader.LoadedObject, wire: Wire
) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    bursts = [range(first, first + 8) for first in range(0, 2000, 8)]

    def ask() -> bool:
        """Request a frame on a thread of its own: the kernel receives on that thread's core."""
        os.sched_setaffinity(0, {cpus[-1]})
        for burst in bursts:
            wire.send(*map(numbered, burst))
            if wire.receive(8) != [numbered(number, 60, HEAD_BACK) for number in burst]:
                return False
        return True

    def answer(own: XdpSocket, asking: Future[bool]) -> None:
        os.sched_setaffinity(0, {cpus[0]})
        while not asking.done():
            for frame in own.receive():
                own.send(frame, HEAD_BACK + content(frame)[len(HEAD) :])
            own.flush()

    with opened(lab, program, descriptors=8) as own, ThreadPoolExecutor(2) as threads:
        asking = threads.submit(ask)
        threads.submit(answer, own, asking).result()
        assert asking.result()
        own.assert_nothing_is_lost()


def test_released_frames_are_received_into_again(
    lab: Lab, program: loader.LoadedObject, wire: Wire
) -> None:
    with opened(lab, program, descriptors=8) as own:
        for first in range(0, 10 * own.stats.chunks, 8):
            wire.send(*(numbered(number) for number in range(first, first + 8)))
            frames = own.receive_all(8)
            assert content(frames[-1]) == numbered(first + 7)
            own.release()
        assert own.stats.sent == 0
        own.assert_nothing_is_lost()


def test_many_answers_in_one_flush(lab: Lab, program: loader.LoadedObject, wire: Wire) -> None:
    """Copy mode sends 16 or 32 frames per system call."""
    with opened(lab, program, descriptors=256) as own:
        wire.send(*map(numbered, range(200)))
        for number, frame in enumerate(own.receive_all(200)):
            own.send(frame, numbered(number, 60, HEAD_BACK))
        wire.assert_silent()
        own.flush()
        assert wire.receive(200) == [numbered(number, 60, HEAD_BACK) for number in range(200)]
        assert own.stats.wakeups < 200 / 8
        own.assert_nothing_is_lost()


def test_more_answers_than_the_ring_has_places(
    lab: Lab, program: loader.LoadedObject, wire: Wire
) -> None:
    with opened(lab, program, descriptors=8) as own:
        for first in (0, 8, 16):
            wire.send(*map(numbered, range(first, first + 8)))
            own.receive_all(8)
        for number, frame in enumerate(list(own.held)):
            own.send(frame, numbered(number, 60, HEAD_BACK))
        assert wire.receive(16) == [numbered(number, 60, HEAD_BACK) for number in range(16)]
        wire.assert_silent()
        own.flush()
        assert wire.receive(8) == [numbered(number, 60, HEAD_BACK) for number in range(16, 24)]
        own.assert_nothing_is_lost()


@pytest.mark.parametrize("lab", [{"queues": 2}], indirect=True)
def test_two_queues_have_a_socket_each(lab: Lab, program: loader.LoadedObject, wire: Wire) -> None:
    with opened(lab, program) as first, opened(lab, program, queue=1) as second:
        wire.send(*(udp_frame(port) for port in range(1000, 1032)))
        frames: list[tuple[int, bytes]] = []
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(frames) < 32:
            assert time.monotonic() < deadline, f"{len(frames)} of 32 frames arrived"
            for queue, own in enumerate((first, second)):
                for frame in own.receive():
                    assert (ffi.cast("uint32_t *", frame.data) - 1)[0] == queue
                    frames.append((queue, content(frame)))
        assert sorted(frame for _, frame in frames) == [udp_frame(p) for p in range(1000, 1032)]
        assert {queue for queue, _ in frames} == {0, 1}


def udp_frame(port: int) -> bytes:
    """Return an empty datagram to a port: the veth pair spreads flows over its queues."""
    ip = bytes.fromhex("4500001c00000000401100000a0000020a000001")
    udp = bytes.fromhex("c000") + port.to_bytes(2, "big") + bytes.fromhex("00080000")
    return (SOCKET_MAC + CLIENT_MAC + b"\x08\x00" + ip + udp).ljust(60, b"\0")


# ---- What does not fit


def test_a_full_receive_ring_drops_and_recovers(
    lab: Lab, program: loader.LoadedObject, wire: Wire
) -> None:
    with opened(lab, program, descriptors=16) as own:
        wire.send(*map(numbered, range(40)))
        wait_until(lambda: own.stats.rx_ring_full == 24)
        frames = own.receive_all(16)
        assert [content(frame) for frame in frames] == [numbered(number) for number in range(16)]
        own.release()
        wire.send(*map(numbered, range(40, 56)))
        assert content(own.receive_all(16)[-1]) == numbered(55)
        own.release()
        own.flush()
        assert own.stats.chunks_busy <= 1, "the kernel keeps the chunk of a dropped frame for later"


def test_a_caller_that_holds_every_chunk(
    lab: Lab, program: loader.LoadedObject, wire: Wire
) -> None:
    with opened(lab, program, descriptors=8) as own:
        chunks = own.stats.chunks
        assert chunks == 4 * 8, "the receive and transmit rings' places, and twice as many to fill"
        for first in range(0, chunks, 8):
            wire.send(*map(numbered, range(first, first + 8)))
            own.receive_all(8)
        assert len({frame.tag for frame in own.held}) == own.stats.chunks_busy == chunks
        wire.send(numbered(99))
        wait_until(lambda: own.stats.fill_ring_empty > 0)
        assert own.receive() == []
        assert own.stats.rx_dropped == 1
        own.release()
        own.flush()
        wire.send(numbered(100))
        assert content(own.receive_all(1)[0]) == numbered(100)
        own.assert_nothing_is_lost()


@pytest.mark.parametrize(("start", "bytes_"), [(0, 0), (0, 3841), (-257, 60), (3840, 1)])
def test_a_bad_frame_is_counted_and_its_chunk_comes_back(
    lab: Lab, program: loader.LoadedObject, wire: Wire, start: int, bytes_: int
) -> None:
    with opened(lab, program) as own:
        wire.send(numbered(1))
        (frame,) = own.receive_all(1)
        frame.reply += start
        frame.bytes = bytes_
        own.send(frame)
        own.flush()
        assert (own.stats.tx_invalid, own.stats.sent) == (1, 0)
        own.assert_nothing_is_lost()


def test_a_link_that_is_down_keeps_frames_until_it_is_up(
    lab: Lab, program: loader.LoadedObject, wire: Wire
) -> None:
    with opened(lab, program, descriptors=4) as own:
        for first in (0, 4):
            wire.send(*map(numbered, range(first, first + 4)))
            own.receive_all(4)
        set_link(lab.server, state="down")
        for number, frame in enumerate(list(own.held)):
            own.send(frame, numbered(number, 60, HEAD_BACK))
        own.flush()
        assert (own.stats.tx_dropped, own.stats.sent) == (4, 0), "the ring has room for four"
        assert own.stats.chunks_busy == 4
        set_link(lab.server, state="up")
        assert own.receive() == [], "but what the flush could not send leaves now"
        assert wire.receive(4) == [numbered(number, 60, HEAD_BACK) for number in range(4)]
        own.assert_nothing_is_lost()


def test_frames_that_the_device_drops_are_counted(
    lab: Lab, program: loader.LoadedObject, wire: Wire
) -> None:
    with opened(lab, program) as own:
        wire.send(*map(numbered, range(3)))
        frames = own.receive_all(3)
        set_link(lab.client, state="down")
        for frame in frames:
            own.send(frame, numbered(1, 60, HEAD_BACK))
        own.flush()
        assert (own.stats.tx_dropped, own.stats.sent) == (3, 0)
        own.assert_nothing_is_lost()


def test_an_interface_that_goes_away(lab: Lab, program: loader.LoadedObject, wire: Wire) -> None:
    with opened(lab, program) as own:
        wire.send(numbered(1), numbered(2))
        frames = own.receive_all(2)
        with in_namespace(lab.server.namespace), IPRoute() as netlink:
            netlink.link("del", ifname=lab.server.interface)
        own.send(frames[0], numbered(1, 60, HEAD_BACK))
        own.flush()
        own.release([frames[1]])
        assert own.receive() == []
        assert own.stats.sent == 0


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"


# ---- Opening


@pytest.mark.parametrize(
    ("interface", "queue", "descriptors", "zero_copy", "reason"),
    [
        (None, 0, 64, 1, errno.EOPNOTSUPP),  # veth has no zero-copy
        (None, 1, 64, 0, errno.EINVAL),
        (None, 2**32 - 1, 64, 0, errno.EINVAL),
        ("dpukv-none", 0, 64, 0, errno.ENODEV),
        ("", 0, 64, 0, errno.ENODEV),
        ("a-name-longer-than-any", 0, 64, 0, errno.ENODEV),
        (None, 0, 0, 0, errno.EINVAL),
        (None, 0, 63, 0, errno.EINVAL),
        (None, 0, 2**16, 0, errno.EINVAL),
        (None, 0, 2**31, 0, errno.EINVAL),
    ],
)
def test_what_cannot_be_opened_says_why(
    lab: Lab, interface: str | None, queue: int, descriptors: int, zero_copy: int, reason: int
) -> None:
    name = lab.server.interface if interface is None else interface
    before = open_things()
    with in_namespace(lab.server.namespace), pytest.raises(OSError) as raised:
        open_native(name, queue, descriptors, zero_copy)
    assert raised.value.errno == reason
    assert open_things() == before


OPEN = """
import resource, sys
from dpukv_xdp.base.errors import SocketError
from dpukv_xdp.native.sockets import open_socket
interface, queue, mode, limit = sys.argv[1:]
if limit:
    name, _, most = limit.partition("=")
    resource.setrlimit(getattr(resource, name), (int(most), int(most)))
try:
    open_socket(interface, int(queue), 256, mode)
except SocketError as error:
    print(error.needs)
"""


@dataclass(frozen=True)
class Refusal:
    """A way to make the kernel refuse a socket."""

    says: str
    """Part of the sentence on what the socket needs."""
    queue: int = 0
    mode: str = "copy"
    without: str = ""
    """A capability that the process lacks."""
    limit: str = ""
    """A resource limit that the process exceeds."""


REFUSALS = {
    "locked_memory": Refusal("`ulimit -l`", without="ipc_lock", limit="RLIMIT_MEMLOCK=65536"),
    "no_net_raw": Refusal("CAP_NET_RAW", without="net_raw"),
    "descriptors": Refusal("`ulimit -n`", limit="RLIMIT_NOFILE=3"),
    "memory": Refusal("--rx-descriptors", limit="RLIMIT_AS=1"),
    "no_such_queue": Refusal("a receive queue of that number", queue=7),
    "zero_copy": Refusal("a driver with zero-copy", mode="zero-copy"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=list(REFUSALS))
def test_a_refusal_is_told_by_its_true_cause(lab: Lab, refusal: Refusal) -> None:
    argv = [sys.executable, "-P", "-c", OPEN, lab.server.interface]
    argv += [str(refusal.queue), refusal.mode, refusal.limit]
    if refusal.without:
        argv = ["setpriv", f"--bounding-set=-{refusal.without}", *argv]
    with lab.spawn(lab.server, argv, stdout=subprocess.PIPE, text=True) as child:
        said, _ = child.communicate(timeout=TIMEOUT_SECONDS)
    assert child.returncode == 0
    assert refusal.says in said
    assert said.count("\n") == 1


def test_a_queue_that_somebody_has_is_told_so(lab: Lab) -> None:
    own = XdpSocket(lab.server)
    with in_namespace(lab.server.namespace), pytest.raises(SocketError) as raised:
        open_socket(lab.server.interface, 0, 64, "copy")
    assert "stop the program whose socket has it" in str(raised.value)
    own.close()


def test_a_map_without_the_queue_is_told_so(lab: Lab, program: loader.LoadedObject) -> None:
    with in_namespace(lab.server.namespace):
        receive = ReceiveSocket(lab.server.interface, 0, 64, "copy")
    receive.queue = 1 << 20
    with (
        mock.patch.object(program, "set_fd", lambda _name, *place: set_in_map(program, *place)),
        pytest.raises(SocketError, match=r"receive queue below .*--frames ring"),
    ):
        receive.join(program)
    receive.close()


def set_in_map(program: loader.LoadedObject, queue: int, fd: int) -> None:
    """Enter a socket into the tests' map, which has another name."""
    loader.LoadedObject.set_fd(program, "sockets", queue, fd)


def test_a_queue_has_one_socket(lab: Lab) -> None:
    descriptors, rings = open_things()
    own = XdpSocket(lab.server)
    before = open_things()
    assert before == (descriptors + 1, rings + 4)
    with pytest.raises(OSError) as raised:
        XdpSocket(lab.server)
    assert raised.value.errno == errno.EBUSY
    assert open_things() == before
    own.close()


def test_a_closed_queue_can_be_opened_at_once(lab: Lab) -> None:
    before = open_things()
    for _ in range(10):
        XdpSocket(lab.server).close()
    assert open_things() == before


@pytest.mark.parametrize("descriptors", [1, 2, 2048])
def test_any_power_of_two_serves(
    lab: Lab, program: loader.LoadedObject, wire: Wire, descriptors: int
) -> None:
    with opened(lab, program, descriptors=descriptors) as own:
        for number in range(10):
            wire.send(numbered(number))
            own.send(own.receive_all(1)[0], numbered(number, 60, HEAD_BACK))
            own.flush()
            assert wire.receive(1) == [numbered(number, 60, HEAD_BACK)]
        own.assert_nothing_is_lost()


def test_a_child_process_does_not_inherit_it(lab: Lab) -> None:
    own = XdpSocket(lab.server)
    assert not os.get_inheritable(own.stats.fd)
    own.close()


def test_closing_nothing_is_allowed() -> None:
    lib.kv_socket_close(ffi.NULL)


def open_things() -> tuple[int, int]:
    """Return the numbers of file descriptors and mapped socket rings of this process."""
    maps = Path("/proc/self/maps").read_text()
    return len(list(Path("/proc/self/fd").iterdir())), maps.count("socket:[")
