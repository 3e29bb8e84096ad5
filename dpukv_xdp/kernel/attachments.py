# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""XDP programs of ours on interfaces, in the register, so that a killed process leaves none behind.

Every function but list_attachments() works in the network namespace of the calling thread.
"""

import os
from pathlib import Path

import msgspec

from dpukv_xdp.base import register
from dpukv_xdp.base.processes import Process, is_alive, require_root, this_process
from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.namespaces import namespace_inode

NAPI_PROGRAM = "kv_lab_napi"
"""The XDP program that lets every frame pass on a lab's client's interface, until one of ours
replaces it. A veth end that transmits with XDP_TX wakes its peer only if the peer has an XDP
program (veth_xdp_flush() in the kernel): without one, answers would lie in the peer's ring until
another frame comes.
"""


class AttachmentRecord(msgspec.Struct, frozen=True):
    """The register's record of an XDP program of ours on an interface."""

    interface: str
    index: int
    program_id: int
    namespace_inode: int
    """The network namespace that the interface is in."""
    owner: Process
    replaces_napi: bool = False
    """Whether it took the place of NAPI_PROGRAM, which then comes back."""


def register_attachment(
    interface: str, program_fd: int, *, modes: tuple[str, ...] = nic.DEFAULT_MODES
) -> nic.Attachment:
    """Attach a program as nic.attach_xdp does, so that it is found and removed after a kill.

    Programs that a dead process of ours left behind go first, and NAPI_PROGRAM makes room. Raises
    what nic.attach_xdp raises.
    """
    require_root("attaching XDP")
    remove_stale_attachments()
    found = nic.find(interface)
    napi = next((p.program_id for p in found.programs if p.name == NAPI_PROGRAM), None)
    record = AttachmentRecord(
        interface=interface,
        index=found.index,
        program_id=nic.program_info(program_fd)[0],
        namespace_inode=namespace_inode(),
        owner=this_process(),
        replaces_napi=napi is not None,
    )
    path = _path(record.namespace_inode, record.index, record.program_id)
    with register.Locked():
        register.write(path, record)
    try:
        return nic.attach_xdp(interface, program_fd, modes=modes, instead_of=napi)
    except BaseException:
        _take_off(record)
        path.unlink(missing_ok=True)
        raise


def release_attachment(attachment: nic.Attachment) -> bool:
    """Take our program off again; return whether it was there."""
    path = _path(namespace_inode(), attachment.index, attachment.program_id)
    record = register.read(path, AttachmentRecord)
    if record is None:  # somebody emptied the register
        return nic.detach_xdp(attachment.index, attachment.program_id)
    was_there = _take_off(record)
    path.unlink(missing_ok=True)
    return was_there


def remove_stale_attachments() -> list[str]:
    """Take off the programs of dead processes, in this network namespace; one sentence for each."""
    removed = []
    here = namespace_inode()
    for record in list_attachments():
        if record.namespace_inode != here or is_alive(record.owner):
            continue
        if _take_off(record):
            removed.append(f"XDP program {record.program_id} taken off {record.interface}")
        _path(here, record.index, record.program_id).unlink(missing_ok=True)
    return removed


def list_attachments() -> list[AttachmentRecord]:
    """Return every attachment in the register, of all network namespaces. Needs no privilege."""
    return register.read_all("attachment-*.json", AttachmentRecord)


def forget_attachments(inode: int) -> None:
    """Remove the records of a network namespace that is gone, and its programs with it."""
    for path in register.REGISTER_DIR.glob(f"attachment-{inode}-*.json"):
        path.unlink(missing_ok=True)


def attach_napi_program(interface: str) -> None:
    """Attach NAPI_PROGRAM, unregistered: it stays as long as the interface."""
    napi_fd = nic.load_pass_program(NAPI_PROGRAM)
    try:
        nic.attach_xdp(interface, napi_fd)
    finally:
        os.close(napi_fd)


def _take_off(record: AttachmentRecord) -> bool:
    """Detach the program and put NAPI_PROGRAM back; return whether the program was there."""
    if not record.replaces_napi:
        return nic.detach_xdp(record.index, record.program_id)
    napi_fd = nic.load_pass_program(NAPI_PROGRAM)
    try:
        return nic.detach_xdp(record.index, record.program_id, successor_fd=napi_fd)
    finally:
        os.close(napi_fd)


def _path(inode: int, index: int, program_id: int) -> Path:
    return register.REGISTER_DIR / f"attachment-{inode}-{index}-{program_id}.json"
