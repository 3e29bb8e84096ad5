# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The supervisor of a server that is started again when it has been killed: docs/REGIONS.md.

`supervised()` splits the calling process in two: the supervisor, which stays in that call, and the
server, which goes on with its Regions. Both ends of their channel are here.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import msgspec

from dpukv_xdp.base.errors import ServerError
from dpukv_xdp.base.processes import end_in_words
from dpukv_xdp.discovery.directory import tell

MESSAGE_BYTES_MAX = 4096
LIVES_MAX = 5
"""Times in a row that a server may be killed before it serves, before it is given up."""
PAUSE_SECONDS = 0.5
"""Pause before another server after one that has not served; each further one is longer by it."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Say = Callable[[str], None]


class _Message(msgspec.Struct):
    """A message from a server to its supervisor."""

    region: str | None = None
    """The name of the region whose descriptor comes with the message."""
    is_serving: bool = False


class Regions:
    """The server's end: regions that its predecessor has left, and new ones for its successor."""

    def __init__(
        self, channel: socket.socket, kept: Mapping[str, int], supervisor_pid: int
    ) -> None:
        """`kept` are descriptors by name; this object owns them and the channel."""
        self.supervisor_pid = supervisor_pid
        self.has_predecessor = bool(kept)
        self.kept = dict(kept)
        self._channel = channel

    def keep(self, name: str, fd: int) -> None:
        """Let the successor have a region, unless it will already; `fd` is copied."""
        if name not in self.kept:
            self.kept[name] = os.dup(fd)
            self._send(_Message(region=name), [fd])

    def serving(self) -> None:
        """Tell the supervisor that the server serves."""
        self._send(_Message(is_serving=True), [])

    def watch(self, say: Say) -> None:
        """Say so when the supervisor has ended, which only SIGKILL makes it do before the server.

        It takes a thread, which ends with the process.
        """
        threading.Thread(target=self._watch, args=(say,), daemon=True).start()

    def _watch(self, say: Say) -> None:
        with contextlib.suppress(OSError):
            self._channel.recv(1)
        tell(
            say, "the supervisor has ended: the server goes on, but is not started again if killed"
        )

    def _send(self, message: _Message, fds: list[int]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # watch() says it
            socket.send_fds(self._channel, [msgspec.json.encode(message)], fds)


def supervised(say: Say) -> Regions:
    """Fork. The server returns with its Regions, again whenever its predecessor has ended unasked
    after it served; the supervisor leaves by SystemExit with the server's exit status.

    Call it while the process has one thread and nothing to take down. `say` is called with a
    sentence for each unasked end. Raises ServerError in the supervisor if LIVES_MAX servers in a
    row end before they serve.
    """
    _, descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_max, descriptors_max))
    return _Supervisor(say).run()


class _Supervisor:
    def __init__(self, say: Say) -> None:
        self._say = say
        self._kept: dict[str, int] = {}
        self._server_fd = -1
        self._is_asked = False
        self._has_served = False
        self._lives = LIVES_MAX

    def run(self) -> Regions:
        supervisor_pid = os.getpid()
        with _handlers(self._pass_on) as restore:
            while True:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                # A signal waits until there is a server to pass it on to.
                signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
                pid = os.fork()
                if pid == 0:
                    ours.close()
                    restore()
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
                    return Regions(theirs, self._kept, supervisor_pid)
                theirs.close()
                self._server_fd = os.pidfd_open(pid)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
                if self._is_asked:  # between two servers
                    signal.pidfd_send_signal(self._server_fd, signal.SIGTERM)
                with ours:
                    self._listen(ours)
                status = os.waitpid(pid, 0)[1]
                os.close(self._server_fd)
                self._server_fd = -1
                self._after(status)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True
        if self._server_fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._server_fd, number)

    def _listen(self, channel: socket.socket) -> None:
        """Take the server's messages until it ends."""
        poller = select.poll()
        poller.register(channel, select.POLLIN)
        poller.register(self._server_fd, select.POLLIN)
        has_ended = False
        while not has_ended:
            ready = {fd for fd, _ in poller.poll()}
            has_ended = self._server_fd in ready and channel.fileno() not in ready
            if channel.fileno() in ready and not self._take(channel):
                poller.unregister(channel)

    def _take(self, channel: socket.socket) -> bool:
        """Take one message; return False at the channel's end."""
        encoded, fds, flags, _ = socket.recv_fds(
            channel, MESSAGE_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC
        )
        if not encoded:
            return False
        message = msgspec.json.decode(encoded, type=_Message)
        if message.is_serving:
            self._has_served = True
            self._lives = LIVES_MAX
        if flags & socket.MSG_CTRUNC:
            tell(
                self._say, f"{message.region} ends with the server: there are too many descriptors"
            )
        elif message.region is not None:
            self._kept[message.region] = fds[0]
        return True

    def _after(self, status: int) -> None:
        """Return if the server is to be started again; else leave."""
        code = os.waitstatus_to_exitcode(status)  # a signal is negative
        if (
            self._is_asked
            or -code in STOP_SIGNALS
            or code == 0
            or (code > 0 and not self._has_served)
        ):
            raise SystemExit(128 - code if code < 0 else code)
        how = f"{'was killed by' if code < 0 else 'ended with'} {end_in_words(code)}"
        self._lives -= 1
        if self._lives == 0:
            raise ServerError(
                f"{LIVES_MAX} servers in a row ended before they served, and the last one {how}: "
                f"their memory and their stores are given up"
            )
        tell(self._say, f"the server {how}: it is started again")
        time.sleep(PAUSE_SECONDS * (LIVES_MAX - 1 - self._lives))


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Any:
    """Handle STOP_SIGNALS within the block; yield a function that restores what was before."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    for number, old in before.items():
        if number != signal.SIGHUP or old != signal.SIG_IGN:  # nohup
            signal.signal(number, handler)
    try:
        yield restore
    finally:
        restore()
