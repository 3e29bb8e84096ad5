# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The lab carries packets, and leaves nothing behind whichever process is killed at any moment."""

import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from pyroute2 import IPRoute, netns

from dpukv_xdp.base import processes
from dpukv_xdp.base.errors import BusyError, DpukvError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.base.processes import Process, is_alive, terminate
from dpukv_xdp.base.register import REGISTER_DIR
from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.attachments import (
    NAPI_PROGRAM,
    list_attachments,
    register_attachment,
    release_attachment,
    remove_stale_attachments,
)
from dpukv_xdp.kernel.namespaces import NAMESPACE_DIR, enter, in_namespace, spawn
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab

pytestmark = pytest.mark.shares_cores

TIMEOUT_SECONDS = patient(10)
OWNER_IMPORTS = """
import os, sys, time
from dpukv_xdp.kernel import attachments, namespaces, nic
from dpukv_xdp.lab.lab import Lab
"""


def traces(lab_id: str) -> list[str]:
    """Return everything on the machine that still has the lab's name."""
    places = (NAMESPACE_DIR, REGISTER_DIR)
    return [str(path) for place in places for path in place.glob(f"*{lab_id}*")]


@contextmanager
def owner(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run another process that owns a lab and prints when it is ready; end it with the block."""
    command = [sys.executable, "-c", OWNER_IMPORTS + program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line of its output."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the process ended without a word"
    return line.strip()


# ---- Up and down


def test_down_leaves_nothing() -> None:
    with Lab.up() as lab:
        assert len(traces(lab.lab_id)) == 3
        inside = os.open(NAMESPACE_DIR / lab.server.namespace, os.O_RDONLY)
    try:
        assert traces(lab.lab_id) == []
        with ThreadPoolExecutor(max_workers=1) as thread:  # the namespace lives as long as `inside`
            thread.submit(netns.setns, inside).result()
            with pytest.raises(UsageError, match="no interface"):
                thread.submit(nic.find, lab.server.interface).result()
    finally:
        os.close(inside)
    lab.down()


def test_two_labs_at_once() -> None:
    with Lab.up() as one, Lab.up() as other:
        assert one.lab_id != other.lab_id
        assert {one.lab_id, other.lab_id} <= {record.lab_id for record in labs.list_labs()}


def test_a_name_in_use_is_refused_and_left_alone() -> None:
    with Lab.up() as lab:
        with pytest.raises(UsageError, match="is up already"):
            Lab.up(lab_id=lab.lab_id)
        assert len(traces(lab.lab_id)) == 3


@pytest.mark.parametrize(
    "settings", [{"queues": 0}, {"queues": 60000}, {"mtu": -1}, {"mtu": 1}, {"mtu": 1 << 20}]
)
def test_absurd_sizes_are_refused_and_leave_nothing(settings: dict[str, int]) -> None:
    lab_id = secrets.token_hex(4)
    with pytest.raises(UsageError):
        Lab.up(lab_id=lab_id, **settings)
    assert traces(lab_id) == []


@pytest.mark.parametrize("lab_id", ["", "../lab", "a b", "x" * 33])
def test_names_that_are_no_file_names_are_refused(lab_id: str) -> None:
    with pytest.raises(UsageError, match="names no lab"):
        Lab.up(lab_id=lab_id or "/")
    with pytest.raises(UsageError):
        Lab.load(lab_id)


def test_details_and_loading_by_name(lab: Lab) -> None:
    lab.note(port=1234)
    Lab.load(lab.lab_id).note(design="lat")
    assert Lab.load(lab.lab_id).record.details == {"port": 1234, "design": "lat"}
    with pytest.raises(UsageError, match="there is no lab"):
        Lab.load("none-such")


def test_a_lab_that_is_gone_takes_no_process() -> None:
    with Lab.up() as lab:
        lab.down()
        with pytest.raises(DpukvError, match="taken down"):
            lab.register_process(os.getpid())


# ---- Traffic


def internet_checksum(data: bytes) -> int:
    """Return the checksum of RFC 1071 over an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def test_ping(lab: Lab) -> None:
    body = struct.pack("!HH8s", os.getpid() & 0xFFFF, 1, b"dpukv_xdp"[:8])
    checksum = internet_checksum(struct.pack("!BBH", 8, 0, 0) + body)
    with in_namespace(lab.client.namespace):
        ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with ping:
        ping.settimeout(TIMEOUT_SECONDS)
        ping.sendto(struct.pack("!BBH", 8, 0, checksum) + body, (lab.server.address, 0))
        answer = ping.recv(1500)
    assert answer[20] == 0, "an echo reply"
    assert answer[24:] == body


@pytest.mark.parametrize("towards", ["server", "client"])
def test_udp_checksums_are_complete_on_the_wire(lab: Lab, towards: str) -> None:
    sender, receiver = lab.client, lab.server
    if towards == "client":
        sender, receiver = receiver, sender
    with in_namespace(receiver.namespace):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        wire.bind((receiver.interface, 0x0800))
    with in_namespace(sender.namespace):
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with wire, plain:
        wire.settimeout(TIMEOUT_SECONDS)
        plain.sendto(b"even", (receiver.address, 9))
        frame = wire.recv(2048)
    datagram = frame[34 : 34 + 8 + 4]
    pseudo_header = frame[26:34] + struct.pack("!HH", socket.IPPROTO_UDP, len(datagram))
    assert datagram[6:8] != b"\0\0"
    assert internet_checksum(pseudo_header + datagram) == 0


@pytest.mark.parametrize("lab", [{"queues": 3, "mtu": 2000}], indirect=True)
def test_queues_and_mtu_as_asked_for(lab: Lab) -> None:
    for end in (lab.server, lab.client):
        with in_namespace(end.namespace), IPRoute() as netlink:
            (link,) = netlink.link("get", ifname=end.interface)
            assert link.get_attr("IFLA_NUM_RX_QUEUES") == 3
            assert link.get_attr("IFLA_NUM_TX_QUEUES") == 3
            found = nic.find(end.interface)
            assert (found.mtu, found.mac, found.address) == (2000, end.mac, end.address)
            assert found.is_up


# ---- Kills

KEEP_A_LAB = """
own = Lab.up(persistent=sys.argv[1] == "persistent")
child = own.spawn(own.client, ["sleep", "600"], die_with_parent=False)
print(own.lab_id, child.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_owner_s_lab_is_removed_with_its_processes() -> None:
    with owner(KEEP_A_LAB, "stale") as process:
        lab_id, pid = read_line(process).split()
        labs.remove_stale()
        assert len(traces(lab_id)) == 3, "the owner lives"
        process.kill()
        process.wait()
        (sleeper,) = Lab.load(lab_id).record.processes
        assert sleeper.pid == int(pid)
        assert is_alive(sleeper)
        assert lab_id in labs.remove_stale()
    assert traces(lab_id) == []
    assert not is_alive(sleeper)


def test_a_persistent_lab_outlives_its_owner() -> None:
    with owner(KEEP_A_LAB, "persistent") as process:
        lab_id, _ = read_line(process).split()
    assert lab_id not in labs.remove_stale()
    (sleeper,) = Lab.load(lab_id).record.processes
    assert labs.remove(lab_id)
    assert traces(lab_id) == []
    assert not is_alive(sleeper)


@pytest.mark.parametrize("delay_ms", [0, 1, 2, 3, 5, 8, 12, 20])
def test_killed_while_the_lab_is_made(delay_ms: int) -> None:
    lab_id = secrets.token_hex(4)
    program = "print('go', flush=True); Lab.up(lab_id=sys.argv[1]); time.sleep(600)"
    with owner(program, lab_id) as process:
        read_line(process)
        time.sleep(delay_ms / 1000)  # varies the moment of the kill
    labs.remove_stale()
    assert traces(lab_id) == []


def test_only_one_of_two_removers_finds_the_lab() -> None:
    lab = Lab.up()
    with ThreadPoolExecutor(max_workers=2) as threads:
        found = list(threads.map(labs.remove, [lab.lab_id] * 2))
    assert sorted(found) == [False, True]
    assert traces(lab.lab_id) == []


def test_half_a_lab_is_removed(lab: Lab) -> None:
    netns.remove(lab.client.namespace)
    lab.down()
    assert traces(lab.lab_id) == []


def test_a_process_that_ignores_sigterm_is_killed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TERMINATE_GRACE_SECONDS", 0.1)
    script = "trap '' TERM; echo ready; sleep 600 & wait; wait"
    child = lab.spawn(lab.client, ["sh", "-c", script], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    lab.down()
    assert child.wait(TIMEOUT_SECONDS) == -signal.SIGKILL
    child.stdout.close()


def test_another_process_with_the_same_number_is_spared() -> None:
    with subprocess.Popen(["sleep", "600"]) as bystander:
        terminate([Process(bystander.pid, 1)])
        assert bystander.poll() is None
        bystander.kill()


def test_a_spawned_process_dies_with_its_parent(lab: Lab) -> None:
    program = """
child = namespaces.spawn(sys.argv[1], ["sleep", "600"])
print(child.pid, flush=True)
time.sleep(600)
"""
    with owner(program, lab.client.namespace) as process:
        handle = os.pidfd_open(int(read_line(process)))
        assert select.select([handle], [], [], 0)[0] == [], "it lives"
    assert select.select([handle], [], [], TIMEOUT_SECONDS)[0] == [handle]
    os.close(handle)


# ---- XDP programs


@pytest.fixture
def programs() -> Iterator[tuple[int, int]]:
    """Yield the descriptors of two XDP programs."""
    descriptors = nic.load_pass_program("kv_ours"), nic.load_pass_program("kv_theirs")
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_attach_and_release(lab: Lab, programs: tuple[int, int]) -> None:
    with in_namespace(lab.server.namespace):
        attachment = register_attachment(lab.server.interface, programs[0])
        assert (attachment.mode, attachment.native_refused) == ("native", None)
        (found,) = nic.find(lab.server.interface).programs
        assert (found.program_id, found.name) == (attachment.program_id, "kv_ours")
        assert release_attachment(attachment)
        assert nic.find(lab.server.interface).programs == ()
        assert not release_attachment(attachment)
    assert attachment.program_id not in {r.program_id for r in list_attachments()}


def test_a_busy_interface_is_left_alone(lab: Lab, programs: tuple[int, int]) -> None:
    ours, theirs = programs
    interface = lab.server.interface
    with in_namespace(lab.server.namespace):
        attachment = nic.attach_xdp(interface, theirs)
        with pytest.raises(BusyError, match=rf"{attachment.program_id} \(kv_theirs\)"):
            register_attachment(interface, ours)
        assert [p.name for p in nic.find(interface).programs] == ["kv_theirs"]
        assert not nic.detach_xdp(attachment.index, nic.program_info(ours)[0])
        assert [p.name for p in nic.find(interface).programs] == ["kv_theirs"]


def test_generic_mode_says_why(lab: Lab, programs: tuple[int, int]) -> None:
    with in_namespace(lab.client.namespace), IPRoute() as netlink:
        netlink.link("set", ifname=lab.client.interface, mtu=9000)  # too large for native XDP
    with in_namespace(lab.server.namespace):
        attachment = nic.attach_xdp(lab.server.interface, programs[0])
        assert attachment.mode == "generic"
        assert attachment.native_refused is not None
        assert "MTU" in attachment.native_refused
        assert nic.detach_xdp(attachment.index, attachment.program_id)
        with pytest.raises(DpukvError, match="refused native"):
            nic.attach_xdp(lab.server.interface, programs[0], modes=("native",))


def test_a_killed_process_s_program_is_taken_off(lab: Lab) -> None:
    program = """
namespaces.enter(sys.argv[1])
attachments.register_attachment(sys.argv[2], nic.load_pass_program())
print("attached", flush=True)
time.sleep(600)
"""
    with in_namespace(lab.server.namespace):
        with owner(program, lab.server.namespace, lab.server.interface) as process:
            read_line(process)
            assert remove_stale_attachments() == [], "its owner lives"
        assert len(nic.find(lab.server.interface).programs) == 1
        (sentence,) = remove_stale_attachments()
        assert lab.server.interface in sentence
        assert nic.find(lab.server.interface).programs == ()


def test_the_program_on_the_client_s_end_makes_room_and_comes_back(
    lab: Lab, programs: tuple[int, int]
) -> None:
    """Without a program there, frames that the server's XDP sends would stay in the peer's ring."""
    interface = lab.client.interface
    with in_namespace(lab.client.namespace):
        assert [p.name for p in nic.find(interface).programs] == [NAPI_PROGRAM]
        attachment = register_attachment(interface, programs[0])
        assert attachment.mode == "native"
        assert [p.name for p in nic.find(interface).programs] == ["kv_ours"]
        with pytest.raises(BusyError, match="kv_ours"):
            register_attachment(interface, programs[1])
        assert release_attachment(attachment)
        assert [p.name for p in nic.find(interface).programs] == [NAPI_PROGRAM]


def test_the_program_on_the_client_s_end_comes_back_after_a_kill(lab: Lab) -> None:
    program = """
namespaces.enter(sys.argv[1])
attachments.register_attachment(sys.argv[2], nic.load_pass_program())
print("attached", flush=True)
time.sleep(600)
"""
    with in_namespace(lab.client.namespace):
        with owner(program, lab.client.namespace, lab.client.interface) as process:
            read_line(process)
        assert [p.name for p in nic.find(lab.client.interface).programs] == ["kv_pass"]
        assert len(remove_stale_attachments()) == 1
        names = [p.name for p in nic.find(lab.client.interface).programs]
        assert names == [NAPI_PROGRAM]


def test_a_lab_s_attachments_leave_the_register_with_it(programs: tuple[int, int]) -> None:
    with Lab.up() as lab, in_namespace(lab.server.namespace):
        attachment = register_attachment(lab.server.interface, programs[0])
    assert attachment.program_id not in {r.program_id for r in list_attachments()}


def test_an_unknown_namespace_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="no network namespace"):
        enter("dpukv-none-such")
    with pytest.raises(UsageError, match="no network namespace"):
        spawn("dpukv-none-such", ["true"])
