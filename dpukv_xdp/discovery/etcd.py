# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Directories in etcd: version 2 of its interface, which MICA2 reads, and version 3, the current.

The keys are MICA2's in both: PREFIX/servers/NAME.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from etcd3gw.client import Etcd3Client
from etcd3gw.exceptions import (
    ConnectionFailedError,
    ConnectionTimeoutError,
    Etcd3Exception,
)
from etcd3gw.lease import Lease

from dpukv_xdp.base.errors import DirectoryError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.discovery.directory import Listing, ServerRecord, check_name, read_record

TIMEOUT_SECONDS = 2.0
"""Time-out of a connection and of an answer: well below the TTL, so that a retry is in time."""

_KEY_NOT_FOUND = 100  # errorCode of version 2


class Etcd2Directory:
    """Keys with a TTL, which public MICA2 clients read. etcd 3.4 and 3.5 offer this interface with
    --enable-v2=true.
    """

    def __init__(self, host: str, port: int, prefix: str, ttl_seconds: int) -> None:
        self._place = f"etcd2://{_bracketed(host)}:{port}{prefix}"
        self._servers_url = f"http://{_bracketed(host)}:{port}/v2/keys{prefix}/servers"
        self._ttl_seconds = ttl_seconds
        self._session = _session()

    def publish(self, name: str, record: ServerRecord) -> None:
        """As in Directory."""
        check_name(name)
        self._call("PUT", f"/{name}", {"ttl": str(self._ttl_seconds), "value": record.to_json()})

    def withdraw(self, name: str) -> None:
        """As in Directory."""
        check_name(name)
        self._call("DELETE", f"/{name}")

    def servers(self) -> Listing:
        """As in Directory."""
        node = self._call("GET", "?recursive=true&sorted=true").get("node", {})
        with _failures_named(self._place):
            texts = {
                str(each["key"]).rpartition("/")[2]: each["value"]
                for each in node.get("nodes", [])
                if not each.get("dir", False)
            }
        return {name: read_record(self._place, name, texts[name]) for name in sorted(texts)}

    def __str__(self) -> str:
        return self._place

    def _call(self, method: str, path: str, form: dict[str, str] | None = None) -> dict[str, Any]:
        """Return etcd's answer; empty if the key does not exist."""
        with _failures_named(self._place):
            answer = self._session.request(
                method, self._servers_url + path, data=form, timeout=patient(TIMEOUT_SECONDS)
            )
            if answer.status_code == requests.codes["not_found"] and "json" not in (
                answer.headers.get("Content-Type", "")
            ):
                raise DirectoryError(
                    f"the directory {self._place} has no version 2 interface: start etcd with "
                    f"--enable-v2=true, or use etcd3:"
                )
            content: dict[str, Any] = answer.json()
            if content.get("errorCode") == _KEY_NOT_FOUND:
                return {}
            if not answer.ok or "errorCode" in content:
                raise DirectoryError(
                    f"the directory {self._place} refused: {content.get('message', answer.reason)}"
                    f" ({content.get('cause', answer.status_code)}), check the prefix"
                )
            return content


class Etcd3Directory:
    """Keys with a lease each, which publishing keeps alive."""

    def __init__(self, host: str, port: int, prefix: str, ttl_seconds: int) -> None:
        self._place = f"etcd3://{_bracketed(host)}:{port}{prefix}"
        self._prefix = f"{prefix}/servers/"
        self._ttl_seconds = ttl_seconds
        self._client = Etcd3Client(host, port, timeout=patient(TIMEOUT_SECONDS), session=_session())
        self._leases: dict[str, Lease] = {}

    def publish(self, name: str, record: ServerRecord) -> None:
        """As in Directory. Writes only changed records, because etcd keeps every version."""
        check_name(name)
        key, text = self._prefix + name, record.to_json()
        with _failures_named(self._place):
            lease = self._leases.get(name)
            if lease is None or lease.refresh() <= 0:  # the lease has expired, or etcd lost it
                self._leases[name] = lease = self._client.lease(self._ttl_seconds)
            there = [
                (value, metadata.get("lease"))
                for value, metadata in self._client.get(key, metadata=True)
            ]
            if there != [(text.encode(), str(lease.id))]:
                self._client.put(key, text, lease)

    def withdraw(self, name: str) -> None:
        """As in Directory."""
        check_name(name)
        with _failures_named(self._place):
            self._client.delete(self._prefix + name)
            lease = self._leases.pop(name, None)
            if lease is not None and lease.ttl() > 0:
                lease.revoke()

    def servers(self) -> Listing:
        """As in Directory."""
        with _failures_named(self._place):
            texts = {
                metadata["key"].decode().removeprefix(self._prefix): text
                for text, metadata in self._client.get_prefix(self._prefix)
            }
        return {name: read_record(self._place, name, texts[name]) for name in sorted(texts)}

    def __str__(self) -> str:
        return self._place


def _session() -> requests.Session:
    """Return a session that ignores the environment's web proxies: etcd is not behind them."""
    session = requests.Session()
    session.trust_env = False
    return session


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextmanager
def _failures_named(place: str) -> Iterator[None]:
    """Turn every failure to reach etcd or to read its answer into a DirectoryError."""
    try:
        yield
    except (requests.Timeout, ConnectionTimeoutError) as error:
        raise DirectoryError(
            f"the directory {place} does not answer within {patient(TIMEOUT_SECONDS):.3g} s: "
            f"check that etcd runs there"
        ) from error
    except (requests.ConnectionError, ConnectionFailedError) as error:
        raise DirectoryError(
            f"the directory {place} cannot be reached: check the address, and that etcd runs there"
        ) from error
    except Etcd3Exception as error:
        reason = str(error.detail_text or error).strip()
        raise DirectoryError(f"the directory {place} refused: {reason}, check etcd") from error
    except (requests.RequestException, LookupError, TypeError, AttributeError, ValueError) as error:
        raise DirectoryError(
            f"the directory {place} answers unlike etcd ({type(error).__name__}): check the address"
        ) from error
