# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What an operator asks: what this machine lacks, which programs load."""
