# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The table of which option goes with what: an option that was given and cannot have an effect is
refused.

`validation` refuses settings that cannot work; this table refuses those that would be ignored. An
option at its default is never refused.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpukv_xdp.base.errors import OptionError
from dpukv_xdp.topology.designs import DESIGNS, Design, find_design
from dpukv_xdp.topology.schema import FRAMES_PAST_XDP, ServerConfig, option_words

Values = Mapping[str, Any]
"""All settings of the server and options of the command, by name."""
MEASURING = ("bench", "demo")
"""Commands that build a server of their own and size its store for their keys."""
MODEL_POINT = ("design", "dpu_cores", "host_cores", "requests_per_packet", "window", "rate", "over")
MODEL_COSTS = ("workload", "write_costs")
MEASUREMENT = (
    *("peers", "ours", "workload", "keys", "key_size", "value_size", "distribution", "seed"),
    *("requests_per_packet", "window", "server_cores", "repeats", "seconds"),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """The condition under which some options have an effect."""

    options: tuple[str, ...]
    """Names of ServerConfig's fields, or of a command's parameters."""
    applies: Callable[[Values], bool]
    """Whether they have an effect beside the other values."""
    needs: str
    """What they act on, as the end of a sentence that begins with "it"."""
    commands: tuple[str, ...] = ()
    """Commands whose options these are; empty for settings of a server in any command."""


def _design(values: Values) -> Design:
    return find_design(values["design"])


def _has_host_door(values: Values) -> bool:
    return _design(values).has_door("host")


def _hands_over(values: Values) -> bool:
    return _design(values).hands_over


def _parks(values: Values) -> bool:
    """Whether XDP parks batches: it does for engines that it shares mapped memory with."""
    by_records = _hands_over(values) and values["transport"] != "af_xdp"
    return by_records or (_has_host_door(values) and values["frames"] == "ring")


def _asks_host(values: Values) -> bool:
    """Whether XDP needs an engine on the host for some frames."""
    return _hands_over(values) or (
        _has_host_door(values) and values["frames"] not in FRAMES_PAST_XDP
    )


def _has_sockets(values: Values) -> bool:
    by_records = _hands_over(values) and values["transport"] == "af_xdp"
    return by_records or (_has_host_door(values) and values["frames"] == "af_xdp")


def _receives_on_host(values: Values) -> bool:
    """Whether frames wait in receive descriptors, or in a socket's buffer, of the host."""
    past_xdp = _has_host_door(values) and values["frames"] in FRAMES_PAST_XDP
    return _has_sockets(values) or past_xdp


def _has_own_server(values: Values) -> bool:
    """Whether the command measures a server that it starts itself."""
    return values.get("target") is None


def _shows_a_point(values: Values) -> bool:
    return not (values["figure12"] or values["fits"] or values["validate"])


def _reads_results(values: Values) -> bool:
    """Whether the costs are made for a workload, and not read as they are from a TOML file."""
    source = str(values["source"])
    return source in ("paper", "committed", "here") or source.endswith(".json")


FLOOR_IGNORES = (
    *("design", "port", "engines", "access", "allow_reset", "dpu_cpus", "respond", "transport"),
    *("frames", "dpdk_device", "socket_mode", "rx_descriptors", "host_share", "transfer"),
    *("prepare", "send", "profile", "depth", "flush_after_us", "move_to_head", "log_bytes"),
    *("silent_after_ms", "when_silent", "when_killed"),
    *("workload", "distribution", "requests_per_packet", "window", "rate", "stall", "seconds"),
    *("seed", "queues", "mtu"),
)
"""Settings and options of bench that change neither the store's size nor its core."""
NOT_A_POINT = "acts on points and sweeps, not on --figure12, --fits or --validate"

RULES = (
    # A server's settings
    Rule(
        ("engine_cpus",),
        lambda v: _design(v).has_native_threads,
        "places engines that run on host cores",
    ),
    Rule(
        ("dpu_cpus",),
        lambda v: not v["dpdk_device"],
        "places the receive queues of a kernel's interface, and DPDK drives the device itself",
    ),
    Rule(
        ("move_to_head",),
        lambda v: _design(v).has_native_threads and v["store"] != "lossless",
        "acts on a host's store of the kind cache or inline",
    ),
    Rule(
        ("huge_pages",),
        lambda v: _design(v).has_native_threads,
        "acts on stores in the host's memory",
    ),
    Rule(("respond", "flush_after_us"), _parks, "acts on requests that XDP hands to the host"),
    Rule(
        ("silent_after_ms", "when_silent"),
        _asks_host,
        "acts on frames for which XDP needs an engine on the host",
    ),
    Rule(
        ("depth",),
        lambda v: _parks(v) and v["respond"] in ("adaptive", "pipeline"),
        "acts on batches that stay parked, which --respond wait and sender leave none of",
    ),
    Rule(
        ("transport", "transfer", "prepare"),
        _hands_over,
        "acts on requests that XDP parses and the host processes",
    ),
    Rule(("frames",), _has_host_door, "is the way of whole frames to a door on the host"),
    Rule(
        ("dpdk_device",),
        lambda v: _has_host_door(v) and v["frames"] == "dpdk",
        "names a device for --frames dpdk",
    ),
    Rule(
        ("socket_mode",),
        _has_sockets,
        "is the mode of AF_XDP sockets, and neither --frames nor --transport uses one",
    ),
    Rule(
        ("rx_descriptors",),
        _receives_on_host,
        "sizes AF_XDP sockets, UDP sockets and DPDK queues, and none is used",
    ),
    Rule(
        ("send",),
        lambda v: _has_host_door(v) or _has_sockets(v),
        "acts on a communication engine on the host",
    ),
    Rule(
        ("host_share",),
        lambda v: len(_design(v).communication) > 1,
        "divides the keys between two doors",
    ),
    Rule(
        ("items",),
        lambda v: False,
        "is for `serve` and `lab up`: here --keys sizes the store",
        MEASURING,
    ),
    Rule(("rebalance_s",), lambda v: False, "is for `serve`: here no partition moves", MEASURING),
    Rule(("restart",), lambda v: False, "is for `serve` and `lab up`", MEASURING),
    # bench
    Rule(
        tuple(
            name
            for name in ServerConfig.__struct_fields__
            if name not in ("engines", "engine_cpus", "dpu_cpus", "directory")
        ),
        _has_own_server,
        "is a setting of a server that bench starts itself, not of --target's",
        ("bench",),
    ),
    Rule(
        ("engines",),
        lambda v: _has_own_server(v) or v["target_directory"] is None,
        "is the number of --target's engines, which --directory knows already",
        ("bench",),
    ),
    Rule(("queues",), _has_own_server, "builds a lab's link, and --target has none", ("bench",)),
    Rule(
        ("stall",),
        lambda v: _has_own_server(v) and _design(v).has_native_threads,
        "pauses the host cores of a server that bench starts itself",
        ("bench",),
    ),
    Rule(
        ("target_directory", "skip_load"),
        lambda v: not _has_own_server(v),
        "is for a server elsewhere: give its address with --target",
        ("bench",),
    ),
    Rule(
        ("output",),
        lambda v: v["compares_designs"] or v["key_counts"] is not None,
        "is the picture of --design all and of --key-counts",
        ("bench",),
    ),
    Rule(
        ("keys",),
        lambda v: v["key_counts"] is None,
        "is one number of keys, and --key-counts gives several",
        ("bench",),
    ),
    Rule(
        ("huge_pages",),
        lambda v: v["key_counts"] is None and not v["floor"],
        "chooses pages, and --key-counts and --floor measure on huge and on small ones",
        ("bench",),
    ),
    Rule(
        (*FLOOR_IGNORES, "output"),
        lambda v: not v["floor"],
        "acts on a server or its load, and --floor runs neither",
        ("bench",),
    ),
    # compare
    Rule(
        MEASUREMENT,
        lambda v: not v["import_only"],
        "acts on measurements, and --import-only makes none",
        ("compare",),
    ),
    # model and recommend
    Rule((*MODEL_POINT, *MODEL_COSTS), _shows_a_point, NOT_A_POINT, ("model",)),
    Rule(
        ("dpu", "source", "output"),
        lambda v: not (v["fits"] or v["validate"]),
        "acts on predictions, and --fits and --validate list parameters and errors",
        ("model",),
    ),
    Rule(
        ("seed",),
        lambda v: not v["fits"],
        "acts on simulations, and --fits lists parameters",
        ("model",),
    ),
    Rule(
        ("figure12",),
        lambda v: not (v["fits"] or v["validate"]),
        "excludes --fits and --validate",
        ("model",),
    ),
    Rule(("validate",), lambda v: not v["fits"], "excludes --fits", ("model",)),
    Rule(
        ("workload",),
        _reads_results,
        "chooses costs by workload, and --costs names a file with the costs of one",
        ("model", "recommend"),
    ),
    Rule(
        ("dpu_cores",),
        lambda v: _design(v).has_door("dpu") or "dpu" in _design(v).processing or v["forwards"],
        "counts a DPU's cores, and the hardware brings these frames to the host",
        ("model point",),
    ),
    Rule(
        ("host_cores",),
        lambda v: _design(v).has_native_threads,
        "counts host cores with engines",
        ("model point",),
    ),
    Rule(
        ("over",),
        lambda v: (
            v["over"] == "load"
            or (v["over"] == "host-cores" and _design(v).has_native_threads)
            or (v["over"] == "dpu-cores" and ("dpu" in _design(v).communication or v["forwards"]))
        ),
        "is a curve over cores of which the design has none",
        ("model point",),
    ),
    # reproduce
    Rule(
        ("smoke",),
        lambda v: not v["paper"],
        "excludes --paper: short runs, or long ones",
        ("reproduce",),
    ),
    Rule(
        ("output", "resume"),
        lambda v: not v["wants_list"],
        "acts on measured runs, and --list measures none",
        ("reproduce",),
    ),
    # Clients
    Rule(
        ("engines",),
        lambda v: v["server_address"] is not None,
        "describes the server of --server: a directory and a lab know theirs",
        ("get", "set", "add", "delete", "increment"),
    ),
    Rule(
        ("look",),
        lambda v: not v["moves"],
        "is the time to count requests, and --move moves regardless of the load",
        ("rebalance",),
    ),
)
"""One row for each condition; an option has an effect if all rows that name it agree."""


def has_effect(name: str, config: ServerConfig) -> bool:
    """Return whether a server's setting has an effect beside its other settings."""
    values = _settings(config)
    return all(rule.applies(values) for rule in RULES if not rule.commands and name in rule.options)


def check(
    command: str, given: Mapping[str, str], values: Values, designs: Collection[str] = ()
) -> None:
    """Raise OptionError for an option that was given and cannot have an effect.

    `given` has the text of each option as the user would type it. With several `designs`, an option
    must have an effect on at least one of them.
    """
    for rule in RULES:
        if rule.commands and command not in rule.commands:
            continue
        for name in rule.options:
            if name in given and not _applies_to_any(rule, values, designs):
                raise OptionError(name, _sentence(rule, given[name], values, designs))


def check_settings(
    command: str,
    config: ServerConfig,
    given: Mapping[str, str],
    values: Values,
    designs: Collection[str] = (),
) -> None:
    """Check the settings of a server that differ from their defaults, and the command's `given`
    options beside them; see check().
    """
    settings = _settings(config)
    texts = {
        name: " ".join(option_words(name, settings[name])) for name in sorted(config.changed())
    }
    check(command, {**given, **texts}, {**values, **settings}, designs or (config.design,))


def _settings(config: ServerConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


def _applies_to_any(rule: Rule, values: Values, designs: Collection[str]) -> bool:
    if not designs:
        return rule.applies(values)
    return any(rule.applies({**values, "design": design}) for design in designs)


def _sentence(rule: Rule, text: str, values: Values, designs: Collection[str]) -> str:
    others = _designs_with(rule, values) if designs else []
    where = f" with design {next(iter(designs))}" if others and len(designs) == 1 else ""
    cure = f", or use design {' or '.join(others)}" if others else ""
    return f"{text} has no effect{where}: it {rule.needs}; leave it out{cure}"


def _designs_with(rule: Rule, values: Values) -> Sequence[str]:
    """Return the compared designs for which the other values leave the option an effect."""
    return [
        design.name
        for design in DESIGNS.values()
        if design.is_compared and rule.applies({**values, "design": design.name})
    ]
