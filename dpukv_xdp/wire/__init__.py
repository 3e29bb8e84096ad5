# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Bytes: the layouts of bpf/abi, packets as requests and responses, scapy layers. No I/O."""
