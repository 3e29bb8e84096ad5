# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The native core in Python's hands: stores, engines, senders, sockets."""
