# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A server's settings: every limit at its edge, and what does not go together."""

import os
from typing import Any

import pytest

from dpukv_xdp import abi
from dpukv_xdp.config import (
    FRAMES,
    ITEMS_MAX,
    LOG_BYTES_MAX,
    RESPOND_WAYS,
    TRANSPORTS,
    ServerConfig,
)
from dpukv_xdp.designs import DESIGNS
from dpukv_xdp.errors import UsageError

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
    {"port": 0},
    {"port": 1},
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
    {"log_bytes": LOG_BYTES_MAX - 1},
    {"log_bytes": LOG_BYTES_MAX},
    {"depth": 0},
    {"depth": abi.KV_PIPELINE_MAX - 1},
    {"depth": abi.KV_PIPELINE_MAX},
]

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"engines": 0}, f"0 engines are not 1 to {ENGINES_MAX}"),
    ({"engines": ENGINES_MAX + 1}, f"{ENGINES_MAX + 1} engines are not 1 to {ENGINES_MAX}"),
    (
        {"design": "dual", "engines": ENGINES_MAX // 2 + 1},
        f"{ENGINES_MAX // 2 + 1} engines are not 1 to {ENGINES_MAX // 2}",
    ),
    ({"port": -1}, "port -1 is not 0 to 65535"),
    ({"port": 65536}, "port 65536 is not 0 to 65535"),
    ({"port": 65533, "design": "shrd", "engines": 2}, "port 65533 is not 0 to 65532"),
    ({"engine_cpus": (FOREIGN_CPU,)}, "engine cores"),
    ({"dpu_cpus": (FOREIGN_CPU,)}, "dpu cores"),
    ({"rx_descriptors": 32}, "32 receive descriptors"),
    ({"rx_descriptors": 63}, "63 receive descriptors"),
    ({"rx_descriptors": 65}, "65 receive descriptors"),
    ({"rx_descriptors": 8191}, "8191 receive descriptors"),
    ({"rx_descriptors": 8193}, "8193 receive descriptors"),
    ({"rx_descriptors": 16384}, "16384 receive descriptors"),
    ({"host_share": 1.0}, "host share of 1"),
    ({"host_share": -0.1}, "host share of -0.1"),
    ({"host_share": float("nan")}, "host share of nan"),
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
    ({"items": 0}, "0 items"),
    ({"items": ITEMS_MAX + 1}, f"{ITEMS_MAX + 1} items"),
    ({"log_bytes": -1}, "log of -1 bytes"),
    ({"log_bytes": LOG_BYTES_MAX + 1}, f"log of {LOG_BYTES_MAX + 1} bytes"),
    ({"depth": -1}, "depth of -1"),
    ({"depth": abi.KV_PIPELINE_MAX + 1}, f"depth of {abi.KV_PIPELINE_MAX + 1}"),
]


@pytest.mark.parametrize("settings", FINE, ids=str)
def test_settings_that_work(settings: dict[str, Any]) -> None:
    ServerConfig(**settings).check()


@pytest.mark.parametrize(("settings", "sentence"), REFUSED, ids=str)
def test_settings_that_cannot_work(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        ServerConfig(**settings).check()
    assert sentence in str(refused.value)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_design_goes_with_every_way_to_the_host(
    design: str, frames: str, transport: str
) -> None:
    choices: dict[str, Any] = {"frames": frames, "transport": transport}
    config = ServerConfig(design=design, **choices)
    config.check()
    assert config.endpoint_count() == len(config.placement().engines)
    assert set(config.owners()) == set(range(config.endpoint_count()))


@pytest.mark.parametrize("respond", RESPOND_WAYS)
def test_depths_are_in_order(respond: str) -> None:
    least, most = ServerConfig(respond=respond, depth=5).depths()  # type: ignore[arg-type]
    assert 0 <= least <= most <= 5


@pytest.mark.parametrize(
    ("design", "engines", "stores", "share"),
    [("lat", 4, 4, 4), ("dual", 2, 1, 1), ("cpu-only", 3, 3, 3), ("shrd", 2, 4, 2)],
)
def test_items_and_log_are_shared_by_the_stores(
    design: str, engines: int, stores: int, share: int
) -> None:
    """With two stores either may get nearly all keys of its share."""
    config = ServerConfig(design=design, engines=engines, items=10**6 + 1, log_bytes=1 << 24)
    assert config.store_count() == stores
    assert config.items_per_store() == -(-(10**6 + 1) // share)
    assert config.log_bytes_per_store() == -(-(1 << 24) // share)
