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
    """Somebody wants this process to end: one of SIGNALS. Not an Exception, so that no library
    takes it for a failure of its own; and a SystemExit, because asyncio, which pyroute2 runs on,
    swallows whatever else is raised inside one of its callbacks.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.exit_status = 128 + number


class Signals:
    """SIGNALS as Interrupted in the main thread, from the moment that there is something to take
    down.

    Whoever presses Ctrl-C again while that is being done does not stop it half way. An Interrupted
    that a library swallows comes again: pyroute2 decodes messages within a bare `except:`, and
    nothing leaves a destructor.
    """

    def __init__(self) -> None:
        self._raised_at = -math.inf
        self._raised_number = 0
        self._is_held = False
        self._pending: int | None = None

    def catch(self) -> None:
        """Begin."""
        signal.signal(signal.SIGALRM, self._insist)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """None interrupts the block; one that came is raised behind it."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._pending is not None:
            self._raise(self._pending)

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """The block ends with one, as it should: what is behind it is done in peace."""
        try:
            yield
        except Interrupted:
            self.end()

    def end(self) -> None:
        """Whatever one had to end has ended."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_held:
            self._pending = number
        elif time.monotonic() - self._raised_at >= patient(CLEAN_UP_SECONDS):
            self._raise(number)

    def _raise(self, number: int) -> NoReturn:
        self._raised_at = time.monotonic()
        self._raised_number = number
        warnings.simplefilter("ignore")  # of coroutines that pyroute2 will never resume
        logging.getLogger("asyncio").disabled = True  # nor of its tasks
        sys.unraisablehook = _say_unless_interrupted
        signal.setitimer(signal.ITIMER_REAL, INSIST_SECONDS, INSIST_SECONDS)
        raise Interrupted(number)

    def _insist(self, number: int, frame: FrameType | None) -> None:
        is_on_its_way = _is_interrupted(sys.exc_info()[1])  # the blocks that it ends clean up
        if not is_on_its_way and not self._is_held:
            raise Interrupted(self._raised_number)


def _is_interrupted(error: BaseException | None) -> bool:
    """Whether the error is an Interrupted, or came up while one was dealt with."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _say_unless_interrupted(unraisable: Any) -> None:
    """An event loop of pyroute2 that was interrupted in its constructor complains as it goes, and
    so does a coroutine whose loop has gone; an Interrupted that ended in a destructor comes again.
    """
    half_built = getattr(unraisable.object, "__qualname__", "") == "BaseEventLoop.__del__"
    left_over = isinstance(unraisable.object, CoroutineType)
    if not (half_built or left_over or _is_interrupted(unraisable.exc_value)):
        sys.__unraisablehook__(unraisable)


signals = Signals()
