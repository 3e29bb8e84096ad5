# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Transfer primitives: each delivers every byte in order, and detects a wrong one."""

import errno
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from net.commands import dpukv, lab_of, started, wait_for
from net.serving import set_link

from dpukv_xdp.base.errors import DpukvError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.bench import transfer
from dpukv_xdp.bench.transfer import DIRECTIONS, MODES, PRIMITIVES, Transfers, Way
from dpukv_xdp.kernel.attachments import list_attachments
from dpukv_xdp.kernel.namespaces import NAMESPACE_DIR
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.wire import abi

pytestmark = pytest.mark.needs("live frames", "AF_XDP", "AF_XDP need_wakeup", "threaded NAPI")

TIMEOUT_SECONDS = patient(60.0)
OPERATIONS = 50
DAMAGED = 1
"""Index of the payload that tests damage."""
SIZES = (2, 1024, 8192)
ODD_SIZES = (1, 7, 65, 1025, 8191)
WAYS = [
    pytest.param(way, id=f"{name} {direction}")
    for name, primitive in PRIMITIVES.items()
    for direction, way in primitive.ways.items()
    if isinstance(way, Way)
]


@pytest.fixture(scope="module")
def transfers() -> Iterator[Transfers]:
    with Transfers(needs_link=True) as ready:
        yield ready


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
def test_every_payload_arrives(transfers: Transfers, way: Way, mode: str) -> None:
    for size in SIZES:
        found = transfers.run(way, size, OPERATIONS, MODES[mode])
        assert found["wrong"] == 0, size
        assert 0 < found["latency_ns"]["p50"] <= found["latency_ns"]["p99"]
        assert found["frames"] == (-(-size // abi.KV_TRANSFER_FRAGMENT_MAX) if way.frames else 0)


@pytest.mark.parametrize("way", WAYS)
def test_payloads_of_any_length_arrive(transfers: Transfers, way: Way) -> None:
    for size in ODD_SIZES:
        assert transfers.run(way, size, 5, MODES["non-blocking"])["wrong"] == 0, size


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "byte"), [(2, 1), (1024, 517), (8191, 8190)])
def test_a_damaged_byte_is_noticed(transfers: Transfers, way: Way, size: int, byte: int) -> None:
    """One of the payloads that are sent in turn is damaged: that share of the operations fails."""
    total = transfer.WARM_UP_OPERATIONS + OPERATIONS
    with damaged(transfers, byte):
        wrong = transfers.run(way, size, OPERATIONS, 1)["wrong"]
    assert wrong == len(range(DAMAGED, total, abi.KV_TRANSFER_PAYLOADS))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [2, 8191])
def test_nothing_behind_the_payload_is_looked_at(transfers: Transfers, way: Way, size: int) -> None:
    with damaged(transfers, size):
        assert transfers.run(way, size, OPERATIONS, 1)["wrong"] == 0


@contextmanager
def damaged(transfers: Transfers, byte: int) -> Iterator[None]:
    """Damage a byte of one of the prepared payloads within the block."""
    at = DAMAGED * abi.KV_TRANSFER_BYTES_MAX + byte
    senders = (transfers.dpu_payloads, transfers.host_payloads)
    for payloads in senders:
        payloads[at] ^= 0xFF
    try:
        yield
    finally:
        for payloads in senders:
            payloads[at] ^= 0xFF


def test_an_end_without_the_other_gives_up(
    transfers: Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No frames are sent: both ends wait until their time-outs, and the first one reports it."""
    monkeypatch.setattr(transfer, "TIMEOUT_SECONDS", 0.2)
    lonely = Way("kv_transfer_frame_receive", PRIMITIVES["ring"].ways["dpu-to-host"].end)
    began = time.monotonic()
    with pytest.raises(DpukvError, match=r"^kv_transfer_frame_receive: operations got lost"):
        transfers.run(lonely, 8, OPERATIONS, 1)
    assert time.monotonic() - began < patient(5)


@pytest.mark.parametrize("mode", MODES)
def test_frames_that_the_kernel_does_not_take_at_once_are_sent_later(
    transfers: Transfers, mode: str
) -> None:
    """A link that is down refuses frames, as the full queues of a busy machine do."""
    assert transfers._link is not None
    end = transfers._link.place.client
    set_link(end, state="down")
    later = threading.Timer(0.2, set_link, (end,), {"state": "up"})
    later.start()
    try:
        found = transfers.run(
            PRIMITIVES["af-xdp"].ways["host-to-dpu"], 8191, OPERATIONS, MODES[mode]
        )
    finally:
        later.join()
    assert found["wrong"] == 0


@pytest.mark.parametrize(
    ("failed", "says"),
    [
        ({"host": errno.ETIMEDOUT, "dpu": errno.ETIMEDOUT}, "way: operations got lost"),
        ({"host": errno.ECANCELED, "dpu": errno.ETIMEDOUT}, "way: operations got lost"),
        ({"host": errno.ETIMEDOUT, "dpu": errno.ECANCELED}, "way: operations got lost"),
        ({"host": errno.ETIMEDOUT}, "way: operations got lost"),
        ({"host": errno.ECANCELED, "dpu": errno.EINVAL}, "way, dpu end: Invalid argument"),
        ({"host": errno.EPERM, "dpu": errno.ECANCELED}, "way, host end: Operation not"),
    ],
)
def test_who_noticed_first_makes_no_difference(failed: dict[str, int], says: str) -> None:
    running: dict[str, Future[int]] = {end: Future() for end in failed}
    for end, number in failed.items():
        running[end].set_result(-number)
    with pytest.raises(DpukvError, match=f"^{says}"):
        transfer._raise_failure(running, replace(WAYS[0].values[0], program="way"))


def test_statistics_leave_interruptions_out() -> None:
    times_ns = np.cumsum([0.0, 100, 300, 100, 5e6, 300, 200])
    found = transfer._statistics(times_ns, size=10, window=1)
    assert found["latency_ns"]["mean"] == pytest.approx(200)
    assert found["latency_ns"]["p50"] == pytest.approx(200)
    assert found["mb_per_s"] == pytest.approx(50)
    assert found["interruptions"] == {"count": 1, "ms": pytest.approx(5)}
    assert transfer._statistics(times_ns, 10, 5)["latency_ns"]["p99"] == pytest.approx(200)


# ---- The command


def qp_bench(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    return dpukv("qp-bench", *arguments, status=status, timeout_seconds=TIMEOUT_SECONDS)


@pytest.mark.shares_cores
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sizes", "2,x"], "not a list of numbers"),
        (["--sizes", "0"], "--sizes 0 is not 1 to 8192"),
        (["--sizes", "8,8193"], "--sizes 8193 is not 1 to 8192"),
        (["--sizes", ""], "not a list of numbers"),
        (["--operations", "0"], "--operations 0 is not 1 to 1000000"),
        (["--primitive", "dma"], "no primitive 'dma': choose from ring, ringbuf"),
        (["--output", "picture.txt"], "choose another --output"),
        (["--json", "/nowhere/result.json"], "choose another --json"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], says: str) -> None:
    run = qp_bench(*arguments, status=2)
    assert says in run.stderr
    assert run.stderr.count("\n") == 1
    assert run.stdout == ""


def test_the_json_has_a_measurement_or_a_reason_for_everything() -> None:
    small = ["--sizes", "2,2048", "--operations", "100", "--json", "-"]
    run = qp_bench(*small, "--primitive", "ring", "--primitive", "af-xdp-poll")
    assert run.stderr == ""
    result = json.loads(run.stdout)
    assert (result["sizes"], result["operations"]) == ([2, 2048], 100)
    assert list(result["primitives"]) == ["ring", "af-xdp-poll"]
    assert result["cores"]["dpu"] != result["cores"]["host"]
    assert result["machine"]["kernel"]
    cells = {name: [_cell(each) for each in result[name]] for name in ("measurements", "missing")}
    wanted = [(p, d, m) for p in result["primitives"] for d in DIRECTIONS for m in MODES]
    assert sorted(set(cells["measurements"]) | set(cells["missing"])) == sorted(wanted)
    assert all(cells["measurements"].count(cell) == 2 for cell in cells["measurements"])
    assert all("poll()" in each["reason"] for each in result["missing"])
    for found in result["measurements"]:
        assert found["wrong"] == 0
        assert set(found["latency_ns"]) == {"mean", "p50", "p99"}
        assert found["mb_per_s"] == pytest.approx(found["bytes"] * found["mops"])


def test_the_tables_fit_and_the_picture_is_one(tmp_path: Path) -> None:
    picture = tmp_path / "transfers.png"
    run = qp_bench(
        "--operations", "20", "--primitive", "ring", "--primitive", "ringbuf-epoll",
        "--output", str(picture),
    )  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")
    for part in ("median, ns", "MB/s", "ringbuf-epoll d→h blk", "goes only to the", "8192"):
        assert part in run.stdout
    assert "…" not in run.stdout


def test_an_interrupted_qp_bench_leaves_nothing() -> None:
    before = {record.lab_id for record in labs.list_labs()}
    with started("qp-bench", "--operations", "1000000") as process:
        record = wait_for(lambda: _attached_lab(process), TIMEOUT_SECONDS)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, output) == (128 + signal.SIGINT, "")
    assert errors == "dpukv: interrupted; everything has been taken down\n"
    assert record not in {each.lab_id for each in labs.list_labs()} - before
    assert list(NAMESPACE_DIR.glob(f"*{record}*")) == []


def _attached_lab(process: subprocess.Popen[str]) -> str | None:
    """Return the command's lab once its XDP program is attached."""
    record = lab_of(process)
    attached = [each for each in list_attachments() if each.owner.pid == process.pid]
    return record.lab_id if record and attached else None


def _cell(found: dict[str, Any]) -> tuple[str, str, str]:
    return found["primitive"], found["direction"], found["mode"]
