# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Workloads as prepared frames, and the generator that sends them."""
