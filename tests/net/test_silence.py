# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A server whose process is stopped or killed: requests are refused in words that clients
understand, at once, and the interface's other traffic goes on.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from net.commands import wait_for
from net.serving import Wire, client_of, ends, programs_on, registered_on, serving, serving_child

from dpukv_xdp.base.errors import NoResponseError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.topology.schema import ServerConfig
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Request

NOTICED_SECONDS = patient(1.0)
"""XDP notices silence within 100 ms; the rest is for a busy machine."""
PAUSE_SECONDS = 0.005
WAYS = {
    "lat": (),
    "lat, ringbuf": ("--transport", "ringbuf"),
    "lat, AF_XDP": ("--transport", "af_xdp"),
    "lat, sender": ("--respond", "sender"),
    "sav": ("--design", "sav"),
    "cpu-only": ("--design", "cpu-only"),
    "cpu-only, ring": ("--design", "cpu-only", "--frames", "ring"),
    "dual": ("--design", "dual"),
    "dual, ring": ("--design", "dual", "--frames", "ring"),
    "shrd": ("--design", "shrd"),
}
"""Servers whose last port needs an engine on the host, each with another way to it."""


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process within the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def get_for_last_engine(lab: Lab, options: tuple[str, ...]) -> tuple[int, bytes]:
    """Return the port of the server's last engine, which is on the host in these designs, and the
    frame of a GET that it owns.
    """
    design = options[1] if options[:1] == ("--design",) else "lat"
    config = ServerConfig(design=design)
    owners, last = config.owners(), config.endpoint_count() - 1
    gets = (Request.get(b"key %d" % number, 1) for number in range(1000))
    own = next(get for get in gets if owners[(get.key_hash >> 48) % len(owners)] == last)
    port = config.port + last
    return port, codec.encode_frame(*ends(lab, port), codec.encode_batch([own]))


def result_of(wire: Wire, frame: bytes) -> int:
    """Return the result in the answer to a frame with one request; -1 without an answer."""
    wire.send(frame)
    try:
        answer = wire.receive()
    except TimeoutError:
        return -1
    (reply,) = codec.decode_replies(codec.decode_frame(answer).payload)
    return int(reply.result)


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_server_rejects_and_goes_on_where_it_stood(lab: Lab, way: str) -> None:
    options = WAYS[way]
    port, get = get_for_last_engine(lab, options)
    with (
        serving_child(lab, *options) as child,
        Wire(lab.client, range(port, port + 1), PAUSE_SECONDS) as wire,
    ):
        wait_for(lambda: result_of(wire, get) == abi.KV_NOT_FOUND, NOTICED_SECONDS)
        with stopped(child.pid):
            wait_for(lambda: result_of(wire, get) == abi.KV_REJECTED, NOTICED_SECONDS)
            results = [result_of(wire, get) for _ in range(20)]
            assert results == [abi.KV_REJECTED] * 20
        wait_for(lambda: result_of(wire, get) == abi.KV_NOT_FOUND, NOTICED_SECONDS)


def test_frames_for_a_stopped_server_reach_the_kernel_if_so_configured(lab: Lab) -> None:
    with (
        serving_child(lab, "--when-silent", "pass") as child,
        client_of(lab, timeout=0.1) as client,
    ):
        client.set(b"key", b"value")
        with stopped(child.pid):
            wait_for(lambda: is_refused_by_the_kernel(lab), NOTICED_SECONDS)
        wait_for(lambda: client.get(b"key") == b"value", NOTICED_SECONDS)


def is_refused_by_the_kernel(lab: Lab) -> bool:
    """Return whether the server's kernel says by ICMP that nobody listens on the port."""
    with client_of(lab, timeout=0.1) as client:
        try:
            client.get(b"key")
        except NoResponseError as error:
            return "refused" in str(error)
    return False


def test_the_kernel_detaches_a_killed_server_at_once(lab: Lab) -> None:
    with serving_child(lab) as child, client_of(lab) as client:
        client.set(b"key", b"value")
        child.kill()
        child.wait()
        assert programs_on(lab.server) == []
        assert is_refused_by_the_kernel(lab)
    with serving(lab), client_of(lab) as client:
        assert client.get(b"key") is None
    assert registered_on(lab.server) == []


def test_an_engine_in_xdp_outlives_its_server_if_so_configured(lab: Lab) -> None:
    options = ("--design", "dpu-only", "--when-killed", "keep")
    with serving_child(lab, *options) as child, client_of(lab) as client:
        client.set(b"key", b"value")
        child.kill()
        child.wait()
        assert programs_on(lab.server) == ["kv_receive"]
        assert client.get(b"key") == b"value"
    with serving(lab):  # which takes the old program's place
        pass
    assert programs_on(lab.server) == registered_on(lab.server) == []


def test_a_kept_program_passes_on_what_a_killed_engine_will_not_answer(lab: Lab) -> None:
    with serving_child(lab, "--when-killed", "keep") as child:
        child.kill()
        child.wait()
        assert programs_on(lab.server) == ["kv_receive"]
        wait_for(lambda: is_refused_by_the_kernel(lab), NOTICED_SECONDS)
    with serving(lab):
        pass
    assert programs_on(lab.server) == registered_on(lab.server) == []
