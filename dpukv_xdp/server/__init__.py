# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A running server, and the service around it: directory entry, control socket, rebalancer."""
