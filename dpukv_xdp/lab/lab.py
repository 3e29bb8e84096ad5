# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The lab: a server's and a client's network namespace, joined by one veth pair.

Everything that outlives a killed process is written into a register, one JSON file each in
/run/dpukv, before it is made: labs with their namespaces, links and processes, and XDP programs on
interfaces. Whoever comes next reads it and removes what nobody owns any more. Removing is safe to
repeat, on halves, and by several processes at once.
"""

import ctypes
import errno
import fcntl
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import msgspec
from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_LINK

from dpukv_xdp.base.errors import DpukvError, MissingError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.kernel import nic

REGISTER_DIR = Path("/run/dpukv")
UNFINISHED = ".new"  # the end of a file's name while it is written
NAMESPACE_DIR = Path("/run/netns")

PREFIX_BITS = 24
SERVER_ADDRESS = "10.77.0.1"
"""IPv4 address of the server's end of every lab."""
NAPI_PROGRAM = "kv_lab_napi"
"""The XDP program that a lab leaves on the client's interface, and that any of ours may replace. It
lets every frame pass. A veth end that transmits with XDP_TX rings its peer's bell only if the peer
has an XDP program (veth_xdp_flush() in the kernel): without, answers would lie in the peer's ring
until another frame comes.
"""
LINK_TIMEOUT_SECONDS = 10.0
TERMINATE_GRACE_SECONDS = 3.0
KILL_TIMEOUT_SECONDS = 10.0


class Process(msgspec.Struct, frozen=True):
    """A process that no later one with the same number can be mistaken for."""

    pid: int
    start_ticks: int
    """When it started, in clock ticks since boot: field 22 of /proc/<pid>/stat."""


class End(msgspec.Struct, frozen=True):
    """One end of the lab's link."""

    namespace: str
    interface: str
    mac: str
    address: str
    """IPv4, without prefix length."""


class LabRecord(msgspec.Struct, frozen=True):
    """What the register says about a lab."""

    lab_id: str
    server: End
    client: End
    queues: int
    """Receive queues, and as many transmit queues, at each end."""
    mtu: int
    """Bytes of the largest IP packet."""
    owner: Process
    """Who made it: when it dies, the lab is stale, unless it is persistent."""
    persistent: bool = False
    """True for labs that stay until somebody takes them down."""
    processes: tuple[Process, ...] = ()
    """What runs in it and is ended with it."""
    details: dict[str, Any] = {}
    """What its maker wants to find again, such as the server's port."""


class AttachmentRecord(msgspec.Struct, frozen=True):
    """What the register says about an XDP program of ours on an interface."""

    interface: str
    index: int
    program_id: int
    namespace_inode: int
    """The network namespace that the interface is in."""
    owner: Process
    replaces_napi: bool = False
    """Whether NAPI_PROGRAM stood there before, and comes back."""


class Lab:
    """A lab that is up. As a context manager it goes down at the end."""

    def __init__(self, record: LabRecord) -> None:
        self.record = record

    @classmethod
    def up(
        cls,
        *,
        queues: int = 1,
        mtu: int = 1500,
        persistent: bool = False,
        lab_id: str | None = None,
    ) -> "Lab":
        """A new lab, ready for traffic; nothing of it stays when this fails.

        Raises UsageError for sizes that the kernel refuses or a name in use, MissingError without
        root or veth.
        """
        _require_root("a lab")
        if not (0 < queues < 1 << 16 and 0 < mtu < 1 << 16):
            raise UsageError(f"no link can have {queues} queues and an MTU of {mtu} bytes")
        record = _new_record(lab_id or new_lab_id(), queues, mtu)
        _register_new(record)
        try:
            _build(record)
            lab = cls(record)
            if persistent:
                lab.keep()
        except BaseException:
            remove(record.lab_id)
            raise
        return lab

    @classmethod
    def load(cls, lab_id: str) -> "Lab":
        """A lab from the register. Raises UsageError if there is none of that name."""
        record = _read(_lab_path(lab_id), LabRecord)
        if record is None:
            known = ", ".join(other.lab_id for other in list_labs()) or "none is up"
            raise UsageError(f"there is no lab {lab_id!r}: {known}")
        return cls(record)

    @property
    def lab_id(self) -> str:
        """Its name in the register."""
        return self.record.lab_id

    @property
    def server(self) -> End:
        """The server's end."""
        return self.record.server

    @property
    def client(self) -> End:
        """The client's end."""
        return self.record.client

    def down(self) -> None:
        """Remove everything; nothing happens if it is gone already."""
        remove(self.lab_id)

    def keep(self) -> None:
        """Let the lab outlive its owner."""
        self._update(persistent=True)

    def note(self, **details: Any) -> None:
        """Add to the details in the register: anything that JSON can hold."""
        self._update(details=details)

    def register_process(self, pid: int) -> None:
        """Have the process ended when the lab goes down. Raises DpukvError if the lab is gone."""
        started = start_ticks(pid)
        if started is not None:
            self._update(process=Process(pid, started))

    def spawn(
        self, end: End, argv: Sequence[str], *, die_with_parent: bool = True, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a registered process inside one end's namespace; see the function `spawn`."""
        child = spawn(end.namespace, argv, die_with_parent=die_with_parent, **options)
        try:
            self.register_process(child.pid)
        except BaseException:
            child.kill()
            child.wait()
            raise
        return child

    def _update(
        self,
        *,
        persistent: bool | None = None,
        process: Process | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        with _LockedRegister():
            record = _read(_lab_path(self.lab_id), LabRecord)
            if record is None:
                raise DpukvError(f"lab {self.lab_id} has been taken down: start again")
            living = tuple(other for other in record.processes if is_alive(other))
            self.record = msgspec.structs.replace(
                record,
                persistent=record.persistent if persistent is None else persistent,
                processes=living if process is None else (*living, process),
                details=record.details | (details or {}),
            )
            _write(_lab_path(self.lab_id), self.record)

    def __enter__(self) -> "Lab":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()


# ---- All labs


def new_lab_id() -> str:
    """A name that hardly any lab has."""
    return secrets.token_hex(3)


def directory_url(lab_id: str) -> str:
    """A directory of the lab's own, as directory.py has them; it is removed with the lab. Addresses
    are the same in all labs, so that nobody else has a use for its server's.
    """
    return f"file:{_directory_path(lab_id)}"


def list_labs() -> list[LabRecord]:
    """Every lab in the register, by name. Needs no privilege."""
    records = (_read(path, LabRecord) for path in sorted(REGISTER_DIR.glob("lab-*.json")))
    return [record for record in records if record is not None]


def remove(lab_id: str) -> bool:
    """Take a lab down with its processes, link and namespaces; whether this call found it up."""
    _require_root("taking a lab down")
    path = _lab_path(lab_id)
    while (record := _read(path, LabRecord)) is not None:
        # Not under the lock: a process may want the register while it ends.
        terminate(record.processes)
        with _LockedRegister():
            record = _read(path, LabRecord)
            if record is None:
                break
            if any(is_alive(process) for process in record.processes if not _is_self(process)):
                continue  # registered meanwhile
            for end in (record.server, record.client):
                _remove_end(end)
            with suppress(FileNotFoundError):  # published elsewhere
                shutil.rmtree(_directory_path(lab_id))
            path.unlink()
            return True
    return False


def remove_stale() -> list[str]:
    """Remove the labs that nobody keeps and whose owner is dead; their names."""
    _require_root("taking a lab down")
    with _LockedRegister():
        for unfinished in REGISTER_DIR.glob(f"*{UNFINISHED}"):
            unfinished.unlink()
    stale = [lab for lab in list_labs() if not lab.persistent and not is_alive(lab.owner)]
    return [lab.lab_id for lab in stale if remove(lab.lab_id)]


# ---- XDP programs on interfaces


def register_attachment(
    interface: str, program_fd: int, *, modes: tuple[str, ...] = nic.DEFAULT_MODES
) -> nic.Attachment:
    """Attach a program as nic.attach_xdp does, so that it is found and removed after a kill.

    Programs that a dead process of ours left behind go first, and NAPI_PROGRAM makes room. Raises
    what nic.attach_xdp raises.
    """
    _require_root("attaching XDP")
    remove_stale_attachments()
    found = nic.find(interface)
    napi = next((p.program_id for p in found.programs if p.name == NAPI_PROGRAM), None)
    record = AttachmentRecord(
        interface=interface,
        index=found.index,
        program_id=nic.program_info(program_fd)[0],
        namespace_inode=_namespace_inode(),
        owner=_this_process(),
        replaces_napi=napi is not None,
    )
    path = _attachment_path(record)
    with _LockedRegister():
        _write(path, record)
    try:
        return nic.attach_xdp(interface, program_fd, modes=modes, instead_of=napi)
    except BaseException:
        _take_off(record)
        path.unlink(missing_ok=True)
        raise


def release_attachment(attachment: nic.Attachment) -> bool:
    """Take our program off again; whether it was there.

    Call it in the network namespace that it was attached in.
    """
    parts = f"{_namespace_inode()}-{attachment.index}-{attachment.program_id}"
    path = REGISTER_DIR / f"attachment-{parts}.json"
    record = _read(path, AttachmentRecord)
    if record is None:  # somebody emptied the register
        return nic.detach_xdp(attachment.index, attachment.program_id)
    was_there = _take_off(record)
    path.unlink(missing_ok=True)
    return was_there


def remove_stale_attachments() -> list[str]:
    """Take off the programs of dead processes, in this network namespace; one sentence for each."""
    removed = []
    here = _namespace_inode()
    for path in sorted(REGISTER_DIR.glob("attachment-*.json")):
        record = _read(path, AttachmentRecord)
        if record is None or record.namespace_inode != here or is_alive(record.owner):
            continue
        if _take_off(record):
            removed.append(f"XDP program {record.program_id} taken off {record.interface}")
        path.unlink(missing_ok=True)
    return removed


def list_attachments() -> list[AttachmentRecord]:
    """Every attachment in the register, of all network namespaces. Needs no privilege."""
    paths = sorted(REGISTER_DIR.glob("attachment-*.json"))
    records = (_read(path, AttachmentRecord) for path in paths)
    return [record for record in records if record is not None]


def _take_off(record: AttachmentRecord) -> bool:
    """Whether the program was there; in the network namespace of the record."""
    if not record.replaces_napi:
        return nic.detach_xdp(record.index, record.program_id)
    napi_fd = nic.load_pass_program(NAPI_PROGRAM)
    try:
        return nic.detach_xdp(record.index, record.program_id, successor_fd=napi_fd)
    finally:
        os.close(napi_fd)


def _attachment_path(record: AttachmentRecord) -> Path:
    parts = f"{record.namespace_inode}-{record.index}-{record.program_id}"
    return REGISTER_DIR / f"attachment-{parts}.json"


def _namespace_inode(path: str | Path = "/proc/thread-self/ns/net") -> int:
    return Path(path).stat().st_ino


# ---- Being in a namespace


def enter(namespace: str) -> None:
    """Move the calling thread into a network namespace; threads that it starts later follow.

    Raises UsageError if there is no such namespace.
    """
    try:
        netns.setns(namespace, flags=0)
    except FileNotFoundError as error:
        raise UsageError(f"there is no network namespace {namespace!r}") from error


@contextmanager
def in_namespace(namespace: str) -> Iterator[None]:
    """The calling thread is in the namespace within the block; sockets opened there stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(namespace)
        try:
            yield
        finally:
            netns.setns(home)
    finally:
        os.close(home)


def spawn(
    namespace: str, argv: Sequence[str], *, die_with_parent: bool = True, **options: Any
) -> subprocess.Popen[Any]:
    """Start a process inside a network namespace; `options` are subprocess.Popen's.

    With `die_with_parent` the kernel kills it when the calling thread ends, however that happens:
    call from a thread that lives as long as the process shall.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent_pid = os.getpid()
    try:
        namespace_fd = os.open(NAMESPACE_DIR / namespace, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UsageError(f"there is no network namespace {namespace!r}") from error

    def prepare() -> None:
        """Run in the child before exec: system calls only."""
        if libc.setns(namespace_fd, netns.CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        if die_with_parent:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent_pid:  # it died before the line above
                os._exit(1)

    try:
        return subprocess.Popen(argv, preexec_fn=prepare, **options)
    finally:
        os.close(namespace_fd)


PR_SET_PDEATHSIG = 1


# ---- Making and removing a lab's parts


def _new_record(lab_id: str, queues: int, mtu: int) -> LabRecord:
    """Addresses are the same in every lab: its namespaces are its own."""
    return LabRecord(
        lab_id=lab_id,
        server=End(f"dpukv-s-{lab_id}", "veth-server", "02:00:00:00:77:01", SERVER_ADDRESS),
        client=End(f"dpukv-c-{lab_id}", "veth-client", "02:00:00:00:77:02", "10.77.0.2"),
        queues=queues,
        mtu=mtu,
        owner=_this_process(),
    )


def _build(record: LabRecord) -> None:
    server, client = record.server, record.client
    for end in (server, client):
        _make_namespace(end.namespace)
    with in_namespace(server.namespace):
        _make_link(record)
    for end, peer in ((server, client), (client, server)):
        with in_namespace(end.namespace):
            _configure_end(end, peer, record.mtu)
    for end in (server, client):
        with in_namespace(end.namespace):
            _wait_until_up(end.interface)
    with in_namespace(client.namespace):
        _attach_napi_program(client.interface)


def _make_namespace(name: str) -> None:
    """By this very thread: another one, or a child, could finish after we were interrupted."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(netns.CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "cannot make a network namespace")
        try:
            netns.attach(name, threading.get_native_id())
        finally:
            netns.setns(home)
    finally:
        os.close(home)


def _make_link(record: LabRecord) -> None:
    """Both ends at once, each in its namespace: neither ever shows up outside."""
    queues = {"num_rx_queues": record.queues, "num_tx_queues": record.queues, "mtu": record.mtu}
    server, client = record.server, record.client
    peer = {"ifname": client.interface, "address": client.mac, "net_ns_fd": client.namespace}
    with IPRoute(ext_ack=True) as netlink:
        try:
            netlink.link(
                "add",
                kind="veth",
                ifname=server.interface,
                address=server.mac,
                peer=peer | queues,
                **queues,
            )
        except NetlinkError as error:
            _explain_link_failure(record, error)


def _explain_link_failure(record: LabRecord, error: NetlinkError) -> NoReturn:
    if error.code == errno.EOPNOTSUPP:
        raise MissingError("a lab", "the kernel's veth driver: modprobe veth") from error
    if error.code in (errno.EINVAL, errno.ERANGE):
        raise UsageError(
            f"the kernel refuses a veth pair with {record.queues} queues and an MTU of "
            f"{record.mtu} bytes: {error.args[1]}"
        ) from error
    raise error


def _configure_end(end: End, peer: End, mtu: int) -> None:
    """Offloads, addresses and neighbours of one end; the calling thread is in its namespace."""
    _disable_ipv6()
    nic.set_offloads(end.interface, tx_checksum=False, gro=True)
    index = nic.find(end.interface).index
    with IPRoute() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname="lo")[0], state="up")
        netlink.addr("add", index=index, address=end.address, prefixlen=PREFIX_BITS)
        netlink.link("set", index=index, state="up", mtu=mtu)
        netlink.neigh("add", dst=peer.address, lladdr=peer.mac, ifindex=index, state="permanent")


def _attach_napi_program(interface: str) -> None:
    """See NAPI_PROGRAM."""
    napi_fd = nic.load_pass_program(NAPI_PROGRAM)
    try:
        nic.attach_xdp(interface, napi_fd)
    finally:
        os.close(napi_fd)


def _disable_ipv6() -> None:
    """Neighbour discovery would put frames on the wire that nobody asked for."""
    for scope in ("all", "default"):
        setting = Path("/proc/sys/net/ipv6/conf") / scope / "disable_ipv6"
        if setting.exists():
            setting.write_text("1")


def _wait_until_up(interface: str) -> None:
    """Until the kernel would really send: before that it drops frames without a word."""
    timeout_seconds = patient(LINK_TIMEOUT_SECONDS)
    deadline = time.monotonic() + timeout_seconds
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as events, IPRoute() as netlink:
        events.bind((0, RTMGRP_LINK))
        while netlink.link("get", ifname=interface)[0].get_attr("IFLA_OPERSTATE") != "UP":
            events.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
            try:
                events.recv(1 << 16)
            except TimeoutError as error:
                raise DpukvError(
                    f"{interface} did not come up within {timeout_seconds:g} s: "
                    "look at the kernel's log"
                ) from error


def _remove_end(end: End) -> None:
    """The link first, so that it is gone at once; its namespace goes when the last user leaves."""
    path = NAMESPACE_DIR / end.namespace
    try:
        inode = _namespace_inode(path)
    except FileNotFoundError:
        return
    try:
        with in_namespace(end.namespace), IPRoute() as netlink:
            for index in netlink.link_lookup(ifname=end.interface):
                with suppress(NetlinkError):  # the other end was removed meanwhile
                    netlink.link("del", index=index)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: killed before the namespace got its name
            raise
    with suppress(FileNotFoundError):
        netns.remove(end.namespace)
    for attachment in REGISTER_DIR.glob(f"attachment-{inode}-*.json"):
        attachment.unlink(missing_ok=True)


# ---- The register's files

Record = TypeVar("Record", LabRecord, AttachmentRecord)


def _lab_path(lab_id: str) -> Path:
    _check_lab_id(lab_id)
    return REGISTER_DIR / f"lab-{lab_id}.json"


def _directory_path(lab_id: str) -> Path:
    _check_lab_id(lab_id)
    return REGISTER_DIR / "labs" / lab_id


def _check_lab_id(lab_id: str) -> None:
    if not lab_id.isascii() or not lab_id.replace("-", "").isalnum() or len(lab_id) > 32:
        raise UsageError(f"{lab_id!r} names no lab: use up to 32 letters, digits and hyphens")


def _register_new(record: LabRecord) -> None:
    path = _lab_path(record.lab_id)
    with _LockedRegister():
        if path.exists():
            raise UsageError(f"lab {record.lab_id} is up already: take it down, or choose a name")
        _write(path, record)


def _read(path: Path, kind: type[Record]) -> Record | None:
    """None if there is no such file. Raises DpukvError if it is not ours."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise DpukvError(f"{path} cannot be understood ({error}): delete it") from error


def _write(path: Path, record: LabRecord | AttachmentRecord) -> None:
    """Whole or not at all, for readers and for kills at any moment; under the lock."""
    fresh = path.with_name(path.name + UNFINISHED)
    try:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
        fresh.chmod(0o644)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)  # there only if the write was interrupted


class _LockedRegister:
    """Nobody else changes the register within the block.

    Not a generator: interrupted at its `yield`, that would stay open, and locked, as long as the
    exception lives, and whoever cleans up would wait for himself.
    """

    def __enter__(self) -> None:
        REGISTER_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._lock = (REGISTER_DIR / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except BaseException:  # an interrupt too: whoever cleans up wants the lock
            self._lock.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()


# ---- Processes


def is_alive(process: Process) -> bool:
    """Whether this very process still runs; one that only waits to be reaped does not."""
    return start_ticks(process.pid) == process.start_ticks


def terminate(processes: Sequence[Process]) -> None:
    """End processes, never this one: ask first, and kill what has not gone after a while.

    Raises DpukvError if the kernel cannot end one.
    """
    handles = [
        handle
        for process in processes
        if not _is_self(process) and (handle := _open_process(process)) is not None
    ]
    try:
        waiting = _signal_and_wait(handles, signal.SIGTERM, patient(TERMINATE_GRACE_SECONDS))
        waiting = _signal_and_wait(waiting, signal.SIGKILL, patient(KILL_TIMEOUT_SECONDS))
    finally:
        for handle in handles:
            os.close(handle)
    if waiting:
        raise DpukvError(f"{len(waiting)} processes of the lab cannot be killed: reboot")


def _open_process(process: Process) -> int | None:
    """A descriptor of the process; None if it is gone. Opened before it is compared."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if is_alive(process):
        return handle
    os.close(handle)
    return None


def _signal_and_wait(handles: Sequence[int], number: int, timeout_seconds: float) -> list[int]:
    """The descriptors whose process is still there at the end."""
    poller = select.poll()
    remaining = set(handles)
    for handle in handles:
        poller.register(handle, select.POLLIN)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
    deadline = time.monotonic() + timeout_seconds
    while remaining and (left := deadline - time.monotonic()) > 0:
        for handle, _ in poller.poll(left * 1000):
            poller.unregister(handle)
            remaining.discard(handle)
    return list(remaining)


def _this_process() -> Process:
    pid = os.getpid()
    started = start_ticks(pid)
    if started is None:
        raise MissingError("the lab's register", "/proc: mount it")
    return Process(pid, started)


def _is_self(process: Process) -> bool:
    return process.pid == os.getpid()


def start_ticks(pid: int) -> int | None:
    """When a process started; None if there is none, or it has ended and waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may contain anything
    state, started = fields[0], int(fields[19])
    return None if state in "ZX" else started


def _require_root(feature: str) -> None:
    if os.geteuid() != 0:
        raise MissingError(feature, "root: run it with sudo")
