# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The store inside XDP: its sizes as -D settings, and its counters."""

from dpukv_xdp.config import ServerConfig


def settings(config: ServerConfig) -> dict[str, int]:
    """The -D settings of bpf/store.h."""
    raise NotImplementedError(config)
