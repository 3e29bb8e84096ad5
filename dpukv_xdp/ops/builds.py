# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""All builds of our BPF programs: servers, the load generator, transfer measurements.

`dpukv doctor`, `tools/test --kernels` and the verifier's budget load them.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.bench import transfer
from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.loader import Build
from dpukv_xdp.lab import lab
from dpukv_xdp.load import loadgen
from dpukv_xdp.server.wiring import Wiring
from dpukv_xdp.topology import applies, validation
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.profiles import PROFILES
from dpukv_xdp.topology.schema import (
    FRAMES,
    PREPARES,
    RESPOND_WAYS,
    TRANSFERS,
    TRANSPORTS,
    WHEN_SILENT,
    ServerConfig,
)
from dpukv_xdp.wire import abi

CPUS = 2
"""Cores of the machine that the listed builds assume; a running server uses its machine's number.
"""
LINK = nic.Interface(
    name="veth-server",
    index=0,
    mac="02:00:00:00:00:01",
    mtu=abi.KV_FRAME_MAX - abi.KV_ETH_BYTES,
    is_up=True,
    address=lab.SERVER_ADDRESS,
    programs=(),
)
"""The interface that the listed builds assume: a lab's."""
SMALL_FRAME_BYTES = 1500
"""Longest prepared frame of the load generator's smaller build."""


def usual_builds() -> list[Build]:
    """Return the builds of the commands' defaults: each compared design, and the load generator."""
    servers = [
        _server_build(design.name, ServerConfig(design=design.name))
        for design in DESIGNS.values()
        if design.is_compared
    ]
    return [*servers, *_load_builds()]


def every_build() -> list[Build]:
    """Return all distinct builds: every design with each value of each setting that affects the
    programs, the load generator's, and those of the transfer measurement.
    """
    different: dict[str, Build] = {}
    for build in _server_builds():
        different.setdefault(f"{build.programs} {build.tail_calls} {build.settings}", build)
    return [*different.values(), *_load_builds(), transfer.build()]


def _server_builds() -> Iterator[Build]:
    """Yield each design with its defaults, then with one or two settings changed, where the
    combination is valid.
    """
    changes: list[dict[str, Any]] = [
        {},
        *({"transport": way, "respond": out} for way in TRANSPORTS for out in RESPOND_WAYS),
        *({"frames": way, "respond": out} for way in FRAMES for out in RESPOND_WAYS),
        *({"transfer": transfer} for transfer in TRANSFERS),
        *({"prepare": prepare} for prepare in PREPARES),
        *({"profile": profile} for profile in PROFILES),
        *({"engines": 2, "profile": profile} for profile in PROFILES),
        {"engines": 2, "access": "crcw"},
        *({"when_silent": what} for what in WHEN_SILENT),
        {"store": "inline"},
        *({"store": "inline", "engines": 2, "profile": profile} for profile in PROFILES),
    ]
    for design in DESIGNS:
        for change in changes:
            name = " ".join([design, *(f"{key}={value}" for key, value in change.items())])
            config = ServerConfig(design=design, **change)
            if all(applies.has_effect(setting, config) for setting in config.changed()):
                with suppress(UsageError):  # an invalid combination of settings
                    yield _server_build(name, config)


def _server_build(name: str, config: ServerConfig) -> Build:
    validation.check(config)
    return Wiring.of(config).build(name, config, CPUS, LINK)


def _load_builds() -> list[Build]:
    return [
        loadgen.build("load", port=ServerConfig().port, engines=1),
        loadgen.build(
            "load small", port=ServerConfig().port, engines=1, frame_bytes_max=SMALL_FRAME_BYTES
        ),
    ]
