# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The paper's values: complete, typed by their notes, and found by their subject."""

import pytest

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.model.paper_values import (
    INCONSISTENCIES,
    PaperRange,
    own_name,
    paper_names,
    paper_range,
    paper_results,
    paper_values,
)
from dpukv_xdp.topology.designs import DESIGNS


def test_every_row_is_there() -> None:
    assert len(paper_results()) == 213
    assert all(row.figure_table and row.metric and row.unit is not None for row in paper_results())


def test_a_shape_has_no_number() -> None:
    without = [row for row in paper_results() if row.value is None]
    assert {row.unit for row in without} == {"shape"}
    assert {row.text for row in without} == {"linear", "scales"}


def test_notes_say_how_far_a_value_may_be_trusted() -> None:
    (peak,) = paper_values("throughput_peak", dpu="BF-3", design="DPU-KV-lat")
    assert (peak.value, peak.trust) == (41.03, "exact")
    low, high = paper_values(
        "throughput_peak", dpu="BF-2", design="CPU-only", workload="C", figure_table="Fig.12a-c"
    )
    assert (low.trust, high.trust) == ("minimum", "maximum")
    assert "derived" in low.note
    (bound,) = paper_values("latency_reduction_vs_CPU-only_max", dpu="BF-3", figure_table="Fig.13")
    assert bound.trust == "bound"
    assert paper_values("soc_cores")[0].trust == "setting"


def test_ranges_have_the_ends_of_what_is_found() -> None:
    allowed = paper_range("latency_at_peak", dpu="BF-2", design="DPU-only")
    assert (allowed.low, allowed.high, allowed.unit) == (76, 93, "us")
    assert allowed.middle == 84.5


@pytest.mark.parametrize(("value", "error"), [(1.5, 0.0), (1.0, 0.0), (0.9, -0.1), (2.2, 0.1)])
def test_an_error_is_the_relative_distance_from_the_range(value: float, error: float) -> None:
    assert PaperRange(1.0, 2.0, "x", "here").error(value) == pytest.approx(error)


def test_what_the_paper_does_not_have_is_an_error() -> None:
    with pytest.raises(UsageError, match="no number for throughput_peak of DPU-KV-shrd"):
        paper_range("throughput_peak", design="DPU-KV-shrd")
    with pytest.raises(UsageError):
        paper_range("scaling_with_arm_cores_1_to_8")


def test_designs_are_found_under_both_names() -> None:
    compared = {design.name for design in DESIGNS.values() if design.is_compared}
    assert set(paper_names()) == compared
    assert all(own_name(name) == own for own, name in paper_names().items())


def test_table_1_adds_up() -> None:
    parts = ("cpu_receive", "cpu_parse", "cpu_response", "cpu_get_set", "cpu_others")
    for dpu in ("BF-2", "BF-3"):
        for workload in "ABC":
            found = [paper_values(part, dpu=dpu, workload=workload)[0].value for part in parts]
            assert sum(value or 0.0 for value in found) == pytest.approx(100, abs=0.5)


def test_inconsistencies_are_sentences() -> None:
    assert all(sentence.endswith(".") for sentence in INCONSISTENCIES)
