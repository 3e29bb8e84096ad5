# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The tables of docs/PROTOCOL.md on operations, designs and access modes, row by row on real
servers.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from net.serving import CLIENT_PORT, PORT, Wire, answer_of, ends, serving, sharing_cores

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.server.server import Server
from dpukv_xdp.topology import validation
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.schema import STORE_KINDS, ServerConfig
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Reply, Request
from dpukv_xdp.wire.hashing import hash_key

TEXT = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text()
MODES = ("erew", "crew", "crcw")
KINDS = STORE_KINDS
SUM = (7).to_bytes(8, "little")
COUNT = (5).to_bytes(8, "little")
ADDEND = (2).to_bytes(8, "little")
TEXT_VALUE = b"a value of some length"


def table(name: str) -> list[dict[str, str]]:
    """Return the rows of a table, each by the columns' headings."""
    lines = TEXT.split(f"<!-- {name} -->\n")[1].split("\n\n")[0].splitlines()
    heading, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(heading, row, strict=True)) for row in rows]


OPERATIONS = table("operations")
DESIGN_ROWS = {row["design"]: row for row in table("designs")}
SERVED = [
    (design, mode) for design in DESIGNS for mode in MODES
    if DESIGN_ROWS[design][mode.upper()].startswith("yes")
]  # fmt: skip


def needs_permission(row: dict[str, str]) -> bool:
    """Return whether the row is about a server that allows RESET."""
    return row["situation"] == "allowed"


@dataclass
class Case:
    """The test of one row."""

    row: dict[str, str]
    key: bytes
    before: bytes | None
    """The key's value before the request; None if the key is absent."""
    value: bytes


def case_of(row: dict[str, str], key: bytes) -> Case:
    """Return the test that the words of a row describe."""
    situation = row["situation"]
    before = {
        "the key is there": TEXT_VALUE,
        "the key's value has 8 bytes": COUNT,
        "the key's value has other than 8 bytes": TEXT_VALUE,
        "the request's value has other than 8 bytes": COUNT,
    }.get(situation)
    value = b""
    if row["operation"] in ("SET", "ADD"):
        value = b"new"
    if row["operation"] == "INCREMENT":
        value = b"1234567" if situation.startswith("the request's") else ADDEND
    has_key = situation not in ("no key", "allowed", "not allowed")
    return Case(row, key if has_key else b"", before, value)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    labs.remove_stale()
    with Lab.up() as place:
        yield place


def test_the_tables_have_every_operation_design_and_mode() -> None:
    named = {row["operation"] for row in OPERATIONS}
    assert {operation.name for operation in abi.Operation} <= named
    assert set(DESIGN_ROWS) == set(DESIGNS)


@pytest.mark.parametrize("design", DESIGNS)
def test_designs_have_the_modes_and_stores_that_the_table_says(design: str) -> None:
    for column, settings in (
        *((mode.upper(), {"access": mode}) for mode in MODES),
        *((kind, {"store": kind}) for kind in KINDS),
    ):
        config = ServerConfig(design=design, **settings)  # type: ignore[arg-type]
        if DESIGN_ROWS[design][column].startswith("yes"):
            validation.check(config)
        else:
            with pytest.raises(UsageError):
                validation.check(config)
    by_default = "by default" in DESIGN_ROWS[design]["CRCW"]
    assert ServerConfig(design=design).access_mode() == ("crcw" if by_default else "erew")


@pytest.mark.parametrize(("design", "mode"), SERVED)
def test_every_row_is_answered_as_the_table_says(lab: Lab, design: str, mode: str) -> None:
    doors = len(DESIGNS[design].communication)
    settings: dict[str, Any] = {"engines": 2 // doors, "access": mode, "log_bytes": 1 << 22}
    rows = sorted(OPERATIONS, key=needs_permission)
    for allowed, group in itertools.groupby(rows, needs_permission):
        with (
            sharing_cores(),
            serving(lab, design=design, **settings, allow_reset=allowed) as server,
            Wire(lab.client, range(PORT, PORT + 2)) as wire,
        ):
            speaker = Speaker(lab, server, wire)
            for row in group:
                for owner in (0, 1):
                    check_row(speaker, row, mode, owner)


class Speaker:
    """Sends single requests to one engine of a server."""

    def __init__(self, lab: Lab, server: Server, wire: Wire) -> None:
        self._lab, self._server, self._wire = lab, server, wire
        self._keys = itertools.count()

    def ask(self, engine: int, request: Request) -> Reply:
        """Return an engine's reply to a request."""
        client, server = ends(self._lab, PORT + engine)
        assert client.port == CLIENT_PORT
        frame = codec.encode_frame(client, server, codec.encode_batch([request], strict=False))
        (reply,) = answer_of(self._wire.exchange(frame))
        assert (reply.opaque, reply.key_hash) == (request.opaque, request.key_hash)
        assert reply.operation == request.operation
        return reply

    def key_of(self, owner: int) -> bytes:
        """Return a new key, short or long, that an engine owns."""
        for number in self._keys:
            key = b"%d" % number if number % 2 else b"a longer key, number %d" % number
            if self.owner_of(key) == owner:
                return key
        raise AssertionError

    def owner_of(self, key: bytes) -> int:
        """Return the engine that owns a key's partition."""
        owners = self._server.owners
        return owners[(hash_key(key) >> 48) % len(owners)]

    def hash_owned_by(self, owner: int) -> int:
        """Return a key hash in an engine's partition, for a request without a key."""
        return self._server.owners.index(owner) << 48


def check_row(speaker: Speaker, row: dict[str, str], mode: str, owner: int) -> None:
    """Check the answer and effect of a request to the owner, and to the other engine."""
    for engine in (owner, 1 - owner):
        case = case_of(row, speaker.key_of(owner))
        if case.before is not None:
            assert speaker.ask(owner, Request.set(case.key, case.before)).result == abi.KV_SUCCESS
        column = "the owner answers"
        if engine != owner:
            column = {"erew": "another engine: EREW"}.get(mode, mode.upper())
        answer = row[column] if row[column] != "as the owner" else row["the owner answers"]
        code = operation_of(row)
        key_hash = hash_key(case.key) if case.key else speaker.hash_owned_by(owner)
        reply = speaker.ask(engine, Request(code, case.key, case.value, 77, key_hash))
        result, _, attached = answer.partition(", ")
        assert reply.result == abi.Result[result], (row, mode, engine == owner)
        assert reply.value == {"": b"", "value": case.before, "sum": SUM}[attached]
        check_effect(speaker, case, owner, was_done=result == "SUCCESS")


def check_effect(speaker: Speaker, case: Case, owner: int, *, was_done: bool) -> None:
    """Check the value that the owner has under the key now."""
    if not case.key:
        return
    after = case.before
    if was_done:
        after = {"ADD": case.value, "SET": case.value, "DELETE": None, "INCREMENT": SUM}.get(
            case.row["operation"], case.before
        )
    reply = speaker.ask(owner, Request.get(case.key))
    assert reply.result == (abi.KV_NOT_FOUND if after is None else abi.KV_SUCCESS), case
    assert reply.value == (after or b"")


def operation_of(row: dict[str, str]) -> int:
    name = row["operation"]
    return int(name) if name.isdecimal() else int(abi.Operation[name])


@pytest.mark.parametrize("design", DESIGNS)
def test_reset_forgets_what_the_engine_owns_and_nothing_else(lab: Lab, design: str) -> None:
    doors = len(DESIGNS[design].communication)
    with (
        sharing_cores(),
        serving(lab, design=design, engines=2 // doors, allow_reset=True) as server,
        Wire(lab.client, range(PORT, PORT + 2)) as wire,
    ):
        speaker = Speaker(lab, server, wire)
        keys = {owner: [speaker.key_of(owner) for _ in range(30)] for owner in (0, 1)}
        for _ in range(3):
            for owner, own in keys.items():
                for key in own:
                    assert speaker.ask(owner, Request.set(key, key)).result == abi.KV_SUCCESS
            reset = Request(int(abi.Operation.RESET), b"", b"", 1, 0)
            assert speaker.ask(1, reset).result == abi.KV_SUCCESS
            everything = server.config.access_mode() == "crcw"
            for owner, own in keys.items():
                is_gone = everything or owner == 1
                wanted = abi.KV_NOT_FOUND if is_gone else abi.KV_SUCCESS
                assert {int(speaker.ask(owner, Request.get(key)).result) for key in own} == {wanted}
