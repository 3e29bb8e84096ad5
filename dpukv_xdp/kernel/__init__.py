# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The kernel's side: BPF programs compiled and loaded, interfaces, receive queues, features."""
