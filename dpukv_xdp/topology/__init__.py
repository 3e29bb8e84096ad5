# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The places of the engines and their cores: designs, profiles, placement, settings."""
