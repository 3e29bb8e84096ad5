# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Who communicates, who processes and on which cores: designs, profiles, placement, settings."""
