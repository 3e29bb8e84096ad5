# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Options of the command line as ServerConfig and BenchOptions."""

import os
from typing import Any

import click

from dpukv_xdp.base.errors import UsageError

MTU_MIN = 68
"""Least MTU of IPv4 (RFC 791)."""


def settings_of(given: dict[str, Any], *, own_server: bool) -> tuple[Any, Any]:
    """Return the command line's options as ServerConfig and BenchOptions. Raises UsageError."""
    from dataclasses import fields

    from dpukv_xdp.bench.options import BenchOptions, replace_config

    names = {field.name for field in fields(BenchOptions)}
    options = BenchOptions(**{name: value for name, value in given.items() if name in names})
    check_mtu(options.mtu)
    options.check()
    config = server_config({name: value for name, value in given.items() if name not in names})
    if own_server:
        replace_config(config, options).check_memory()
    return config, options


def numbers_of(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as 2,1024. Raises UsageError."""
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list of numbers such as 2,1024") from error


def check_mtu(mtu: int) -> None:
    """Raise UsageError for an MTU that no batch can use."""
    from dpukv_xdp.wire import abi

    most = abi.KV_FRAME_MAX - abi.offset("kv_packet_header", "ip_version_ihl")
    if not MTU_MIN <= mtu <= most:
        raise UsageError(
            f"an MTU of {mtu} bytes is not {MTU_MIN} to {most}, the longest that a batch can use"
        )


def server_config(given: dict[str, Any], **defaults: Any) -> Any:
    """Return ServerConfig from --config's file and the options in `given`. Raises UsageError."""
    from dpukv_xdp.topology.config import load_config

    path = given.pop("config_path")
    for name in ("engine_cpus", "dpu_cpus"):
        cpus = given.pop(name)
        if cpus is not None:
            try:
                given[name] = [int(cpu) for cpu in cpus.split(",")]
            except ValueError as error:
                raise UsageError(f"{cpus!r} is not a list of cores such as 0,1") from error
    config = load_config(path, given, **defaults)
    cores = os.sched_getaffinity(0)
    if set(config.placement().host_cpus) == cores:
        click.echo(
            f"dpukv: engines on all of {len(cores)} cores poll all the time and leave hardly "
            f"anything to the XDP programs and to you: expect everything to crawl",
            err=True,
        )
    return config
