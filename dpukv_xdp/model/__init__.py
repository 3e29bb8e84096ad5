# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A model of the designs for what this machine cannot show, and the paper's values."""
