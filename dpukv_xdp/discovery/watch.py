# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A client's copy of a directory's servers, kept up to date beside its requests.

A thread reads the directory, so that no request waits for one that is slow or gone: the last list
remains valid until a newer one has been read.
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
"""Least time between two reads of the directory, however often they are requested."""


class Watch:
    """The servers of a directory, or those of one host or name."""

    def __init__(self, url: str, server: str | None, refresh_seconds: float) -> None:
        """Read the directory and start the thread.

        `server` is a name in the directory, or a host, which selects all of its servers. Raises
        DirectoryError if the directory cannot be read or lists no valid record of these servers,
        UsageError for a malformed URL.
        """
        self._directory: Directory = open_directory(url)
        self._server = server
        self._refresh_seconds = refresh_seconds
        self._missing_since: dict[str, float] = {}
        listing = self._chosen()
        self._known = usable(listing)
        self.servers = _in_order(self._known)
        """Known servers, sorted by host and addresses: a restarted server keeps these, and with
        them its keys. The tuple is replaced as a whole when the servers change.
        """
        self.failure: DirectoryError | None = next(iter(malformed(listing)), None)
        """Error of the last read, if it failed."""
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
        """Event descriptor, readable once `servers` has changed: see hear()."""
        threading.Thread(target=self._run, name="directory-watch", daemon=True).start()

    def use(self) -> None:
        """Request a read if the last one is `refresh_seconds` old, without waiting for it."""
        if time.monotonic() - self._read_at >= self._refresh_seconds:
            self._asked.set()

    def ask(self) -> None:
        """Request a read because `servers` may be out of date, without waiting for it."""
        self._asked.set()

    def hear(self) -> None:
        """Make `fd` unreadable until the next change."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        """Stop the thread and close `fd`."""
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
        """Adopt a list. An empty one changes nothing: a restarting server is briefly absent."""
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
        """Return the known servers that stay valid until they have a new record.

        A missing server keeps its place for TTL_SECONDS, unless another server has replaced it:
        after an outage of etcd, the records of several servers return one after the other.
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
    """Return whether a new server is a restart of an old one: on the same host, or with one of its
    addresses.
    """
    return host_of(old_name) == host_of(name) or not set(old.addresses).isdisjoint(new.addresses)
