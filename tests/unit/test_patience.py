# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Time-outs follow the machine's speed, as measured or as stated."""

import re
from collections.abc import Iterator

import pytest

from dpukv_xdp.base import patience
from dpukv_xdp.base.errors import UsageError


@pytest.fixture(autouse=True)
def _measures_anew() -> Iterator[None]:
    patience._measured.cache_clear()
    yield
    patience._measured.cache_clear()


@pytest.mark.parametrize(
    ("times", "slowness"),
    [
        ([0.001, 0.001, 0.001], 1),  # faster than the reference
        ([0.002, 0.002, 0.002], 1),
        ([0.5, 0.03, 0.2], 15),  # the best of three
        ([9.0, 9.0, 9.0], patience.MEASURED_MAX),
    ],
)
def test_it_is_measured_once(
    monkeypatch: pytest.MonkeyPatch, times: list[float], slowness: float
) -> None:
    """The measure is the CPU time of the work."""
    monkeypatch.delenv(patience.VARIABLE, raising=False)
    now = [0.0]
    left = list(times)

    def work() -> int:
        now[0] += left.pop(0)
        return 0

    monkeypatch.setattr(patience, "_work", work)
    monkeypatch.setattr(patience.time, "thread_time", lambda: now[0])
    for _ in range(2):
        assert patience.slowness() == pytest.approx(slowness)
    assert patience.patient(2.5) == pytest.approx(2.5 * slowness)
    assert left == []


def test_this_machine_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(patience.VARIABLE, raising=False)
    assert 1 <= patience.slowness() <= patience.MEASURED_MAX
    assert patience._work() == patience._work()


@pytest.mark.parametrize(("text", "slowness"), [("1", 1), ("2.5", 2.5), ("100", 100), (" 8 ", 8)])
def test_the_environment_states_it(
    monkeypatch: pytest.MonkeyPatch, text: str, slowness: float
) -> None:
    monkeypatch.setenv(patience.VARIABLE, text)
    assert patience.slowness() == slowness
    assert patience.patient(3.0) == 3 * slowness


@pytest.mark.parametrize("text", ["", "fast", "0.99", "0", "-3", "100.1", "1e300", "nan", "inf"])
def test_a_wrong_statement_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(patience.VARIABLE, text)
    with pytest.raises(UsageError, match=re.escape(f"DPUKV_SLOWNESS is {text!r}, not 1 to 100")):
        patience.patient(1)
