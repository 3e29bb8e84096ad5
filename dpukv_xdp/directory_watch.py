# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What a client knows of a directory, kept up to date beside its requests.

A thread reads, so that no request waits for a directory that is slow or gone: what was known before
stays in force until a newer list is there.
"""

import os
import threading
import time
from contextlib import suppress

from dpukv_xdp.directory import Directory, ServerRecord, open_directory
from dpukv_xdp.errors import DirectoryError

PAUSE_SECONDS = 0.02
"""From one look into the directory to the next, however many ask for it."""


class Watch:
    """The servers of a directory, or those of them that were asked for."""

    def __init__(self, url: str, server: str | None, refresh_seconds: float) -> None:
        """`server` is a name in the directory, or a host: then all of its servers, whatever their
        process ids. DirectoryError if the directory cannot be read or lists none of them;
        UsageError for a URL that is none.
        """
        self._directory: Directory = open_directory(url)
        self._server = server
        self._refresh_seconds = refresh_seconds
        self.servers = self._chosen()
        """Sorted by name; replaced as a whole when they change."""
        if not self.servers:
            what = "server" if server is None else f"server {server!r}"
            raise DirectoryError(f"the directory {url} lists no {what}: start one that publishes")
        self._read_at = time.monotonic()
        self._asked = threading.Event()
        self._closing = threading.Event()
        self._bell = threading.Lock()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable once `servers` has changed: see hear()."""
        threading.Thread(target=self._run, name="directory-watch", daemon=True).start()

    def use(self) -> None:
        """Look again if the last time is `refresh_seconds` ago; does not wait for it."""
        if time.monotonic() - self._read_at >= self._refresh_seconds:
            self._asked.set()

    def ask(self) -> None:
        """Look again: something suggests that `servers` is out of date. Does not wait for it."""
        self._asked.set()

    def hear(self) -> None:
        """Make `fd` unreadable until the next change."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        """No more looks."""
        self._closing.set()
        self._asked.set()
        with self._bell:
            os.close(self.fd)

    def _run(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._closing.is_set():
                return
            self._look()
            self._closing.wait(PAUSE_SECONDS)

    def _look(self) -> None:
        """An empty list changes nothing: a server that starts again is away for a moment."""
        servers: tuple[ServerRecord, ...] = ()
        with suppress(DirectoryError):
            servers = self._chosen()
        self._read_at = time.monotonic()
        if not servers or servers == self.servers:
            return
        with self._bell:
            if not self._closing.is_set():
                self.servers = servers
                os.eventfd_write(self.fd, 1)

    def _chosen(self) -> tuple[ServerRecord, ...]:
        return tuple(
            record
            for name, record in sorted(self._directory.servers().items())
            if self._server in (None, name, name.rpartition(".")[0])
        )
