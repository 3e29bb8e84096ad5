# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A server's settings: every limit at its edge, and combinations that are refused."""

import os
import re
from typing import Any

import pytest

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.topology import sizing, validation
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.ranges import ITEMS_MAX, LOG_BYTES_MAX, LOG_BYTES_MIN
from dpukv_xdp.topology.schema import (
    FRAMES,
    FRAMES_PAST_XDP,
    RESPOND_WAYS,
    TRANSPORTS,
    ServerConfig,
)
from dpukv_xdp.wire import abi

ENGINES_MAX = abi.KV_ENGINES_MAX
CPUS = tuple(sorted(os.sched_getaffinity(0)))
FOREIGN_CPU = CPUS[-1] + 1

FINE: list[dict[str, Any]] = [
    {},
    {"engines": 1},
    {"engines": ENGINES_MAX - 1},
    {"engines": ENGINES_MAX},
    {"design": "dual", "engines": ENGINES_MAX // 2 - 1},
    {"design": "dual", "engines": ENGINES_MAX // 2},
    {"port": 1},
    {"port": 2},
    {"port": 65534},
    {"port": 65535},
    {"port": 65531, "design": "shrd", "engines": 2},
    {"port": 65532, "design": "shrd", "engines": 2},
    {"engine_cpus": CPUS, "dpu_cpus": CPUS},
    {"rx_descriptors": 64},
    {"rx_descriptors": 128},
    {"rx_descriptors": 4096},
    {"rx_descriptors": 8192},
    {"host_share": 0.0},
    {"host_share": 1e-9},
    {"host_share": 1 - 1e-9},
    {"transport": "ringbuf"},
    {"transport": "af_xdp"},
    {"transfer": "request"},
    {"profile": "bf2", "transport": "ring"},
    {"respond": "sender"},
    {"items": 1},
    {"items": ITEMS_MAX - 1},
    {"items": ITEMS_MAX},
    {"log_bytes": 0},
    {"log_bytes": LOG_BYTES_MIN},
    {"log_bytes": LOG_BYTES_MIN + 1},
    {"log_bytes": 64 * LOG_BYTES_MIN, "design": "dual"},
    {"log_bytes": LOG_BYTES_MAX - 1},
    {"log_bytes": LOG_BYTES_MAX},
    {"depth": 0},
    {"depth": abi.KV_PIPELINE_MAX - 1},
    {"depth": abi.KV_PIPELINE_MAX},
    {"rebalance_s": 1.0, "engines": 2, "partitions": 3},
    {"rebalance_s": 3600.0, "design": "cpu-only", "engines": 2, "partitions": 64},
    {"rebalance_s": 1.0, "design": "dual"},
    {"rebalance_s": 1.0, "design": "shrd", "engines": 2},
    {"directory": ""},
    {"directory": "etcd2://10.0.0.9:2379/mica"},
]

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"engines": 0}, f"--engines 0 is not 1 to {ENGINES_MAX}"),
    ({"engines": ENGINES_MAX + 1}, f"--engines {ENGINES_MAX + 1} is not 1 to {ENGINES_MAX}"),
    (
        {"design": "dual", "engines": ENGINES_MAX // 2 + 1},
        f"--engines {ENGINES_MAX // 2 + 1} is not 1 to {ENGINES_MAX // 2}",
    ),
    ({"port": -1}, "--port -1 is not 1 to 65535: choose a UDP port"),
    ({"port": 0}, "--port 0 is not 1 to 65535: choose a UDP port"),
    ({"port": 65536}, "--port 65536 is not 1 to 65535"),
    ({"port": 65533, "design": "shrd", "engines": 2}, "--port 65533 is not 1 to 65532"),
    (
        {"engine_cpus": (FOREIGN_CPU,)},
        f"--engine-cpus: this process may not use cores {FOREIGN_CPU}",
    ),
    ({"dpu_cpus": (FOREIGN_CPU,)}, f"--dpu-cpus: this process may not use cores {FOREIGN_CPU}"),
    ({"rx_descriptors": 32}, "--rx-descriptors 32 is not"),
    ({"rx_descriptors": 63}, "--rx-descriptors 63 is not"),
    ({"rx_descriptors": 65}, "--rx-descriptors 65 is not"),
    ({"rx_descriptors": 8191}, "--rx-descriptors 8191 is not"),
    ({"rx_descriptors": 8193}, "--rx-descriptors 8193 is not"),
    ({"rx_descriptors": 16384}, "--rx-descriptors 16384 is not"),
    ({"host_share": 1.0}, "--host-share 1 is not 0 to below 1"),
    ({"host_share": -0.1}, "--host-share -0.1 is not"),
    ({"host_share": float("nan")}, "--host-share nan is not"),
    ({"profile": "bf2", "transport": "ringbuf"}, "--transport ring"),
    ({"profile": "bf2", "transport": "af_xdp"}, "--transport ring"),
    ({"profile": "bf3", "design": "dual"}, "cannot run design dual"),
    ({"transport": "ringbuf", "transfer": "request"}, "--transfer batch"),
    ({"transport": "af_xdp", "transfer": "request"}, "--transfer batch"),
    ({"transport": "af_xdp", "respond": "wait"}, "leave out --respond wait"),
    ({"transport": "af_xdp", "respond": "pipeline"}, "leave out --respond pipeline"),
    ({"transport": "af_xdp", "respond": "sender"}, "leave out --respond sender"),
    ({"design": "fast"}, "no design 'fast'"),
    ({"profile": "bf9"}, "no profile 'bf9'"),
    ({"items": 0}, "--items 0 is not 1 to"),
    ({"items": ITEMS_MAX + 1}, f"--items {ITEMS_MAX + 1}"),
    ({"log_bytes": 1}, f"--log-bytes 1 is not {LOG_BYTES_MIN} to"),
    (
        {"log_bytes": LOG_BYTES_MIN - 1},
        f"--log-bytes {LOG_BYTES_MIN - 1} is not {LOG_BYTES_MIN} to",
    ),
    ({"log_bytes": 64 * LOG_BYTES_MIN - 1, "design": "dual"}, "for each of 64 partitions"),
    ({"move_to_head": float("inf")}, "--move-to-head inf is not 0 to 1"),
    ({"flush_after_us": float("inf")}, "--flush-after-us inf is not 1 to 1000000 microseconds"),
    ({"log_bytes": -1}, "--log-bytes -1"),
    ({"log_bytes": LOG_BYTES_MAX + 1}, f"--log-bytes {LOG_BYTES_MAX + 1}"),
    ({"rebalance_s": -1.0}, "--rebalance-s -1"),
    ({"rebalance_s": 3600.5}, "--rebalance-s 3600.5"),
    ({"rebalance_s": 1.0}, "design lat has 1 of them here: use more --engines"),
    ({"rebalance_s": 1.0, "partitions": 64}, "design lat has 1 of them here: use more --engines"),
    ({"rebalance_s": 1.0, "engines": 2}, "use --partitions 64"),
    ({"rebalance_s": 1.0, "engines": 2, "partitions": 2}, "use --partitions 64"),
    ({"rebalance_s": 1.0, "design": "shrd"}, "design shrd has 1 of them here"),
    (
        {"rebalance_s": 1.0, "design": "dpu-only", "engines": 2, "partitions": 64},
        "design dpu-only has 0 of them here: use another design",
    ),
    ({"directory": "nonsense"}, "'nonsense' is no directory"),
    ({"depth": -1}, "--depth -1"),
    ({"depth": abi.KV_PIPELINE_MAX + 1}, f"--depth {abi.KV_PIPELINE_MAX + 1}"),
]


@pytest.mark.parametrize("settings", FINE, ids=str)
def test_settings_that_work(settings: dict[str, Any]) -> None:
    validation.check(ServerConfig(**settings))


@pytest.mark.parametrize(("settings", "sentence"), REFUSED, ids=str)
def test_settings_that_cannot_work(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        validation.check(ServerConfig(**settings))
    assert sentence in str(refused.value)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_design_goes_with_every_way_to_the_host(
    design: str, frames: str, transport: str
) -> None:
    choices: dict[str, Any] = {"frames": frames, "transport": transport}
    config = ServerConfig(design=design, **choices)
    if frames in FRAMES_PAST_XDP and len(DESIGNS[design].communication) > 1:
        with pytest.raises(UsageError, match="has a door in XDP too"):
            validation.check(config)
        return
    validation.check(config)
    assert config.endpoint_count() == len(config.placement().engines)
    assert set(config.owners()) == set(range(config.endpoint_count()))


@pytest.mark.parametrize("respond", RESPOND_WAYS)
def test_depths_are_in_order(respond: str) -> None:
    least, most = ServerConfig(respond=respond, depth=5).depths()  # type: ignore[arg-type]
    assert 0 <= least <= most <= 5


@pytest.mark.parametrize(
    ("design", "engines", "partitions", "parts"),
    [
        ("lat", 4, 0, 4),
        ("dual", 2, 0, 64),
        ("cpu-only", 3, 0, 3),
        ("shrd", 2, 0, 64),
        ("lat", 2, 7, 7),
    ],
)
def test_items_and_log_are_shared_by_the_partitions(
    design: str, engines: int, partitions: int, parts: int
) -> None:
    """Each gets its share plus a margin for uneven hashing, but never more than the whole."""
    items, log_bytes = 10**6 + 1, 1 << 24
    config = ServerConfig(
        design=design, engines=engines, items=items, log_bytes=log_bytes, partitions=partitions
    )
    validation.check(config)
    options = sizing.partition_options(config)
    assert config.partition_count() == len(config.owners()) == parts
    assert items / parts < options.item_count < min(items / parts * 1.1, items)
    ratio = options.item_count / (items / parts)
    assert options.log_bytes == pytest.approx(log_bytes / parts * ratio, rel=1e-4)


def test_one_partition_gets_exactly_what_was_asked_for() -> None:
    options = sizing.partition_options(ServerConfig(items=1000, log_bytes=1 << 20))
    assert (options.item_count, options.log_bytes) == (1000, 1 << 20)


def test_192_mi_items_of_8_8_bytes_fit_into_12_gib() -> None:
    config = ServerConfig(items=192 << 20)
    assert 11 * sizing.GIB < sizing.store_bytes(config) < 12 * sizing.GIB
    inline = ServerConfig(items=192 << 20, store="inline")
    assert 7 * sizing.GIB < sizing.store_bytes(inline) <= 40 * inline.items


def test_an_inline_store_in_xdp_takes_as_much_memory_as_the_host_s() -> None:
    """Both have the same lines; XDP's log and index are rounded up."""
    for items in (1, 14, 15, 1 << 20, 100 << 20):
        stores = [
            sizing.store_bytes(ServerConfig(design=design, items=items, store="inline"))
            for design in ("lat", "dpu-only")
        ]
        slack = (64 << 20) // abi.KV_SEGMENT_BYTES * abi.KV_SEGMENT_SLACK
        assert stores[0] <= stores[1] <= 2 * max(stores[0] - items * 36, 0) + items * 37 + slack


MOST_INLINE_ITEMS = 234_881_024
"""Items for which a store in XDP has 2^27 lines."""


def test_the_most_items_of_an_inline_store_in_xdp() -> None:
    config = ServerConfig(design="dpu-only", items=MOST_INLINE_ITEMS, store="inline")
    assert sizing.dpu_store_sizes(config).short_lines == 1 << 27
    config = ServerConfig(design="dpu-only", items=MOST_INLINE_ITEMS + 1, store="inline")
    with pytest.raises(UsageError, match=f"{MOST_INLINE_ITEMS} items"):
        sizing.dpu_store_sizes(config)


@pytest.mark.parametrize(
    ("settings", "access"),
    [
        ({"design": "lat"}, "erew"),
        ({"design": "dual"}, "crcw"),
        ({"design": "dual", "access": "erew"}, "erew"),
        ({"design": "lat", "access": "crew"}, "crew"),
        ({"design": "dpu-only", "access": "crcw"}, "crcw"),
    ],
)
def test_access_modes(settings: dict[str, Any], access: str) -> None:
    config = ServerConfig(**settings)
    validation.check(config)
    assert config.access_mode() == access


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"design": "shrd", "access": "crew"}, "--access erew"),
        ({"design": "dpu-only", "store": "lossless"}, "--store cache"),
        ({"design": "shrd", "store": "lossless"}, "--store cache"),
        ({"engines": 3, "partitions": 2}, "3 (one for each engine) to 256"),
        ({"partitions": 257}, "to 256"),
        ({"move_to_head": 1.01}, "0 to 1"),
        ({"move_to_head": -0.01}, "0 to 1"),
        ({"rebalance_s": 3601.0}, "0 to 3600"),
    ],
)
def test_what_a_store_cannot_be(settings: dict[str, Any], advice: str) -> None:
    with pytest.raises(UsageError, match=re.escape(advice)):
        validation.check(ServerConfig(**settings))


@pytest.mark.parametrize("settings", [{"partitions": 256}, {"move_to_head": 1.0}])
def test_what_a_store_may_just_be(settings: dict[str, Any]) -> None:
    validation.check(ServerConfig(**settings))
