# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Open a directory by its URL: the only module that knows every kind."""

from pathlib import Path

from dpukv_xdp.base.directory_url import FilePlace, parse_directory_url
from dpukv_xdp.base.errors import MissingError, install_advice
from dpukv_xdp.discovery.directory import TTL_SECONDS, Directory, FileDirectory


def open_directory(url: str, ttl_seconds: int = TTL_SECONDS) -> Directory:
    """Return the directory that a URL names, without connecting to it.

    Raises UsageError for a malformed URL, MissingError without the packages for etcd.
    """
    place = parse_directory_url(url)
    if isinstance(place, FilePlace):
        return FileDirectory(Path(place.path), ttl_seconds)
    try:
        from dpukv_xdp.discovery.etcd import Etcd2Directory, Etcd3Directory  # slow: needs requests
    except ModuleNotFoundError as error:
        raise MissingError(
            f"the directory {url}", f"the Python package {error.name}: {install_advice('etcd')}"
        ) from error
    kind = Etcd2Directory if place.version == 2 else Etcd3Directory
    return kind(place.host, place.port, place.prefix, ttl_seconds)
