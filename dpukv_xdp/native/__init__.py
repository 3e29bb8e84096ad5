# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Python's interface to the native core: stores, engines, senders, sockets."""
