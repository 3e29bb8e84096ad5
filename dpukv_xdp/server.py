# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A running server: XDP programs on an interface, queue pairs, processing engines and senders,
started and stopped.
"""

import contextlib
import mmap
import socket
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dpukv_xdp import abi, lab, loader, nic
from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.config import ServerConfig
from dpukv_xdp.designs import find_design
from dpukv_xdp.engine import ProcessingEngine, Senders
from dpukv_xdp.errors import UsageError

ETHERNET_BYTES = abi.offset("kv_packet_header", "ip_version_ihl")
VLAN_BYTES = 4


class Server:
    """Serves from start() to stop(); a context manager that stops at the end."""

    def __init__(self, config: ServerConfig, interface: str) -> None:
        """Check what can be checked without changing anything. Raises UsageError."""
        config.check()
        self.config = config
        self.design = find_design(config.design)
        self.interface = nic.find(interface)
        self.attachment: nic.Attachment | None = None
        self._cpus = min(_possible_cpus(), abi.KV_CPUS_MAX)
        self._cleanup = contextlib.ExitStack()

    def start(self) -> None:
        """Load, allocate, serve, attach: the interface comes last. Nothing stays if it fails."""
        with contextlib.ExitStack() as cleanup:
            self._load(cleanup)
            self._start_senders(cleanup)
            self._start_engines(cleanup)
            self._attach(cleanup)
            self._cleanup = cleanup.pop_all()

    def stop(self) -> None:
        """Detach, drain, and give everything back; harmless to repeat."""
        self._cleanup.close()

    def endpoint(self) -> dict[str, Any]:
        """Where clients reach engine 0; engine e has port + e."""
        return {
            "interface": self.interface.name,
            "mac": self.interface.mac,
            "address": self.interface.address,
            "port": self.config.port,
            "engines": self.config.engines,
            "mtu": self.interface.mtu,
        }

    def counters(self) -> dict[str, int]:
        """The communication engine's counters over all queue pairs, by their names in kv_abi.h."""
        queues = self._programs.read_array("kv_dpu_queues", abi.dtype("kv_dpu_queue"))
        totals = queues["counters"].sum(axis=0, dtype=np.uint64)
        names = list(abi.Counter)[:-1]
        return {counter.name.lower(): int(totals[counter]) for counter in names}

    def stats(self) -> dict[str, Any]:
        """Everything that can be counted, for reports."""
        program_fd = self._programs.programs["kv_receive"]
        run_time_ns, run_count = loader.program_stats(program_fd)
        return {
            "counters": self.counters(),
            "engines": [engine.stats() for engine in self._engines],
            "senders": self._senders.stats(),
            "xdp": {"run_time_ns": run_time_ns, "run_count": run_count},
            "ticks_per_second": self._ticks_per_second,
        }

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _load(self, cleanup: contextlib.ExitStack) -> None:
        depth_min, depth_max = self.config.depths()
        settings = {
            "KV_ENGINES": self.config.engines,
            "KV_CPUS": self._cpus,
            "KV_PORT": self.config.port,
            "KV_ADDRESS": _network_order_word(self.interface.address),
            "KV_DEPTH_MIN": depth_min,
            "KV_DEPTH_MAX": depth_max,
        }
        self._programs = loader.load("kv_receive.c", ["kv_receive", "kv_flush"], settings)
        cleanup.callback(self._programs.close)
        self._map_queue_pairs(cleanup)
        self._ticks_per_second = int(lib.kv_ticks_per_second())

    def _map_queue_pairs(self, cleanup: contextlib.ExitStack) -> None:
        """Shared with XDP until stop(): a mapping that stayed would keep the map alive."""
        pair_count = self.config.engines * self._cpus
        memory = mmap.mmap(
            self._programs.map_fd("kv_queue_pairs"),
            pair_count * abi.SIZE("kv_queue_pair"),
            flags=mmap.MAP_SHARED | mmap.MAP_POPULATE,
        )
        cleanup.callback(memory.close)
        self._pairs = ffi.from_buffer("struct kv_queue_pair[]", memory, require_writable=True)
        cleanup.callback(ffi.release, self._pairs)

    def _start_senders(self, cleanup: contextlib.ExitStack) -> None:
        packet_socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        cleanup.callback(packet_socket.close)
        packet_socket.bind((self.interface.name, 0))
        self._senders = Senders(
            cpus=self._cpus,
            engines=self.config.engines,
            program_fd=self._programs.programs["kv_flush"],
            socket_fd=packet_socket.fileno(),
        )
        cleanup.callback(self._senders.stop)
        self._senders.start()

    def _start_engines(self, cleanup: contextlib.ExitStack) -> None:
        self._engines = []
        frame_bytes_max = min(self.interface.mtu + ETHERNET_BYTES + VLAN_BYTES, abi.KV_FRAME_MAX)
        for engine_id in range(self.config.engines):
            engine = ProcessingEngine(
                engine_id=engine_id,
                engines=self.config.engines,
                cpu=self.config.engine_cpu(engine_id),
                cpus=self._cpus,
                pairs=self._pairs + engine_id * self._cpus,
                items=self.config.items_per_engine(),
                log_bytes=self.config.log_bytes_per_engine(),
                huge_pages=self.config.huge_pages,
                response_bytes_max=frame_bytes_max - VLAN_BYTES - abi.SIZE("kv_packet_header"),
                flush_after_us=self.config.flush_after_us,
            )
            cleanup.callback(engine.close)
            engine.start(self._senders)
            cleanup.callback(engine.stop)
            self._engines.append(engine)

    def _attach(self, cleanup: contextlib.ExitStack) -> None:
        if not self.interface.is_up:
            raise UsageError(
                f"{self.interface.name} is down: bring it up with 'ip link set "
                f"{self.interface.name} up'"
            )
        deaf_peer = nic.deaf_veth_peer(self.interface.name)
        attachment = lab.register_attachment(
            self.interface.name,
            self._programs.programs["kv_receive"],
            modes=("generic",) if deaf_peer else nic.DEFAULT_MODES,
        )
        cleanup.callback(lab.release_attachment, attachment)
        self.attachment = replace(attachment, native_refused=deaf_peer or attachment.native_refused)


def _possible_cpus() -> int:
    """One more than the highest core number that the kernel may ever use."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(ranges.rpartition("-")[2].rpartition(",")[2]) + 1


def _network_order_word(address: str | None) -> int:
    """An IPv4 address as the word that XDP loads from the packet; 0 for none."""
    return int.from_bytes(socket.inet_aton(address), "little") if address else 0
