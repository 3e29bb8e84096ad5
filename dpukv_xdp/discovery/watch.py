# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What a client knows of a directory, kept up to date beside its requests.

A thread reads, so that no request waits for a directory that is slow or gone: what was known before
stays in force until a newer list is there.
"""

import os
import threading
import time
from contextlib import suppress

from dpukv_xdp.base.errors import DirectoryError
from dpukv_xdp.discovery.directory import (
    TTL_SECONDS,
    Directory,
    Listing,
    ServerRecord,
    host_of,
    malformed,
    usable,
)
from dpukv_xdp.discovery.opening import open_directory

PAUSE_SECONDS = 0.02
"""From one look into the directory to the next, however many ask for it."""


class Watch:
    """The servers of a directory, or those of them that were asked for."""

    def __init__(self, url: str, server: str | None, refresh_seconds: float) -> None:
        """`server` is a name in the directory, or a host: then all of its servers, whatever their
        process ids. DirectoryError if the directory cannot be read or lists none of them that is
        not malformed; UsageError for a URL that is none.
        """
        self._directory: Directory = open_directory(url)
        self._server = server
        self._refresh_seconds = refresh_seconds
        self._missing_since: dict[str, float] = {}
        listing = self._chosen()
        self._known = usable(listing)
        self.servers = _in_order(self._known)
        """Sorted by what a server that starts again keeps, so that each has its keys again: host
        and addresses. Replaced as a whole when they change.
        """
        self.failure: DirectoryError | None = next(iter(malformed(listing)), None)
        """What was wrong with the last look, if anything."""
        if not self.servers:
            what = "server" if server is None else f"server {server!r}"
            raise self.failure or DirectoryError(
                f"the directory {url} lists no {what}: start one that publishes"
            )
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
        try:
            listing = self._chosen()
        except DirectoryError as failure:
            self.failure = failure
            self._missing_since.clear()
        else:
            self.failure = next(iter(malformed(listing)), None)
            self._take(listing, time.monotonic())
        self._read_at = time.monotonic()

    def _take(self, listing: Listing, now: float) -> None:
        """An empty list changes nothing: a server that starts again is away for a moment."""
        known = self._trusted(listing, now) | usable(listing)
        if not known:
            return
        self._known = known
        servers = _in_order(known)
        if servers == self.servers:
            return
        with self._bell:
            if not self._closing.is_set():
                self.servers = servers
                os.eventfd_write(self.fd, 1)

    def _trusted(self, listing: Listing, now: float) -> dict[str, ServerRecord]:
        """What was known before and stays so until a new record is there. A server that is missing
        keeps its place for TTL_SECONDS, as the records of several come back one after the other
        when etcd was away; unless another has come in its place.
        """
        arrived = {name: new for name, new in usable(listing).items() if name not in self._known}
        missing_since = {
            name: self._missing_since.get(name, now) for name in self._known if name not in listing
        }
        self._missing_since = missing_since
        return {
            name: record
            for name, record in self._known.items()
            if name not in missing_since
            or (
                now - missing_since[name] < TTL_SECONDS
                and not any(_takes_the_place(name, record, *other) for other in arrived.items())
            )
        }

    def _chosen(self) -> Listing:
        return {
            name: each
            for name, each in self._directory.servers().items()
            if self._server in (None, name, host_of(name))
        }


def _in_order(known: dict[str, ServerRecord]) -> tuple[ServerRecord, ...]:
    return tuple(
        known[name]
        for name in sorted(known, key=lambda name: (host_of(name), known[name].addresses, name))
    )


def _takes_the_place(old_name: str, old: ServerRecord, name: str, new: ServerRecord) -> bool:
    """Whether a server that has come is one that has gone, started again: on the same host, or with
    an address of it.
    """
    return host_of(old_name) == host_of(name) or not set(old.addresses).isdisjoint(new.addresses)
