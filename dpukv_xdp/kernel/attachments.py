# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Register of our XDP programs on interfaces, so that those of a killed process are removed.

Every function except list_attachments() works in the network namespace of the calling thread.
"""

import os
from pathlib import Path

import msgspec

from dpukv_xdp.base import register
from dpukv_xdp.base.processes import Process, is_alive, require_root, this_process
from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.namespaces import namespace_inode

NAPI_PROGRAM = "kv_lab_napi"
"""The XDP program that passes every frame on a lab client's interface, until one of ours replaces
it. A veth end that transmits with XDP_TX wakes its peer only if the peer has an XDP program
(veth_xdp_flush() in the kernel): without one, answers would stay in the peer's ring until another
frame arrives.
"""


class AttachmentRecord(msgspec.Struct, frozen=True):
    """The register's record of an XDP program of ours on an interface."""

    interface: str
    index: int
    program_id: int
    namespace_inode: int
    """Inode of the interface's network namespace."""
    owner: Process
    replaces_napi: bool = False
    """Whether the program replaced NAPI_PROGRAM, which has to be put back."""


def register_attachment(
    interface: str,
    program_fd: int,
    *,
    modes: tuple[str, ...] = nic.DEFAULT_MODES,
    goes_with_process: bool = False,
) -> nic.Attachment:
    """Register a program and attach it as nic.attach_xdp does, so that it is removed after a kill:
    by the kernel at once if it `goes_with_process`, else by the next command that looks.

    Stale programs of dead processes are removed first, and NAPI_PROGRAM is replaced. Raises the
    errors of nic.attach_xdp.
    """
    require_root("attaching XDP")
    remove_stale_attachments()
    index = nic.index_of(interface)
    napi = next((p.program_id for p in nic.programs(index) if p.name == NAPI_PROGRAM), None)
    record = AttachmentRecord(
        interface=interface,
        index=index,
        program_id=nic.program_info(program_fd)[0],
        namespace_inode=namespace_inode(),
        owner=this_process(),
        replaces_napi=napi is not None,
    )
    path = _path(record.namespace_inode, record.index, record.program_id)
    with register.Locked():
        register.write(path, record)
    try:
        return nic.attach_xdp(
            interface,
            program_fd,
            modes=modes,
            instead_of=napi,
            goes_with_process=goes_with_process and napi is None,
        )
    except BaseException:
        _take_off(record)
        path.unlink(missing_ok=True)
        raise


def release_attachment(attachment: nic.Attachment) -> bool:
    """Detach our program; return whether it was attached."""
    path = _path(namespace_inode(), attachment.index, attachment.program_id)
    if attachment.link_fd is not None:
        was_there = any(
            p.program_id == attachment.program_id for p in nic.programs(attachment.index)
        )
        os.close(attachment.link_fd)
        path.unlink(missing_ok=True)
        return was_there
    record = register.read(path, AttachmentRecord)
    if record is None:  # the register has been emptied
        return nic.detach_xdp(attachment.index, attachment.program_id)
    was_there = _take_off(record)
    path.unlink(missing_ok=True)
    return was_there


def remove_stale_attachments() -> list[str]:
    """Detach dead processes' programs in this network namespace; return a sentence for each."""
    removed = []
    here = namespace_inode()
    for record in list_attachments():
        if record.namespace_inode != here or is_alive(record.owner):
            continue
        if _take_off(record):
            removed.append(f"XDP program {record.program_id} detached from {record.interface}")
        _path(here, record.index, record.program_id).unlink(missing_ok=True)
    return removed


def list_attachments() -> list[AttachmentRecord]:
    """Return every attachment in the register, of all network namespaces. Needs no privilege."""
    return register.read_all("attachment-*.json", AttachmentRecord)


def forget_attachments(inode: int) -> None:
    """Remove the records of a network namespace that is gone together with its programs."""
    for path in register.REGISTER_DIR.glob(f"attachment-{inode}-*.json"):
        path.unlink(missing_ok=True)


def attach_napi_program(interface: str) -> None:
    """Attach NAPI_PROGRAM without registering it: it stays as long as the interface."""
    napi_fd = nic.load_pass_program(NAPI_PROGRAM)
    try:
        nic.attach_xdp(interface, napi_fd)
    finally:
        os.close(napi_fd)


def _take_off(record: AttachmentRecord) -> bool:
    """Detach the program and restore NAPI_PROGRAM; return whether the program was attached."""
    if not record.replaces_napi:
        return nic.detach_xdp(record.index, record.program_id)
    napi_fd = nic.load_pass_program(NAPI_PROGRAM)
    try:
        return nic.detach_xdp(record.index, record.program_id, successor_fd=napi_fd)
    finally:
        os.close(napi_fd)


def _path(inode: int, index: int, program_id: int) -> Path:
    return register.REGISTER_DIR / f"attachment-{inode}-{index}-{program_id}.json"
