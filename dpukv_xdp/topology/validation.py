# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Whether a server's settings can work: their ranges, and which exclude each other."""

import os
import re

import msgspec

from dpukv_xdp.base.directory_url import parse_directory_url
from dpukv_xdp.base.errors import OptionError
from dpukv_xdp.topology import ranges
from dpukv_xdp.topology.designs import Design
from dpukv_xdp.topology.schema import FRAMES_PAST_XDP, ServerConfig
from dpukv_xdp.wire import abi

PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def check(config: ServerConfig) -> None:
    """Raise UsageError for settings that cannot work, before anything is built.

    An error about one setting is an OptionError.
    """
    design = config.row()
    profile = config.profile_row()
    profile.check(design)
    for name, value in msgspec.structs.asdict(config).items():
        if name in ranges.SETTINGS:
            ranges.check(name, value)
    _check_cores_and_ports(config, design)
    _check_store(config, design)
    _check_frames(config, design)
    _check_rebalancing(config, design)
    _check_restart(config)
    if config.directory:
        parse_directory_url(config.directory)
    _require(
        not profile.is_emulated or config.transport == "ring",
        "transport",
        f"--transport {config.transport} does not go with --profile {profile.name}, which emulates "
        f"a bus on the mapped ring only: use --transport ring",
    )
    _require(
        config.transport == "ring" or config.transfer == "batch",
        "transfer",
        f"--transfer {config.transfer} does not go with --transport {config.transport}, which "
        f"hands over whole batches: use --transfer batch",
    )
    _require(
        config.transport != "af_xdp" or config.respond == "adaptive",
        "respond",
        f"--respond {config.respond} does not go with --transport af_xdp, whose responses leave by "
        f"AF_XDP: leave out --respond {config.respond}",
    )


def _check_cores_and_ports(config: ServerConfig, design: Design) -> None:
    doors = len(design.communication)
    engines_max = abi.KV_ENGINES_MAX // doors
    _require(
        config.engines <= engines_max,
        "engines",
        f"--engines {config.engines} is not 1 to {engines_max} for the {doors} doors of design "
        f"{design.name}: choose a number in that range",
    )
    port_max = ranges.SETTINGS["port"].most - config.endpoint_count() + 1
    _require(
        config.port <= port_max,
        "port",
        f"--port {config.port} is not 1 to {port_max:g}, and {config.endpoint_count()} engines "
        f"need a port each from there on: choose a port in that range",
    )
    usable = os.sched_getaffinity(0)
    for name, wanted in (("engine_cpus", config.engine_cpus), ("dpu_cpus", config.dpu_cpus)):
        strangers = sorted(set(wanted) - usable)
        _require(
            not strangers,
            name,
            f"{ranges.flag_of(name)}: this process may not use cores "
            f"{', '.join(map(str, strangers))}: choose among the cores "
            f"{', '.join(map(str, sorted(usable)))}",
        )
    sizes = ranges.RX_DESCRIPTORS
    _require(
        config.rx_descriptors in sizes,
        "rx_descriptors",
        f"--rx-descriptors {config.rx_descriptors} is not a power of two from {sizes[0]} to "
        f"{sizes[-1]}: choose one of {', '.join(map(str, sizes))}",
    )


def _check_store(config: ServerConfig, design: Design) -> None:
    least = config.endpoint_count()
    _require(
        config.partitions == 0 or least <= config.partitions,
        "partitions",
        f"--partitions {config.partitions} is not {least} (one for each engine) to "
        f"{abi.KV_PARTITIONS_MAX}: choose a number in that range",
    )
    log_bytes_min = config.partition_count() * ranges.LOG_BYTES_MIN
    _require(
        config.log_bytes == 0 or config.log_bytes >= log_bytes_min,
        "log_bytes",
        f"--log-bytes {config.log_bytes} is less than {log_bytes_min}, {ranges.LOG_BYTES_MIN} for "
        f"each of {config.partition_count()} partitions: use more bytes or fewer --partitions",
    )
    _require(
        config.access_mode() == "erew" or len(design.processing) == 1,
        "access",
        f"--access {config.access} does not go with design {design.name}, whose shares of the keys "
        f"are in separate memories that only their owners reach: use --access erew",
    )
    _require(
        config.store != "lossless" or "dpu" not in design.processing,
        "store",
        f"--store {config.store} does not go with design {design.name}, which keeps items in BPF "
        f"maps, and those may evict: use --store cache or inline",
    )


def _check_restart(config: ServerConfig) -> None:
    _require(
        not config.restart or config.when_killed == "detach",
        "restart",
        "--restart attaches the next server's programs, so a killed one's must not stay: leave out "
        "--when-killed keep, or --restart",
    )


def _check_rebalancing(config: ServerConfig, design: Design) -> None:
    if not config.rebalance_s:
        return
    movers = sum(place.processing == "host" for place in config.placement().engines)
    way_out = "more --engines" if "host" in design.processing else "another design"
    _require(
        movers > 1,
        "rebalance_s",
        f"--rebalance-s moves partitions between engines that process on the host, and design "
        f"{design.name} has {movers} of them here: use {way_out}, or leave out --rebalance-s",
    )
    _require(
        config.partition_count() > config.endpoint_count(),
        "rebalance_s",
        f"--rebalance-s has nothing to move with {config.partition_count()} partitions, one for "
        f"each engine: use --partitions 64, or leave out --rebalance-s",
    )


def _check_frames(config: ServerConfig, design: Design) -> None:
    _require(
        not design.has_door("host")
        or not design.has_door("dpu")
        or config.frames not in FRAMES_PAST_XDP,
        "frames",
        f"--frames {config.frames} does not go with design {design.name}, which has a door in XDP "
        f"too that takes all frames of its ports: use --frames af_xdp or ring, or design cpu-only "
        f"with {config.frames}",
    )
    _require(
        not config.dpdk_device or PCI_ADDRESS.fullmatch(config.dpdk_device) is not None,
        "dpdk_device",
        f"--dpdk-device {config.dpdk_device!r} is no PCI address: give one such as 0000:03:00.0",
    )


def _require(condition: bool, option: str, sentence: str) -> None:
    if not condition:
        raise OptionError(option, sentence)
