# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Two namespaces and a veth pair to try things on."""
