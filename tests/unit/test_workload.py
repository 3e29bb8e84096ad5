# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Prepared frames are right byte for byte, according to the codec, and streams have the stated
distributions.
"""

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.load import draws, workload
from dpukv_xdp.load.workload import LOAD, WORKLOADS, Plan
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Endpoint, Request
from dpukv_xdp.wire.hashing import hash_key

CHI_SQUARE_SIGMAS = 5.0
"""Allowed deviation of a chi-square from its mean, in standard deviations. Seeds are fixed, so the
result is the same in every run.
"""

PLAN = Plan(
    source=Endpoint("02:00:00:00:00:02", "10.0.0.2", 49152),
    destination=Endpoint("02:00:00:00:00:01", "10.0.0.1", 9800),
    workload=WORKLOADS["B"],
    keys=1 << 20,
    requests_per_packet=45,
)


def new_pool(templates: int) -> npt.NDArray[np.void]:
    """Return a pool filled with ones: bytes that are not written must not matter."""
    return np.full(templates * abi.SIZE("kv_template"), 0xFF, np.uint8).view(
        abi.dtype("kv_template")
    )


def requests_of(template: Any) -> list[Request]:
    raw = template["frame"].tobytes()[: int(template["frame_bytes"])]
    return codec.decode_requests(codec.decode_frame(raw).payload)


def assert_fits(observed: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    """Assert by a chi-square test that the counts fit the expected ones."""
    chi_square = float((((observed - expected) ** 2) / expected).sum())
    freedom = len(observed) - 1
    assert abs(chi_square - freedom) < CHI_SQUARE_SIGMAS * (2 * freedom) ** 0.5


# ---- Frames


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["A", "B", "C"]),
    key_size=st.sampled_from([1, 2, 7, 8, 9, 16, 20, 100, 255]),
    value_size=st.sampled_from([0, 1, 7, 8, 9, 16, 100, 700, 1184]),
    owners=st.sampled_from([(0,), (0, 1), (0, 1, 2, 3, 4), (0, 2, 0, 1), (1, 1, 1, 0)]),
    distribution=st.sampled_from(draws.DISTRIBUTIONS),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_frames_say_what_the_plan_says(
    name: str,
    key_size: int,
    value_size: int,
    owners: tuple[int, ...],
    distribution: draws.Distribution,
    seed: int,
    data: st.DataObject,
) -> None:
    fit = workload.requests_per_packet_max(key_size, value_size, WORKLOADS[name])
    plan = replace(
        PLAN,
        workload=WORKLOADS[name],
        keys=min(1000, 256**key_size),
        key_size=key_size,
        value_size=value_size,
        owners=owners,
        distribution=distribution,
        seed=seed,
        requests_per_packet=data.draw(st.integers(1, fit)),
    )
    pool = new_pool(23)
    prepared = workload.build_templates(plan, pool)
    keys = {workload.key_bytes(rank, key_size) for rank in range(plan.keys)}
    assert len(keys) == plan.keys
    used = pool[: prepared.templates]
    assert prepared.templates == 23
    assert prepared.requests == used["request_count"].sum()
    assert prepared.gets == used["get_count"].sum()
    for template in used:
        check_template(plan, template, keys)


def check_template(plan: Plan, template: Any, keys: set[bytes]) -> None:
    raw = template["frame"].tobytes()[: int(template["frame_bytes"])]
    frame = codec.decode_frame(raw)
    requests = codec.decode_requests(frame.payload)
    engine = frame.destination.port - plan.destination.port
    assert raw == codec.encode_frame(
        plan.source,
        replace(plan.destination, port=plan.destination.port + engine),
        codec.encode_batch(requests, plan.mtu),
    )
    assert len(requests) == template["request_count"] <= plan.requests_per_packet
    assert [request.opaque for request in requests] == list(range(len(requests)))
    hash_sum = 0
    response_bytes = codec.BATCH_HEADER_BYTES
    for request in requests:
        assert request.key in keys
        assert request.key_hash == hash_key(request.key)
        assert plan.owners[(request.key_hash >> 48) % len(plan.owners)] == engine
        is_get = request.operation == abi.Operation.GET
        value = workload.value_bytes(request.key, plan.value_size)
        assert request.value == (b"" if is_get else value)
        response_bytes += codec.item_bytes(0, plan.value_size if is_get else 0)
        hash_sum = (hash_sum + request.key_hash) % 2**64
    assert response_bytes <= codec.payload_max(plan.mtu)
    assert template["hash_sum"] == hash_sum
    assert template["reserved"] == 0
    assert template["get_count"] == sum(
        request.operation == abi.Operation.GET for request in requests
    )


def test_packets_are_cut_exactly_where_the_next_request_does_not_fit() -> None:
    plan = replace(PLAN, workload=WORKLOADS["A"], value_size=100, requests_per_packet=17)
    pool = new_pool(300)
    workload.build_templates(plan, pool)
    packets = [requests_of(template) for template in pool]
    for packet, following in pairwise(packets):
        longer = [*packet, following[0]]
        sets = sum(request.operation == abi.Operation.SET for request in longer)
        gets = len(longer) - sets
        request_bytes = 6 + gets * 32 + sets * 136
        response_bytes = 6 + gets * 128 + sets * 24
        assert len(longer) > 17 or max(request_bytes, response_bytes) > codec.payload_max()


def test_cutting_keeps_the_stream() -> None:
    """The same seed gives the same operations and keys in order, however packets are cut."""
    streams = []
    for requests_per_packet in (1, 20, 45):
        pool = new_pool(2000 // requests_per_packet)
        workload.build_templates(replace(PLAN, requests_per_packet=requests_per_packet), pool)
        streams.append(
            [
                (request.operation, request.key)
                for template in pool
                for request in requests_of(template)
            ][:1800]
        )
    assert len(streams[0]) == 1800
    assert streams[0] == streams[1] == streams[2]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    pools = [new_pool(100) for _ in range(3)]
    for pool, seed in zip(pools, (7, 7, 8), strict=True):
        workload.build_templates(replace(PLAN, seed=seed, gap_mean_ns=1000), pool)
    assert pools[0].tobytes() == pools[1].tobytes()
    assert pools[0].tobytes() != pools[2].tobytes()


@pytest.mark.parametrize("engines", [1, 4])
@pytest.mark.parametrize(("key_size", "value_size"), [(8, 8), (20, 100), (2, 0)])
def test_the_load_phase_sets_every_key_once(engines: int, key_size: int, value_size: int) -> None:
    plan = replace(
        PLAN, keys=5000, key_size=key_size, value_size=value_size, owners=tuple(range(engines)),
        requests_per_packet=1,
    )  # fmt: skip
    pool = new_pool(40)
    loaded: dict[bytes, bytes] = {}
    first = packets = 0
    while first < plan.keys:
        prepared = workload.load_templates(plan, pool, first)
        assert prepared.gets == 0
        for template in pool[: prepared.templates]:
            requests = requests_of(template)
            assert all(request.operation == abi.Operation.SET for request in requests)
            assert all(request.key not in loaded for request in requests)
            loaded.update((request.key, request.value) for request in requests)
        first += prepared.requests
        packets += prepared.templates
    assert loaded == {
        key: workload.value_bytes(key, value_size)
        for key in (workload.key_bytes(rank, key_size) for rank in range(5000))
    }
    fit = workload.requests_per_packet_max(key_size, value_size, LOAD)
    assert packets <= 5000 / fit + 8 * engines


def test_values_are_the_words_of_the_abi() -> None:
    key = workload.key_bytes(3, 8)
    key_hash, salt = hash_key(key), abi.KV_LOAD_VALUE_SALT
    words = [key_hash ^ (salt * (index + 1)) % 2**64 for index in range(3)]
    whole = b"".join(word.to_bytes(8, "little") for word in words)
    for length in range(25):
        assert workload.value_bytes(key, length) == whole[:length]


def test_keys_are_ranks_little_endian_with_a_filler() -> None:
    assert workload.key_bytes(0x0102, 8) == bytes.fromhex("0201000000000000")
    assert workload.key_bytes(0x0102, 2) == bytes.fromhex("0201")
    long_keys = [workload.key_bytes(rank, 21) for rank in (1, 2)]
    assert [key[:8] for key in long_keys] == [workload.key_bytes(rank, 8) for rank in (1, 2)]
    assert long_keys[0][8:] == long_keys[1][8:]
    assert 0 not in long_keys[0][8:]


# ---- How many fit


def test_as_many_fit_as_in_mica2() -> None:
    assert workload.requests_per_packet_max(8, 8, LOAD) == 36
    assert [workload.requests_per_packet_max(8, 8, WORKLOADS[name]) for name in "ABC"] == [45] * 3


@pytest.mark.parametrize("mtu", [600, 1500, 9000])
@pytest.mark.parametrize(("key_size", "value_size"), [(1, 0), (8, 8), (255, 8), (8, 300), (16, 1)])
def test_the_maximum_is_the_best_of_all_mixes(key_size: int, value_size: int, mtu: int) -> None:
    def fits(gets: int, sets: int) -> bool:
        request = (
            codec.item_bytes(key_size, 0) * gets + codec.item_bytes(key_size, value_size) * sets
        )
        response = codec.item_bytes(0, value_size) * gets + codec.item_bytes(0, 0) * sets
        return gets + sets <= abi.KV_BATCH_MAX and max(request, response) + 6 <= codec.payload_max(
            mtu
        )

    counts = range(abi.KV_BATCH_MAX + 1)
    best_gets = max(gets for gets in counts if fits(gets, 0))
    best_sets = max(sets for sets in counts if fits(0, sets))
    best = max(gets + sets for gets in counts for sets in counts if fits(gets, sets))
    for mix, expected in ((WORKLOADS["C"], best_gets), (LOAD, best_sets), (WORKLOADS["B"], best)):
        assert workload.requests_per_packet_max(key_size, value_size, mix, mtu) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"keys": 0},
        {"keys": 257, "key_size": 1},
        {"keys": 10**30},
        {"key_size": 0},
        {"key_size": 256},
        {"key_size": 10**12},
        {"value_size": -1},
        {"value_size": 1433},
        {"value_size": 10**12},
        {"requests_per_packet": 0},
        {"requests_per_packet": 46},
        {"owners": ()},
        {"owners": (0, -1)},
        {"owners": (0,) * (abi.KV_PARTITIONS_MAX + 1)},
        {"owners": tuple(range(abi.KV_ENGINES_MAX + 1))},
        {"owners": (0, 1), "destination": replace(PLAN.destination, port=65535)},
        {"distribution": "normal"},
        {"spacing": "linear"},
        {"gap_mean_ns": -1},
        {"gap_mean_ns": 1e10},
        {"destination": replace(PLAN.destination, mac="here")},
    ],
)
def test_a_plan_that_cannot_be_sent_is_a_usage_error(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        workload.build_templates(replace(PLAN, **change), new_pool(4))


@pytest.mark.parametrize(
    "owners",
    [
        (0,) * abi.KV_PARTITIONS_MAX,
        tuple(range(abi.KV_ENGINES_MAX)),
        (0,) * (abi.KV_PARTITIONS_MAX - 1) + (abi.KV_ENGINES_MAX - 1,),
    ],
)
def test_as_many_partitions_and_engines_as_there_may_be(owners: tuple[int, ...]) -> None:
    plan = replace(PLAN, owners=owners)
    assert workload.build_templates(plan, new_pool(4)).templates == 4


def test_loading_past_the_last_key_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="not below"):
        workload.load_templates(PLAN, new_pool(4), PLAN.keys)


def test_a_pool_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="kv_template"):
        workload.build_templates(PLAN, np.zeros(4, dtype=abi.dtype("kv_request")))


# ---- Distributions


@pytest.mark.parametrize("name", ["A", "B", "C"])
@pytest.mark.parametrize("requests_per_packet", [1, 45])
def test_the_operation_mix_is_the_workloads(name: str, requests_per_packet: int) -> None:
    plan = replace(PLAN, workload=WORKLOADS[name], requests_per_packet=requests_per_packet)
    prepared = workload.build_templates(plan, new_pool(100_000 // requests_per_packet))
    fraction = WORKLOADS[name].get_fraction
    if fraction == 1:
        assert prepared.gets == prepared.requests
        return
    observed = np.array([prepared.gets, prepared.requests - prepared.gets])
    expected = prepared.requests * np.array([fraction, 1 - fraction])
    assert float(((observed - expected) ** 2 / expected).sum()) < CHI_SQUARE_SIGMAS**2


def test_uniform_keys_are_uniform() -> None:
    ranks = draws.key_ranks("uniform", 1000, 1_000_000, np.random.default_rng(1))
    counts = np.bincount(ranks.astype(np.int64), minlength=1000)
    assert len(counts) == 1000
    assert_fits(counts, np.full(1000, 1000.0))


@pytest.mark.parametrize("keys", [1, 2, 3, 1000, 1 << 20])
def test_zipf_keys_have_the_exact_probabilities(keys: int) -> None:
    count = 2_000_000
    ranks = draws.zipf_ranks(keys, count, np.random.default_rng(2))
    weights = np.arange(1, keys + 1, dtype=np.float64) ** -draws.ZIPF_THETA
    probabilities = weights / weights.sum()
    observed = np.bincount(ranks.astype(np.int64), minlength=keys)
    assert len(observed) == keys
    if keys == 1:
        return
    # The head is tested key by key, the tail in groups that expect about a thousand each.
    cuts = np.searchsorted(np.cumsum(probabilities), np.arange(0, 1, 1000 / count))
    groups = np.unique(np.concatenate((np.arange(min(keys, 100)), cuts[cuts < keys])))
    assert_fits(np.add.reduceat(observed, groups), count * np.add.reduceat(probabilities, groups))


def test_zipf_works_over_keys_that_no_table_could_hold() -> None:
    ranks = draws.zipf_ranks(workload.KEYS_MAX, 100_000, np.random.default_rng(3))
    assert ranks.max() < workload.KEYS_MAX
    assert ranks.min() == 0
    assert ranks.max() > workload.KEYS_MAX // 2


@pytest.mark.parametrize("spacing", ["constant", "exponential"])
def test_gaps_keep_their_mean(spacing: draws.Spacing) -> None:
    gaps = draws.gaps_ns(1234.5, spacing, 100_000, np.random.default_rng(4))
    mean = float(gaps.mean())
    if spacing == "constant":
        assert set(gaps.tolist()) == {1234, 1235}
        assert mean == pytest.approx(1234.5, abs=0.01)
    else:
        assert mean == pytest.approx(1234.5, rel=0.02)
        assert float(gaps.std()) == pytest.approx(1234.5, rel=0.02)
        assert float((gaps > 1234.5).mean()) == pytest.approx(np.exp(-1), rel=0.02)


def test_a_closed_loop_has_no_gaps() -> None:
    pool = new_pool(10)
    workload.build_templates(PLAN, pool)
    assert not pool["gap_ns"].any()


# ---- Speed: a Python loop over requests would take ten times these bounds


def test_a_million_zipf_keys_take_far_below_a_second() -> None:
    assert (
        fastest_seconds(lambda: draws.zipf_ranks(1 << 20, 1 << 20, np.random.default_rng(5))) < 0.3
    )


def test_preparing_a_million_requests_takes_about_as_long_as_writing_them() -> None:
    pool = new_pool(1 << 15)
    plan = replace(PLAN, distribution="zipf")
    assert fastest_seconds(lambda: workload.build_templates(plan, pool)) < patient(0.6)


def fastest_seconds(work: Any) -> float:
    """Return the CPU time of the fastest of three runs: other programs use this machine, too."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize(
    ("keys", "requests_per_packet", "packets"),
    [
        (1, 45, workload.STREAM_PACKETS_MIN),
        (workload.STREAM_PACKETS_MIN * 45 // 8, 45, workload.STREAM_PACKETS_MIN),
        (workload.STREAM_PACKETS_MIN * 45 // 8 + 1, 45, workload.STREAM_PACKETS_MIN + 1),
        (30_000, 45, 5334),
        (workload.STREAM_PACKETS_MAX // 8, 1, workload.STREAM_PACKETS_MAX),
        (1 << 20, 45, workload.STREAM_PACKETS_MAX),
    ],
)
def test_a_stream_draws_each_key_often_within_its_limits(
    keys: int, requests_per_packet: int, packets: int
) -> None:
    assert workload.stream_packets(keys, requests_per_packet) == packets
