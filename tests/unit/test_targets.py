# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""External servers: how HOST:PORT is resolved."""

from pathlib import Path

import pytest

from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.bench import targets
from dpukv_xdp.client.client import Client
from dpukv_xdp.discovery.directory import FileDirectory, ServerRecord

RECORD = ServerRecord(False, False, (0,), (("02:00:00:00:00:01", "127.0.0.1", 9800),))


@pytest.fixture(autouse=True)
def _answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "ping", lambda client: 0.0)


def test_a_name_is_resolved_for_whoever_needs_an_address(tmp_path: Path) -> None:
    """The route and the directory need one; on loopback the search fails at the MAC address."""
    FileDirectory(tmp_path).publish("one.1", RECORD)
    with pytest.raises(DpukvError, match=r"MAC address of 127\.0\.0\.1") as raised:
        targets.find_target("localhost:9800", 1, f"file:{tmp_path}")
    assert not isinstance(raised.value, UsageError)


def test_a_name_without_an_address_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"host\.invalid has no address"):
        targets.find_target("host.invalid:9800", 1)


def test_a_server_that_is_not_published_is_an_error_that_names_what_is_malformed(
    tmp_path: Path,
) -> None:
    FileDirectory(tmp_path).publish("one.1", RECORD)
    (tmp_path / "bad.2.json").write_text("{")
    with pytest.raises(UsageError, match=r"no server at 127\.0\.0\.1:1: .* server bad\.2 "):
        targets.find_target("127.0.0.1:1", 1, f"file:{tmp_path}")
