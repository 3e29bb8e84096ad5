# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A key-value store cut in two: XDP programs and a native engine, joined by queue pairs."""
