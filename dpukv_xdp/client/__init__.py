# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The Python client: no privilege, no bcc and no pyroute2 needed."""

from dpukv_xdp.client.client import Client

__all__ = ["Client"]
