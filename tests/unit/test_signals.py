# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Ctrl-C at any moment: an interrupt that a library swallows is raised again, and one that already
propagates is not. Each test runs in a process of its own.
"""

import signal
import subprocess
import sys
import textwrap

import pytest

from dpukv_xdp.base.patience import patient

BEGIN = """
import os, signal, time
from dpukv_xdp.cli import main as cli
from dpukv_xdp.cli.signals import signals

def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)

def work():
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.01)
    print("never interrupted")

def body():
    signals.catch()
"""
END = """
cli.cli.main = lambda **_: body()
cli.main()
"""
SAID = "dpukv: interrupted; everything has been taken down\n"
SWALLOWED = """
try:
    interrupt()
except:
    print("swallowed")
    time.sleep(0.2)  # longer than it takes to come again
"""
IN_A_DESTRUCTOR = """
class Thing:
    def __del__(self):
        interrupt()
thing = Thing()
del thing
print("swallowed")
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", BEGIN + textwrap.indent(script, "    ") + END],
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )


@pytest.mark.parametrize("swallow", [SWALLOWED, IN_A_DESTRUCTOR], ids=["bare except", "destructor"])
def test_a_swallowed_interrupt_comes_again(swallow: str) -> None:
    ended = run(swallow + "work()")
    assert (ended.stdout, ended.stderr) == ("swallowed\n", SAID)
    assert ended.returncode == 128 + signal.SIGTERM


def test_cleaning_up_is_not_interrupted_again() -> None:
    ended = run(
        """
try:
    interrupt()
    work()
finally:
    interrupt()  # by an impatient person
    try:
        raise KeyError
    except KeyError:
        time.sleep(0.3)
    print("clean", end="")
"""
    )
    assert (ended.stdout, ended.stderr) == ("clean", SAID)
    assert ended.returncode == 128 + signal.SIGTERM


def test_what_is_held_is_done_first() -> None:
    ended = run(
        """
with signals.held():
    interrupt()
    time.sleep(0.3)
    print("done", end="")
work()
"""
    )
    assert (ended.stdout, ended.stderr) == ("done", SAID)
    assert ended.returncode == 128 + signal.SIGTERM


def test_behind_an_awaited_interrupt_is_peace() -> None:
    ended = run(
        """
with signals.awaited():
    interrupt()
    work()
time.sleep(0.3)
print("peace", end="")
"""
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("peace", "", 0)
