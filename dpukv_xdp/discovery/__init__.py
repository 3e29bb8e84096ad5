# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Where servers are published and found: files, etcd."""
