# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Options that several commands share; each default is written once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dpukv_xdp.topology import ranges
from dpukv_xdp.topology.schema import (
    ACCESSES,
    FRAMES,
    PREPARES,
    RESPOND_WAYS,
    SENDS,
    SOCKET_MODES,
    STORE_KINDS,
    TRANSFERS,
    TRANSPORTS,
    WHEN_KILLED,
    WHEN_SILENT,
)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Number(click.ParamType):  # type: ignore[type-arg] # generic from click 8.4 on only
    """A number within its range in the table of ranges, which also holds for settings in a file."""

    def __init__(self, name: str) -> None:
        """`name` is the range's name in the table."""
        self.range_name = name
        self.range = ranges.RANGES[name]
        self.name = "integer" if self.range.is_whole else "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | float:
        """Return the number. Raises click.BadParameter for other text, OptionError out of range."""
        kind = int if self.range.is_whole else float
        try:
            number = kind(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a valid {self.name}.", param, ctx)
        flag = param.opts[0] if param is not None and param.opts else None
        ranges.check(self.range_name, number, flag)
        return number


def together(*options: Decorator) -> Decorator:
    """Return a decorator that applies all of these options, in the order of the help text."""

    def apply(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


json_option = click.option(
    "--json",
    "json_path",
    metavar="FILE",
    help="Write the result as JSON to FILE; - is standard output, which then gets nothing else.",
)

server_options = together(
    click.option(
        "--config", "config_path", type=click.Path(path_type=Path), help="Settings in TOML."
    ),
    click.option("--design", help="Places of the engines: see `dpukv designs` (lat)."),
    click.option(
        "--port", type=Number("port"), help="UDP port of engine 0; engine e has PORT + e (9800)."
    ),
    click.option(
        "--engines",
        type=Number("engines"),
        help="Engines behind each of the design's doors, a UDP port each (1).",
    ),
    click.option(
        "--engine-cpus", help="Host cores, such as 0,1, assigned in turn (all but the last one)."
    ),
    click.option("--dpu-cpus", help="Cores for the receive queues, as NAPI threads (softirqs)."),
    click.option(
        "--log-bytes", type=Number("log_bytes"), help="Bytes of all circular logs together."
    ),
    click.option(
        "--partitions",
        type=Number("partitions"),
        help="Parts of the key space (one for each engine; 64).",
    ),
    click.option(
        "--access",
        type=click.Choice(ACCESSES),
        help="Who may use a partition: its owner, all to read, or all (auto: mostly erew).",
    ),
    click.option(
        "--store",
        type=click.Choice(STORE_KINDS),
        help="cache evicts, lossless refuses SETs when full, inline is best for 8/8 bytes (cache).",
    ),
    click.option(
        "--move-to-head",
        type=Number("move_to_head"),
        help="A GET refreshes items older than this share (0.5).",
    ),
    click.option(
        "--allow-reset/--no-allow-reset", default=None, help="Accept RESET from the network (no)."
    ),
    click.option(
        "--huge-pages/--no-huge-pages", default=None, help="Use 2 MiB pages where available (yes)."
    ),
    click.option(
        "--respond",
        type=click.Choice(RESPOND_WAYS),
        help="Way of responses: waited for, parked, as the load suggests (adaptive), or all by the "
        "sender.",
    ),
    click.option(
        "--transport",
        type=click.Choice(TRANSPORTS),
        help="Way of requests from XDP to the host (ring: mapped queue pairs).",
    ),
    click.option(
        "--frames", type=click.Choice(FRAMES), help="Way of whole frames to a host door (af_xdp)."
    ),
    click.option(
        "--dpdk-device",
        help="With --frames dpdk: a NIC's PCI address, not a packet socket on the interface.",
    ),
    click.option(
        "--socket-mode", type=click.Choice(SOCKET_MODES), help="Mode of AF_XDP sockets (auto)."
    ),
    click.option(
        "--rx-descriptors",
        type=Number("rx_descriptors"),
        help="Per AF_XDP socket or DPDK queue (2048).",
    ),
    click.option(
        "--host-share",
        type=Number("host_share"),
        help="Share of the keys behind the host's door (bench: by measured speed; else half).",
    ),
    click.option(
        "--transfer", type=click.Choice(TRANSFERS), help="Unit of a hand-over to the host (batch)."
    ),
    click.option(
        "--prepare",
        type=click.Choice(PREPARES),
        help="Prepare responses while the host works (overlap).",
    ),
    click.option("--send", type=click.Choice(SENDS), help="When a host door sends (after-parse)."),
    click.option("--profile", help="local, or emulate a DPU: bf2, bf3 (local)."),
    click.option("--depth", type=Number("depth"), help="Most batches that stay parked (24)."),
    click.option(
        "--flush-after-us",
        type=Number("flush_after_us"),
        help="Time until a parked response is flushed (30).",
    ),
    click.option(
        "--silent-after-ms",
        type=Number("silent_after_ms"),
        help="Time without a heartbeat that makes an engine count as dead (80).",
    ),
    click.option(
        "--when-killed",
        type=click.Choice(WHEN_KILLED),
        help="Have the kernel detach the XDP programs of a killed server, or keep them (detach).",
    ),
    click.option(
        "--when-silent",
        type=click.Choice(WHEN_SILENT),
        help="Answer requests for a dead engine with REJECTED, or pass their frames on (reject).",
    ),
)

load_options = together(
    click.option(
        "--keys", type=Number("keys"), default=1 << 20, show_default=True, help="Keys to store."
    ),
    click.option(
        "--key-size", type=Number("key_size"), default=8, show_default=True, help="Bytes in a key."
    ),
    click.option(
        "--value-size",
        type=Number("value_size"),
        default=8,
        show_default=True,
        help="Bytes in a value.",
    ),
    click.option(
        "--dist",
        "distribution",
        default="uniform",
        show_default=True,
        help="uniform or zipf (0.99).",
    ),
    click.option(
        "--seed",
        type=Number("seed"),
        default=1,
        show_default=True,
        help="Seed of keys and operations.",
    ),
)


def output_option(default: str, help_text: str) -> Decorator:
    """Return the option --output for a picture, with the name of its default file."""
    return click.option(
        "--output",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path(default),
        show_default=True,
        help=help_text,
    )


restart_option = click.option(
    "--restart/--no-restart",
    default=None,
    help="Start the server again, with its stores, when it has been killed (no).",
)


def directory_option(default: str) -> Decorator:
    """Return the option --directory of a server, whose help text names its default."""
    return click.option(
        "--directory",
        metavar="URL",
        help=f"Directory to publish in: file:DIR, etcd2://HOST:PORT/PREFIX, etcd3://... "
        f"({default}); empty for none.",
    )


client_options = together(
    click.option("--server", "server_address", metavar="HOST:PORT", help="The server to ask."),
    click.option(
        "--directory",
        metavar="URL",
        help="Ask the servers that are published there: file:DIR, etcd2://HOST:PORT/PREFIX, "
        "etcd3://...",
    ),
    click.option(
        "--lab", "lab_id", help="Ask the server of this lab (default: the one that is up)."
    ),
    click.option(
        "--engines",
        type=Number("client_engines"),
        default=1,
        show_default=True,
        help="The server's engines.",
    ),
    click.option(
        "--timeout",
        type=Number("timeout"),
        default=0.2,
        show_default=True,
        help="Seconds per attempt.",
    ),
    json_option,
)
