# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A server's life: whatever ends it at any moment, it leaves nothing behind."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from net.commands import wait_for
from net.serving import (
    OTHER_CPU,
    Wire,
    bpf_descriptors,
    client_of,
    ends,
    gained,
    generating,
    mapped_queue_pairs,
    native_threads,
    pinned,
    plan_for,
    programs_on,
    registered_on,
    run_load,
    serving,
    serving_child,
    set_link,
)

from dpukv_xdp.base.errors import (
    BusyError,
    DpukvError,
    MissingError,
    NoResponseError,
    UsageError,
)
from dpukv_xdp.base.patience import patient
from dpukv_xdp.discovery.directory import server_name
from dpukv_xdp.kernel import kernel_headers, nic
from dpukv_xdp.kernel.attachments import remove_stale_attachments
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.load.loadgen import Loop
from dpukv_xdp.load.workload import WORKLOADS, build_templates
from dpukv_xdp.native.engines import ProcessingEngine
from dpukv_xdp.native.threads import NativeThread
from dpukv_xdp.server import server as server_module
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Request

pytestmark = pytest.mark.usefixtures("fresh_programs")

START_SECONDS = patient(60.0)
EXIT_SECONDS = patient(20.0)
PACKETS = 1000
EXTRA_SECONDS = patient(0.005)
"""Extra time allowed for the packets, beyond that of packets that XDP drops at once."""


def traces(lab: Lab) -> dict[str, object]:
    """Return everything that a server of this process may leave behind."""
    return {
        "threads": native_threads(),
        "descriptors": bpf_descriptors(),
        "maps": mapped_queue_pairs(),
        "programs": programs_on(lab.server),
        "register": registered_on(lab.server),
    }


# ---- Start


def test_a_busy_interface_is_named_and_left_alone(lab: Lab) -> None:
    theirs_fd = nic.load_pass_program("kv_theirs")
    try:
        with in_namespace(lab.server.namespace):
            remove_stale_attachments()  # of an earlier namespace that had the same inode
            theirs = nic.attach_xdp(lab.server.interface, theirs_fd)
        before = traces(lab)
        with (
            pytest.raises(BusyError, match=rf"{theirs.program_id} \(kv_theirs\)") as busy,
            serving(lab),
        ):
            pass
        assert busy.value.program_id == theirs.program_id
        assert traces(lab) == before
        assert before["programs"] == ["kv_theirs"]
    finally:
        os.close(theirs_fd)


def take_the_link_down(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the start at its last step, when everything else runs already."""
    set_link(lab.server, state="down")


def refuse_the_second_engine(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the start as if memory ran out after the first engine."""

    def make(**settings: Any) -> ProcessingEngine:
        if settings["engine_id"] == 1:
            raise MissingError("a second engine", "what this test does not give")
        return ProcessingEngine(**settings)

    monkeypatch.setattr(server_module, "ProcessingEngine", make)


@pytest.mark.parametrize(
    ("break_something", "wanted"),
    [(take_the_link_down, UsageError), (refuse_the_second_engine, MissingError)],
)
def test_a_start_that_fails_leaves_nothing(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    break_something: Callable[[Lab, pytest.MonkeyPatch], None],
    wanted: type[Exception],
) -> None:
    before = traces(lab)
    break_something(lab, monkeypatch)
    with pytest.raises(wanted), serving(lab, engines=2):
        pass
    assert traces(lab) == before


def test_a_veth_peer_without_xdp_gets_its_answers_in_generic_mode(lab: Lab) -> None:
    """A pair that was made by hand has no program at its peer: native answers would not arrive."""
    with in_namespace(lab.client.namespace):
        interface = nic.find(lab.client.interface)
        assert nic.detach_xdp(interface.index, interface.programs[0].program_id)
    with serving(lab) as server, client_of(lab) as client:
        assert server.attachment is not None
        assert server.attachment.mode == "generic"
        assert "veth pair" in (server.attachment.native_refused or "")
        items = {bytes([size % 251]) * 5: bytes(size) for size in (0, 1, 8, 9, 1400)}
        assert client.set_many(items) == []
        assert client.get_many(items) == items


def test_a_thread_that_may_not_run_on_its_core_says_so() -> None:
    thread = NativeThread("host core 0", abi.KV_CPUS_MAX * 64, lambda: 0, lambda: None)
    with pytest.raises(DpukvError, match="host core 0 cannot run on core"):
        thread.start(lambda: None)
    assert native_threads() == []


# ---- Stop


@pytest.mark.needs("live frames")
def test_stop_under_load_leaves_nothing_and_what_is_lost_is_seen(lab: Lab) -> None:
    before = traces(lab)
    with serving(lab) as server, generating(lab) as generator:
        plan = plan_for(lab)
        generator.load(plan, window=16)
        start = generator.snapshot()
        prepared = build_templates(plan, generator.templates[:1024])
        generator.begin(plan, Loop(64), prepared.templates)
        wait_for(lambda: generator.snapshot().received["packets"] > start.received["packets"])
        with in_namespace(lab.server.namespace):
            server.stop()
        assert native_threads() == ["generator"]
        assert programs_on(lab.server) == registered_on(lab.server) == []
        assert generator.end() > 0
        end = generator.snapshot()
    lost, answered, sent = (
        end.sent["lost_packets"] - start.sent["lost_packets"],
        end.received["packets"] - start.received["packets"],
        end.sent["packets_sent"] - start.sent["packets_sent"],
    )
    assert sent == answered + lost
    assert answered > 0
    assert end.received["corrupt"] == 0
    assert traces(lab) == before


def test_a_server_can_be_started_again(lab: Lab) -> None:
    """A new server on the same interface has a new store."""
    for _ in range(2):
        with serving(lab), client_of(lab) as client:
            assert client.get(b"key") is None
            client.set(b"key", b"value")
            assert client.get(b"key") == b"value"
    assert programs_on(lab.server) == []


# ---- An engine that does not answer


def seconds_for(wire: Wire, frame: bytes) -> float:
    """Return the CPU time to send and receive the packets: the softirq runs on top of the sending
    thread.
    """
    start = time.thread_time()
    for _ in range(PACKETS):
        wire.send(frame)
    return time.thread_time() - start


def request_frame(lab: Lab, magic: int = abi.KV_MAGIC_REQUEST) -> bytes:
    """Return the frame of a GET, or with another magic a frame that has to be dropped."""
    batch = codec.encode_batch([Request.get(b"key")])
    return codec.encode_frame(*ends(lab), bytes([magic]) + batch[1:])


def test_packets_for_an_engine_that_has_ended_are_rejected_at_once(lab: Lab) -> None:
    with serving(lab) as server, Wire(lab.client) as wire:
        (host,) = server._hosts.values()
        host.stop()
        at_once = min(seconds_for(wire, request_frame(lab, magic=0)) for _ in range(3))
        before = server.counters()
        while not gained(server, before).get("responses_rejected"):  # from the next tick on
            wire.send(request_frame(lab))
        before = server.counters()
        seconds = min(seconds_for(wire, request_frame(lab)) for _ in range(3))
        assert gained(server, before)["responses_rejected"] == 3 * PACKETS
    assert seconds < at_once + EXTRA_SECONDS


def test_a_hung_engine_does_not_make_the_softirq_spin(lab: Lab) -> None:
    with (
        serving_child(lab) as child,
        Wire(lab.client) as wire,
        client_of(lab, timeout=0.2, retries=20) as client,  # the queue is full at first
    ):
        client.set(b"key", b"value")
        at_once = min(seconds_for(wire, request_frame(lab, magic=0)) for _ in range(3))
        os.kill(child.pid, signal.SIGSTOP)
        seconds = seconds_for(wire, request_frame(lab))
        os.kill(child.pid, signal.SIGCONT)
        assert client.get(b"key") == b"value", "it goes on where it stood"
    assert seconds < at_once + EXTRA_SECONDS


# ---- Kills


def test_what_a_killed_server_left_is_taken_over(lab: Lab) -> None:
    with serving_child(lab, "--when-killed", "keep") as child:
        with client_of(lab) as client:
            client.set(b"key", b"old")
        child.kill()
        child.wait()
    assert programs_on(lab.server) == ["kv_receive"]
    (stale,) = registered_on(lab.server)
    with serving(lab) as server, client_of(lab) as client:
        assert server.attachment is not None
        assert server.attachment.program_id != stale
        assert client.get(b"key") is None
        client.set(b"key", b"new")
        assert client.get(b"key") == b"new"
    assert programs_on(lab.server) == registered_on(lab.server) == []


def test_signals_end_a_server_at_any_moment_and_nothing_is_left() -> None:
    cases = list(itertools.product((signal.SIGTERM, signal.SIGINT), MOMENTS))
    with ThreadPoolExecutor(max_workers=2) as threads:
        outcomes = list(threads.map(lambda case: end_by_signal(*case), cases))
    for (number, moment), (status, said, left) in zip(cases, outcomes, strict=True):
        what = (number, moment, said)
        assert status in (0, 128 + number), what
        assert "Traceback" not in said, what
        assert left == [], what


def end_by_signal(number: signal.Signals, moment: str) -> tuple[int, str, list[object]]:
    """Send a server the signal at the moment; return its exit status, its last output, and
    everything that it left behind.
    """
    argv = [sys.executable, "-m", "dpukv_xdp", "serve", "--iface"]
    if moment == "compiling":  # in a place without a cache of compiled programs
        programs = kernel_headers.CACHE_DIRS[0] / "programs"
        programs.mkdir(parents=True, exist_ok=True)
        hide = f'mount -t tmpfs none {programs} && exec "$@"'
        argv = ["unshare", "--mount", "sh", "-c", hide, "sh", *argv]
    with (
        Lab.up() as lab,
        lab.spawn(
            lab.server, [*argv, lab.server.interface], stderr=subprocess.PIPE, text=True
        ) as child,
        killed_on_failure(child),
    ):
        deadline = time.monotonic() + START_SECONDS
        while not MOMENTS[moment](lab, child.pid):
            assert child.poll() is None, moment
            assert time.monotonic() < deadline, moment
            time.sleep(0.001)
        child.send_signal(number)
        _, said = child.communicate(timeout=EXIT_SECONDS)
        left: list[object] = [*programs_on(lab.server), *registered_on(lab.server)]
        left += [record_of(child.pid)] * record_of(child.pid).exists()
        return child.returncode, said, left


@contextmanager
def killed_on_failure(child: "subprocess.Popen[str]") -> Iterator[None]:
    """Kill the process if the block fails, because leaving the block would wait for it."""
    try:
        yield
    except BaseException:
        child.kill()
        raise


def is_compiling(lab: Lab, pid: int) -> bool:
    """Return whether the server's compiler, a child process, has loaded bcc."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    with suppress(FileNotFoundError, ProcessLookupError):  # a child that has ended
        return any("libbcc" in Path(f"/proc/{child}/maps").read_text() for child in children)
    return False


def is_loaded(lab: Lab, pid: int) -> bool:
    """Return whether its programs are in the kernel; engines and senders start after that."""
    return bpf_descriptors(pid) > 1


def is_attached(lab: Lab, pid: int) -> bool:
    """Return whether the program is attached: the last step of the start."""
    return programs_on(lab.server) != []


def record_of(pid: int) -> Path:
    """Return the file that the server publishes by default."""
    return Path("/run/dpukv/directory", f"{server_name(pid)}.json")


def is_published(lab: Lab, pid: int) -> bool:
    """Return whether the record exists: the publisher has begun, and may not have finished."""
    return record_of(pid).exists()


def is_serving(lab: Lab, pid: int) -> bool:
    """Return whether the server has answered."""
    try:
        with client_of(lab, timeout=0.01) as client:
            return client.ping() > 0
    except NoResponseError:
        return False


MOMENTS: dict[str, Callable[[Lab, int], bool]] = {
    "compiling": is_compiling,
    "loaded": is_loaded,
    "attached": is_attached,
    "published": is_published,
    "serving": is_serving,
}


# ---- Memory


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.needs("live frames")
def test_memory_does_not_grow_under_load(lab: Lab) -> None:
    with serving_child(lab) as child, generating(lab) as generator, pinned(OTHER_CPU):
        plan = plan_for(lab, workload=WORKLOADS["B"])
        generator.load(plan, window=16)
        run_load(generator, plan, Loop(64), 1.0)
        after_a_second = resident_bytes(child.pid)
        measured = run_load(generator, plan, Loop(64), 4.0)
        assert resident_bytes(child.pid) - after_a_second < 1 << 20
    assert (measured.received["corrupt"], measured.sent["lost_requests"]) == (0, 0)
    assert measured.received["responses"] > 0
