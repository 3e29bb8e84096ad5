# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Publish and find servers, in files or etcd."""
