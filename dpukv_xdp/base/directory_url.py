# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""URLs of directories of servers: file:/path, etcd2://host:port/prefix or etcd3://host:port/prefix.

Parsing a URL opens nothing and needs no etcd library.
"""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from dpukv_xdp.base.errors import UsageError

_PREFIX = re.compile(r"(/[A-Za-z0-9._-]+)+")
_ETCD_PORT = 2379
_DEFAULT_PREFIX = "/mica"


@dataclass(frozen=True, slots=True)
class FilePlace:
    """A folder of this machine."""

    path: str
    """Absolute path of the folder."""


@dataclass(frozen=True, slots=True)
class EtcdPlace:
    """A prefix in etcd."""

    version: Literal[2, 3]
    """Version of etcd's interface."""
    host: str
    port: int
    prefix: str
    """Prefix of all keys: begins with a slash and does not end with one."""


def parse_directory_url(url: str) -> FilePlace | EtcdPlace:
    """Return the place that a URL names. Raises UsageError if the URL is malformed."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{url!r} is no directory: {error}") from error
    if parts.query or parts.fragment:
        raise UsageError(f"the directory {url!r} has a query ('?') or fragment ('#'): remove it")
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise UsageError(f"the directory {url!r} is not file:/ and an absolute path")
        return FilePlace(parts.path)
    if parts.scheme not in ("etcd2", "etcd3"):
        raise UsageError(
            f"{url!r} is no directory: use file:/path, etcd2://host:{_ETCD_PORT}/mica or "
            f"etcd3://host:{_ETCD_PORT}/mica"
        )
    host, port = _host_and_port(url, parts)
    prefix = parts.path.rstrip("/") or _DEFAULT_PREFIX
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(f"{prefix!r} in {url!r} is not an etcd prefix: use one such as /mica")
    return EtcdPlace(2 if parts.scheme == "etcd2" else 3, host, port, prefix)


def _host_and_port(url: str, parts: SplitResult) -> tuple[str, int]:
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.username is not None or parts.password is not None:
        raise UsageError(f"the directory {url!r} is not {parts.scheme}://HOST:PORT/PREFIX")
    return host, _ETCD_PORT if port is None else port
