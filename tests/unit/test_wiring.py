# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A setting changes a server's programs if and only if it is said to have an effect on them."""

from typing import Any

import pytest

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.ops.builds import CPUS, LINK
from dpukv_xdp.server.wiring import Wiring
from dpukv_xdp.topology import applies, validation
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.schema import PREPARES, RESPOND_WAYS, TRANSFERS, TRANSPORTS, ServerConfig

CHOICES = {
    "transport": TRANSPORTS,
    "respond": RESPOND_WAYS,
    "transfer": TRANSFERS,
    "prepare": PREPARES,
    "depth": (0, 1),
}
FRAMES = ("af_xdp", "ring", "udp")


def programs_of(config: ServerConfig) -> tuple[Any, ...]:
    """Return everything that a server's compiled programs depend on."""
    validation.check(config)
    build = Wiring.of(config).build("", config, CPUS, LINK)
    return build.programs, build.tail_calls, dict(build.settings)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("design", DESIGNS)
def test_a_setting_changes_the_programs_if_it_has_an_effect(
    design: str, frames: str, name: str
) -> None:
    settings: dict[str, Any] = {"design": design, "frames": frames}
    usual = ServerConfig(**settings)
    for value in CHOICES[name]:
        config = ServerConfig(**settings, **{name: value})
        if value == getattr(usual, name):
            continue
        try:
            found = programs_of(config)
        except UsageError:  # no server has these settings together
            continue
        has_effect = applies.has_effect(name, config)
        assert (found != programs_of(usual)) == has_effect, config
