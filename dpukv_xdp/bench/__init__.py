# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Measuring: our designs, hand-overs, other stores."""
