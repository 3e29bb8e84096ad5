# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Signals that end the process: raised as Interrupted, so that everything built is taken down."""

import contextlib
import logging
import math
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from types import CoroutineType, FrameType
from typing import Any, NoReturn

from dpukv_xdp.base.patience import patient

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLEAN_UP_SECONDS = 15.0
INSIST_SECONDS = 0.05


class Interrupted(SystemExit):
    """One of SIGNALS asks this process to end.

    It is not an Exception, so that no library takes it for a failure of its own; and it is a
    SystemExit, because asyncio, on which pyroute2 runs, swallows any other exception that is raised
    inside one of its callbacks.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.exit_status = 128 + number


class Signals:
    """Raises SIGNALS as Interrupted in the main thread, once a command has something to take down.

    A second Ctrl-C does not interrupt the cleaning up. An Interrupted that a library swallows is
    raised again: pyroute2 decodes messages within a bare `except:`, and no exception leaves a
    destructor.
    """

    def __init__(self) -> None:
        self._raised_at = -math.inf
        self._raised_number = 0
        self._is_held = False
        self._pending: int | None = None

    def catch(self) -> None:
        """Raise SIGNALS as Interrupted from now on."""
        signal.signal(signal.SIGALRM, self._insist)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Defer signals while the block runs; raise a pending one when it exits."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._pending is not None:
            self._raise(self._pending)

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Run the block until a signal ends it; the code after it is not interrupted."""
        try:
            yield
        except Interrupted:
            self.end()

    def end(self) -> None:
        """Stop raising the interrupt again: it has been handled."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_held:
            self._pending = number
        elif time.monotonic() - self._raised_at >= patient(CLEAN_UP_SECONDS):
            self._raise(number)

    def _raise(self, number: int) -> NoReturn:
        self._raised_at = time.monotonic()
        self._raised_number = number
        # Suppress complaints about pyroute2's coroutines and tasks, which will never be resumed.
        warnings.simplefilter("ignore")
        logging.getLogger("asyncio").disabled = True
        sys.unraisablehook = _say_unless_interrupted
        signal.setitimer(signal.ITIMER_REAL, INSIST_SECONDS, INSIST_SECONDS)
        raise Interrupted(number)

    def _insist(self, number: int, frame: FrameType | None) -> None:
        is_on_its_way = _is_interrupted(sys.exc_info()[1])  # enclosing blocks are cleaning up
        if not is_on_its_way and not self._is_held:
            raise Interrupted(self._raised_number)


def _is_interrupted(error: BaseException | None) -> bool:
    """Return whether the error is an Interrupted, or was raised while one was handled."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _say_unless_interrupted(unraisable: Any) -> None:
    """Report an exception that could not be raised, unless it follows from an interrupt.

    pyroute2's event loop complains if it was interrupted in its constructor, and so does a
    coroutine whose loop is gone. An Interrupted that a destructor swallowed is raised again.
    """
    half_built = getattr(unraisable.object, "__qualname__", "") == "BaseEventLoop.__del__"
    left_over = isinstance(unraisable.object, CoroutineType)
    if not (half_built or left_over or _is_interrupted(unraisable.exc_value)):
        sys.__unraisablehook__(unraisable)


signals = Signals()
