# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Errors, processes and facts of the machine: helpers that every room may use."""
