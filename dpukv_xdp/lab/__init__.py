# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Two network namespaces and a veth pair to try a server in."""
