# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The register's lock, interrupted at every moment."""

import fcntl
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dpukv_xdp.base import register
from dpukv_xdp.cli.signals import Interrupted

MOMENTS_MAX = 2000
"""More bytecode instructions than the block takes."""


@pytest.fixture(autouse=True)
def _own_register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "REGISTER_DIR", tmp_path)


def use_lock() -> None:
    with register.Locked():
        pass


def interrupt_use(moment: int) -> Interrupted | None:
    """Use the lock and interrupt it at a bytecode instruction of ours; None: it has fewer."""
    left = moment

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in (register.__file__, __file__):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise Interrupted(2)
        return trace

    sys.settrace(trace)
    try:
        use_lock()
    except Interrupted as error:
        return error
    finally:
        sys.settrace(None)
    return None


def is_free() -> bool:
    """Return whether another process could take the lock."""
    with (register.REGISTER_DIR / "lock").open("w") as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_the_clean_up_gets_the_lock_whenever_its_user_was_interrupted() -> None:
    """The interrupts live on, as they do while their clean-up runs."""
    interrupts = []
    left_locked = 0
    for moment in range(MOMENTS_MAX):
        interrupt = interrupt_use(moment)
        if interrupt is None:
            break
        interrupts.append(interrupt)
        left_locked += not is_free()
        register._close_lock_file()  # as entering does; entering itself would hang, not fail
        assert is_free(), f"interrupted at instruction {moment}"
    else:
        pytest.fail("the block never came to its end")
    assert len(interrupts) > 20
    assert left_locked, "no moment was tried at which the lock stays taken"


def test_the_lock_keeps_others_out() -> None:
    with register.Locked():
        assert not is_free()
    assert is_free()
