# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The lab: a server's and a client's network namespace, joined by one veth pair.

A lab's namespaces, link and processes are registered before they are made, so that a later command
can remove what a killed one left. Removal may be repeated, works on partly made labs, and may run
in several processes at once.
"""

import secrets
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from dpukv_xdp.base import register
from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.base.processes import (
    Process,
    is_alive,
    require_root,
    start_ticks,
    terminate,
    this_process,
)
from dpukv_xdp.kernel.attachments import attach_napi_program, list_attachments
from dpukv_xdp.kernel.namespaces import (
    NAMESPACE_DIR,
    in_namespace,
    make_namespace,
    namespace_inode,
    spawn,
)
from dpukv_xdp.kernel.veth import End, make_pair, remove_end

SERVER_ADDRESS = "10.77.0.1"
"""IPv4 address of the server's end of every lab."""


class LabRecord(msgspec.Struct, frozen=True):
    """The register's record of a lab."""

    lab_id: str
    server: End
    client: End
    queues: int
    """Receive queues, and as many transmit queues, at each end."""
    mtu: int
    """Bytes of the largest IP packet."""
    owner: Process
    """The process that made the lab. When it dies, the lab is stale, unless it is persistent."""
    persistent: bool = False
    """Whether the lab stays until it is taken down explicitly."""
    processes: tuple[Process, ...] = ()
    """Processes that run in the lab and are ended with it."""
    details: dict[str, Any] = {}
    """Facts that the lab's maker wants to find again, such as the server's port."""


class Lab:
    """A lab that is up; a context manager that takes it down at the end."""

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
        """Make a lab that is ready for traffic; a failure leaves nothing behind.

        Raises UsageError for sizes that the kernel refuses or a name in use, MissingError without
        root or veth.
        """
        require_root("a lab")
        if not (0 < queues < 1 << 16 and 0 < mtu < 1 << 16):
            raise UsageError(
                f"a link cannot have {queues} queues and an MTU of {mtu} bytes: use 1 to 65535"
            )
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
        """Return the lab of that name from the register. Raises UsageError if there is none."""
        record = register.read(_lab_path(lab_id), LabRecord)
        if record is None:
            known = ", ".join(other.lab_id for other in list_labs()) or "none is up"
            raise UsageError(f"there is no lab {lab_id!r}: {known}")
        return cls(record)

    @property
    def lab_id(self) -> str:
        """The lab's name in the register."""
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
        """Remove everything, unless it is gone already."""
        remove(self.lab_id)

    def keep(self) -> None:
        """Make the lab persistent, so that it outlives its owner."""
        self._update(persistent=True)

    def note(self, **details: Any) -> None:
        """Add to the details in the register; values are any that JSON can hold."""
        self._update(details=details)

    def register_process(self, pid: int) -> None:
        """Register a process to be ended with the lab. Raises DpukvError if the lab is gone."""
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
        with register.Locked():
            record = register.read(_lab_path(self.lab_id), LabRecord)
            if record is None:
                raise DpukvError(f"lab {self.lab_id} has been taken down: start again")
            living = tuple(other for other in record.processes if is_alive(other))
            self.record = msgspec.structs.replace(
                record,
                persistent=record.persistent if persistent is None else persistent,
                processes=living if process is None else (*living, process),
                details=record.details | (details or {}),
            )
            register.write(_lab_path(self.lab_id), self.record)

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.down()


# ---- All labs


def new_lab_id() -> str:
    """Return a random name for a lab."""
    return secrets.token_hex(3)


def directory_url(lab_id: str) -> str:
    """Return the URL of the lab's own directory of servers, which is removed with the lab.

    Addresses are the same in all labs, so a lab's server is useless outside it.
    """
    return f"file:{_directory_path(lab_id)}"


def list_labs() -> list[LabRecord]:
    """Return every lab in the register, sorted by name. Needs no privilege."""
    return register.read_all("lab-*.json", LabRecord)


def remove(lab_id: str) -> bool:
    """Take a lab down with its processes, link and namespaces; return whether it was up.

    Raises MissingError without root.
    """
    require_root("taking a lab down")
    path = _lab_path(lab_id)
    while (record := register.read(path, LabRecord)) is not None:
        # Not under the lock: an ending process may need the register.
        terminate([*record.processes, *_orphans(record)])
        with register.Locked():
            record = register.read(path, LabRecord)
            if record is None:
                break
            if any(is_alive(process) for process in record.processes if not process.is_self()):
                continue  # registered meanwhile
            for end in (record.server, record.client):
                remove_end(end)
            with suppress(FileNotFoundError):  # nothing was published there
                shutil.rmtree(_directory_path(lab_id))
            path.unlink()
            return True
    return False


def remove_stale() -> list[str]:
    """Remove the labs that are not persistent and whose owner is dead; return their names."""
    require_root("taking a lab down")
    register.remove_unfinished()
    stale = [lab for lab in list_labs() if not lab.persistent and not is_alive(lab.owner)]
    return [lab.lab_id for lab in stale if remove(lab.lab_id)]


def _orphans(record: LabRecord) -> list[Process]:
    """Return the processes that serve in the lab, which may have outlived a killed supervisor."""
    try:
        inode = namespace_inode(NAMESPACE_DIR / record.server.namespace)
    except FileNotFoundError:
        return []
    return [
        attachment.owner
        for attachment in list_attachments()
        if attachment.namespace_inode == inode and attachment.owner != record.owner
    ]


# ---- Making a lab's parts


def _new_record(lab_id: str, queues: int, mtu: int) -> LabRecord:
    """Return a record with the same addresses as all labs: each has its own namespaces."""
    return LabRecord(
        lab_id=lab_id,
        server=End(f"dpukv-s-{lab_id}", "veth-server", "02:00:00:00:77:01", SERVER_ADDRESS),
        client=End(f"dpukv-c-{lab_id}", "veth-client", "02:00:00:00:77:02", "10.77.0.2"),
        queues=queues,
        mtu=mtu,
        owner=this_process(),
    )


def _build(record: LabRecord) -> None:
    for end in (record.server, record.client):
        make_namespace(end.namespace)
    make_pair(record.server, record.client, queues=record.queues, mtu=record.mtu)
    with in_namespace(record.client.namespace):
        attach_napi_program(record.client.interface)


# ---- The register's files


def _lab_path(lab_id: str) -> Path:
    _check_lab_id(lab_id)
    return register.REGISTER_DIR / f"lab-{lab_id}.json"


def _directory_path(lab_id: str) -> Path:
    _check_lab_id(lab_id)
    return register.REGISTER_DIR / "labs" / lab_id


def _check_lab_id(lab_id: str) -> None:
    if not lab_id.isascii() or not lab_id.replace("-", "").isalnum() or len(lab_id) > 32:
        raise UsageError(f"{lab_id!r} names no lab: use up to 32 letters, digits and hyphens")


def _register_new(record: LabRecord) -> None:
    path = _lab_path(record.lab_id)
    with register.Locked():
        if path.exists():
            raise UsageError(
                f"lab {record.lab_id} is up already: take it down, or choose another name"
            )
        register.write(path, record)
