# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Lines and cells that tables and pictures share."""

from dpukv_xdp.bench.limits import Result


def common_line(result: Result) -> str:
    """Return the line that all runs of a table share: whose results they are, and the load."""
    whose = f"design {result['design']}" if result["design"] else f"server {result['target']}"
    if result["emulation"]:
        whose = f"{whose} ({result['emulation']})"
    return f"{whose}, {load_line(result)}"


def load_line(result: Result) -> str:
    """Return a run's load in two lines."""
    loop = f"{result['rate']:g} requests/s" if result["rate"] else f"window {result['window']}"
    store = result.get("store", "cache")
    kind = "" if store == "cache" else f", {store} store"
    return (
        f"{result['keys']:,} {result['distribution']} keys of {result['key_size']} and "
        f"values of {result['value_size']} bytes{kind},\n"
        f"requests per packet {result['requests_per_packet']}, {loop}"
    )


def short_number(number: float) -> str:
    """Return a number with one decimal, or without any from 1000 on."""
    return f"{number:.1f}" if number < 1000 else f"{number:.0f}"
