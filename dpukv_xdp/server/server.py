# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A running server: XDP programs on an interface, queue pairs, processing engines and senders,
started and stopped.
"""

import contextlib
import mmap
import os
import socket
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import DpukvError, MissingError, SocketError, UsageError
from dpukv_xdp.base.machine import possible_cpus
from dpukv_xdp.kernel import features, live_frames, loader, nic, queues
from dpukv_xdp.kernel.attachments import register_attachment, release_attachment
from dpukv_xdp.kernel.segmentation import keep_datagrams_apart
from dpukv_xdp.native import probes
from dpukv_xdp.native.dpdk import DpdkDevice
from dpukv_xdp.native.engines import Communicator, HostCore, ProcessingEngine
from dpukv_xdp.native.senders import LiveSender, Senders, catch_stop_signal
from dpukv_xdp.native.sockets import ReceiveSocket, StackDrops, UdpSocket
from dpukv_xdp.native.stores import Store, make_region, sums_of
from dpukv_xdp.server.dpu_stats import DPU_REGIONS, dpu_store_stats
from dpukv_xdp.server.supervisor import Regions
from dpukv_xdp.server.wiring import Wiring
from dpukv_xdp.topology import sizing, validation
from dpukv_xdp.topology.designs import Place
from dpukv_xdp.topology.placement import door_owners, partition_table
from dpukv_xdp.topology.schema import ServerConfig
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import mac_word, network_order_word

QUEUE_PAIR_BYTES = (abi.Counter.QP_REQUEST_BYTES, abi.Counter.QP_RESPONSE_BYTES)
HELD_FRAMES_MIN = 64
"""Frames of a host door that an engine may hold, however few receive descriptors there are."""
Queues = list[npt.NDArray[np.void]]
"""Copies of the private sides of all queue pairs: XDP's, then those of each host communication
engine.
"""
RINGBUF_BYTES = 1 << 20
"""Bytes of each engine's BPF ring buffer: some hundred batches."""


class Server:
    """A server on one interface, from start() to stop(); a context manager."""

    def __init__(
        self, config: ServerConfig, interface: str, regions: Regions | None = None
    ) -> None:
        """Check what can be checked without changing anything. `regions` are memory that outlives
        this process: with them the server goes on with the stores that it finds there.

        Raises UsageError.
        """
        validation.check(config)
        self.config = config
        self._regions = regions
        self.interface = nic.find(interface)
        nic.check_can_serve(self.interface)
        self.attachment: nic.Attachment | None = None
        self.placement = config.placement()
        self.notes: list[str] = list(self.placement.notes)
        self.owners = config.owners()
        self._design = config.row()
        self._profile = config.profile_row()
        self._wiring = Wiring.of(config)
        self._cpus = min(possible_cpus(), abi.KV_CPUS_MAX)
        self._cleanup = contextlib.ExitStack()
        self._engines: list[ProcessingEngine] = []
        self._stores: list[Store] = []
        self.taken_over: list[dict[str, int]] = []
        """Findings in each region that a predecessor has left: struct kv_store_repair."""
        self._communicators: list[Communicator] = []
        self._sockets: list[ReceiveSocket] = []
        self._past_xdp: list[UdpSocket | StackDrops | DpdkDevice] = []
        self._hosts: dict[int, HostCore] = {}
        self._senders: Senders | None = None

    def start(self) -> None:
        """Start serving.

        If AF_XDP is unavailable, or bound but receives nothing, mapped rings replace it and `notes`
        says so. Raises SocketError instead if the settings ask for a certain AF_XDP mode.
        """
        try:
            self._start()
        except SocketError as error:
            if self.config.socket_mode != "auto":
                raise
            transport = "ring" if self.config.transport == "af_xdp" else self.config.transport
            self.config = msgspec.structs.replace(self.config, frames="ring", transport=transport)
            self._wiring = Wiring.of(self.config)
            self.notes.append(f"mapped rings instead of AF_XDP: {error}")
            self._engines, self._communicators, self._sockets = [], [], []
            self._stores, self.taken_over, self._hosts, self._senders = [], [], {}, None
            self._start()

    def _start(self) -> None:
        """Load, allocate, start threads, attach in this order; undo all of it on a failure."""
        if not self.interface.is_up:
            raise UsageError(
                f"{self.interface.name} is down: bring it up with 'ip link set "
                f"{self.interface.name} up'"
            )
        with contextlib.ExitStack() as cleanup:
            self._link = nic.LinkCounters(self.interface.name)
            cleanup.callback(self._link.close)
            self._load(cleanup)
            self._start_senders(cleanup)
            self._make_engines(cleanup)
            self._make_communicators(cleanup)
            self._start_hosts(cleanup)
            self._attach(cleanup)
            self._place_receive_queues(cleanup)
            self._check_sockets()
            self._cleanup = cleanup.pop_all()

    def stop(self) -> None:
        """Detach, drain and release everything. May be called repeatedly."""
        self._cleanup.close()

    def endpoint(self) -> dict[str, Any]:
        """Return the address of engine 0 and what clients need beside it; engine e has port + e."""
        return {
            "interface": self.interface.name,
            "mac": self.interface.mac,
            "address": self.interface.address,
            "port": self.config.port,
            "engines": len(self.placement.engines),
            "owners": list(self.owners),
            "access": self.config.access_mode(),
            "mtu": self.interface.mtu,
        }

    def set_host_share(self, host_share: float) -> None:
        """Change the host door's share of the keys, 0 to 1. Items are not moved with their keys, so
        the store should be empty.
        """
        self.config = msgspec.structs.replace(self.config, host_share=host_share)
        self.owners = self.config.owners()
        self._write_partitions()

    def give_all_to_door(self, door: Place) -> None:
        """Assign all keys to one door until the next set_host_share(), to measure it alone."""
        self.owners = door_owners(self.placement, door, len(self.owners))
        self._write_partitions()

    def set_stall(self, stall_ms: float) -> None:
        """Make the host cores pause for so long in each KV_STALL_PERIOD_MS; 0 for never. A bench
        shows by it what clients see of an engine that loses its core.
        """
        for host in self._hosts.values():
            host.set_stall(stall_ms)

    def move_partition(self, partition: int, engine: int) -> None:
        """Move a partition with its items to another engine, while both serve.

        Requests that arrive during the move are rejected, unless all engines may write; clients
        find the new owner in the directory. Raises UsageError for an engine that cannot reach the
        partition's memory, DpukvError if a host core does not release the partition.
        """
        places = self.placement.engines
        if not (0 <= partition < len(self.owners) and 0 <= engine < len(places)):
            raise UsageError(
                f"partition {partition} and engine {engine} are not 0 to {len(self.owners) - 1} "
                f"and 0 to {len(places) - 1}"
            )
        if engine not in self.movable_to(partition):
            raise UsageError(
                f"partition {partition} cannot move to engine {engine}: its items are in the "
                f"memory of engine {self.owners[partition]}, which engine {engine} cannot reach"
            )
        hosts = [host.native for host in self._hosts.values()]
        status = lib.kv_partition_move(self._partitions, partition, engine, hosts, len(hosts))
        if status:
            raise DpukvError(f"partition {partition} did not move: {os.strerror(-status)}")
        owners = list(self.owners)
        owners[partition] = engine
        self.owners = tuple(owners)
        self._note_readers()

    def movable_to(self, partition: int) -> tuple[int, ...]:
        """Return the engines that may own a partition: those that reach its memory.

        The host's engines reach all stores of the host. In XDP each engine has its own store, or
        all engines share one.
        """
        owner = self.placement.engines[self.owners[partition]]
        if owner.processing == "dpu" and sizing.dpu_store_count(self.config) > 1:
            return (owner.engine,)
        return tuple(
            place.engine for place in self.placement.engines if place.processing == owner.processing
        )

    def partition_requests(self) -> npt.NDArray[np.uint64]:
        """Return the requests so far, summed over the host's engines: shape [partitions]."""
        counted = [engine.partition_requests() for engine in self._engines]
        total = np.zeros(len(self.owners), np.uint64)
        for requests in counted:
            total += requests
        return total

    def counters(self) -> dict[str, int]:
        """Return the communication engines' counters, summed over all queue pairs, by their names
        in bpf/abi.

        Bytes in a queue pair whose two ends are in the same place do not count, because they do not
        cross the bus.
        """
        return self._counters(self._queues())

    def _counters(self, queues_read: Queues) -> dict[str, int]:
        totals = np.zeros(abi.KV_COUNTERS, np.uint64)
        places = self.placement.engines
        in_xdp, *on_host = queues_read
        for here, own in (("dpu", in_xdp), *(("host", own) for own in on_host)):
            by_engine = own["counters"].reshape(len(places), -1, abi.KV_COUNTERS)
            counters = by_engine.sum(axis=1, dtype=np.uint64)
            inside = [place.engine for place in places if place.door == place.processing == here]
            counters[np.ix_(inside, QUEUE_PAIR_BYTES)] = 0
            totals += counters.sum(axis=0, dtype=np.uint64)
        return {counter.name.lower(): int(totals[counter]) for counter in abi.Counter}

    def stats(self) -> dict[str, Any]:
        """Return all counters, clocks and depths of the server, for reports."""
        program_fd = self._programs.programs["kv_receive"]
        run_time_ns, run_count = loader.program_stats(program_fd)
        queues_read = self._queues()
        return {
            "counters": self._counters(queues_read),
            "stages": _stages(queues_read),
            "engines": [engine.stats() for engine in self._engines],
            "stores": sums_of(self._stores),
            "dpu_stores": self._dpu_stores(),
            "hosts": [host.stats() for host in self._hosts.values()],
            "senders": self._senders.stats() if self._senders else None,
            "sockets": [socket.stats() for socket in self._sockets],
            "past_xdp": [source.stats() for source in self._past_xdp],
            "link": self._link.growth(),
            "xdp": {"run_time_ns": run_time_ns, "run_count": run_count},
            "napi": queues.napi_threads(self.interface.name) if self.config.dpu_cpus else None,
            "ticks_per_second": self._ticks_per_second,
        }

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _dpu_stores(self) -> list[dict[str, Any]]:
        if not self._wiring.processes_here:
            return []
        return dpu_store_stats(self._programs, self._wiring.dpu_engines)

    def _queues(self) -> Queues:
        in_xdp = self._programs.read_array("kv_dpu_queues", abi.dtype("kv_dpu_queue"))
        return [in_xdp, *(communicator.own_queues() for communicator in self._communicators)]

    def _load(self, cleanup: contextlib.ExitStack) -> None:
        build = self._wiring.build(self.config.design, self.config, self._cpus, self.interface)
        kept = self._regions.kept if self._regions else {}
        self._programs = build.load({name: kept[name] for name in DPU_REGIONS if name in kept})
        cleanup.callback(self._programs.close)
        if self._regions and self._wiring.processes_here:
            for name in DPU_REGIONS:
                self._regions.keep(name, self._programs.map_fd(name))
        self._partitions = self._map("kv_partitions", "kv_partition_table", 1, cleanup)
        self._write_partitions()
        pair_count = len(self.placement.engines) * self._cpus
        self._pairs = self._map("kv_queue_pairs", "kv_queue_pair", pair_count, cleanup)
        self._heartbeats = self._map(
            "kv_heartbeats", "kv_heartbeat", len(self.placement.engines), cleanup
        )
        self._ticks_per_second = int(lib.kv_ticks_per_second())

    def _write_partitions(self) -> None:
        access = self.config.access_mode()
        table = partition_table(
            self.owners,
            concurrent_read=access != "erew",
            concurrent_write=access == "crcw",
            reset_allowed=self.config.allow_reset,
        )
        ffi.memmove(self._partitions, table.tobytes(), table.nbytes)
        self._note_readers()

    def _map(self, name: str, struct: str, count: int, cleanup: contextlib.ExitStack) -> Any:
        """Return a table shared with XDP, unmapped at stop(): a mapping keeps its map alive."""
        memory = mmap.mmap(
            self._programs.map_fd(name),
            -(-count * abi.SIZE(struct) // mmap.PAGESIZE) * mmap.PAGESIZE,
            flags=mmap.MAP_SHARED | mmap.MAP_POPULATE,
        )
        cleanup.callback(memory.close)
        view = ffi.from_buffer(f"struct {struct}[]", memory, require_writable=True)
        cleanup.callback(ffi.release, view)
        return view

    def _start_senders(self, cleanup: contextlib.ExitStack) -> None:
        if "kv_flush" in self._wiring.programs:
            packet_socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            cleanup.callback(packet_socket.close)
            packet_socket.bind((self.interface.name, 0))
            self._senders = Senders(
                cpus=self._cpus,
                engines=len(self.placement.engines),
                program_fd=self._programs.programs["kv_flush"],
                socket_fd=packet_socket.fileno(),
                polled_engines=self._wiring.dpu_engines if self._wiring.processes_here else 0,
            )
            cleanup.callback(self._senders.stop)
            self._senders.start()
        if "kv_send" in self._wiring.programs:
            probes.require("live frames", "--respond sender")
            catch_stop_signal()
            live = LiveSender(
                cpu=self._sender_cpu(),
                program_fd=self._programs.programs["kv_send"],
                interface_index=self.interface.index,
            )
            cleanup.callback(live.stop)
            live.start()

    def _sender_cpu(self) -> int:
        """Return the sender's core: one of the DPU's, or one without an engine if there is one."""
        cpus = os.sched_getaffinity(0)
        free = cpus - set(self.placement.host_cpus)
        return max(self.config.dpu_cpus or free or cpus)

    def _make_engines(self, cleanup: contextlib.ExitStack) -> None:
        config = self.config
        is_shared = config.access_mode() != "erew"
        takes_all = len(self.placement.engines) == 1 or config.access_mode() == "crcw"
        own: list[Store] = []
        for place in self.placement.native():
            assert place.cpu is not None
            if not own:
                own = [self._open_store(p, cleanup) for p in range(len(self.owners))]
                handles = own
            elif is_shared:
                handles = [self._keep(store.share(), cleanup) for store in own]
            crosses_bus = place.door != place.processing
            engine = ProcessingEngine(
                engine_id=place.engine,
                cpu=place.cpu,
                stores=handles,
                partitions=self._partitions,
                takes_all=takes_all,
                response_bytes_max=self._wiring.response_bytes_max(self.interface),
                flush_after_us=config.flush_after_us,
                transfer_per_request=config.transfer == "request"
                and self._wiring.serves_pairs(place),
                bus_latency_us=crosses_bus * self._profile.bus_latency_us,
                bus_gbytes_per_s=crosses_bus * self._profile.bus_gbytes_per_s,
                ring=self._request_ring(place.engine, cleanup),
                heartbeat=self._heartbeats + place.engine,
            )
            if self._wiring.serves_pairs(place):
                senders = self._senders.array if self._senders else ffi.NULL
                engine.add_pairs(self._pairs + place.engine * self._cpus, self._cpus, senders)
            self._host(place.cpu).add_engine(engine)
            self._engines.append(engine)
        self._note_readers()

    def _open_store(self, partition: int, cleanup: contextlib.ExitStack) -> Store:
        """Open a partition's store: a new one, or the one that its region has."""
        options = sizing.partition_options(self.config)
        if self._regions is None:
            return self._keep(Store(options, partition), cleanup)
        name = f"store-{partition}"
        kept_fd = self._regions.kept.get(name)
        region_fd = make_region(options) if kept_fd is None else kept_fd
        store = self._keep(Store(options, partition, region_fd), cleanup)
        if kept_fd is None:
            self._regions.keep(name, region_fd)
            os.close(region_fd)
        else:
            self.taken_over.append(store.repaired)
        return store

    def _note_readers(self) -> None:
        """Mark the handles of engines that do not own the partition as readers, with CREW: their
        GETs must not move items.
        """
        if self.config.access_mode() != "crew":
            return
        for engine in self._engines:
            for store in engine.stores:
                store.set_reader(self.owners[store.partition] != engine.engine_id)

    def _keep(self, store: Store, cleanup: contextlib.ExitStack) -> Store:
        cleanup.callback(store.close)
        self._stores.append(store)
        return store

    def _request_ring(self, engine: int, cleanup: contextlib.ExitStack) -> Any:
        """Return an engine's BPF ring buffer, entered in kv_request_rings; NULL for an engine that
        has none.
        """
        if self.config.transport != "ringbuf" or self.placement.engines[engine].door != "dpu":
            return ffi.NULL
        ring_fd = lib.bpf_map_create(
            lib.BPF_MAP_TYPE_RINGBUF, ffi.NULL, 0, 0, RINGBUF_BYTES, ffi.NULL
        )
        if ring_fd < 0:
            raise features.missing("BPF ring buffer", "--transport ringbuf", os.strerror(-ring_fd))
        cleanup.callback(os.close, ring_fd)
        self._programs.set_fd("kv_request_rings", engine, ring_fd)
        ring = lib.kv_ringbuf_create(ring_fd, RINGBUF_BYTES)
        if ring == ffi.NULL:
            raise MissingError("mapping a BPF ring buffer", os.strerror(ffi.errno))
        cleanup.callback(lib.kv_ringbuf_destroy, ring)
        return ring

    def _make_communicators(self, cleanup: contextlib.ExitStack) -> None:
        """Make the host's communication engines.

        There is one per receive queue's AF_XDP socket, or per engine's rings of whole frames, or
        per endpoint's UDP socket, or per core for its queue of a DPDK device.
        """
        cpus = self._wiring.communication_cpus(self.placement)
        if self._wiring.needs_sockets:
            for queue in range(queues.receive_queues(self.interface.name)):
                communicator = self._communicator(cpus[queue % len(cpus)], cleanup)
                receive = ReceiveSocket(
                    self.interface.name, queue, self.config.rx_descriptors, self.config.socket_mode
                )
                cleanup.callback(receive.close)
                receive.join(self._programs)
                communicator.native.socket = receive.native
                self._sockets.append(receive)
                self.notes += [receive.refused] if receive.refused else []
        if self._wiring.needs_frame_rings:
            for place in self.placement.behind("host"):
                assert place.cpu is not None
                communicator = self._communicator(place.cpu, cleanup)
                communicator.native.rings = self._pairs + place.engine * self._cpus
                communicator.native.ring_count = self._cpus
                communicator.native.ring_engine = place.engine
                ticks_per_us = self._ticks_per_second / 1e6
                communicator.native.flush_after_ticks = int(
                    self.config.flush_after_us * ticks_per_us
                )
                if self._senders:
                    communicator.native.senders = self._senders.array
        if self._wiring.frames_past_xdp:
            self._past_xdp.append(drops := StackDrops())
            cleanup.callback(drops.close)
        if self._wiring.frames_past_xdp == "udp":
            self._make_udp_sockets(cleanup)
        elif self._wiring.frames_past_xdp == "dpdk":
            self._make_dpdk_queues(cpus, cleanup)

    def _make_udp_sockets(self, cleanup: contextlib.ExitStack) -> None:
        if self.interface.address is None:
            raise UsageError(
                f"{self.interface.name} has no IPv4 address, which the kernel's UDP needs: give it "
                f"one with 'ip address add', or leave out --frames udp"
            )
        for place in self.placement.behind("host"):
            assert place.cpu is not None
            communicator = self._communicator(place.cpu, cleanup)
            endpoint = UdpSocket(
                self.interface.address, self.config.port + place.engine, self.config.rx_descriptors
            )
            cleanup.callback(endpoint.close)
            communicator.native.port, communicator.native.source = (
                lib.kv_udp_port(),
                endpoint.source,
            )
            self._past_xdp.append(endpoint)

    def _make_dpdk_queues(self, cpus: tuple[int, ...], cleanup: contextlib.ExitStack) -> None:
        communicators = [self._communicator(cpu, cleanup) for cpu in cpus]
        first_port = self.config.port
        device = DpdkDevice(
            self.interface,
            self.config.dpdk_device,
            queues=len(cpus),
            descriptors=self.config.rx_descriptors,
            ports=range(first_port, first_port + len(self.placement.engines)),
        )
        cleanup.callback(device.close)
        for communicator, source in zip(communicators, device.sources, strict=True):
            communicator.native.port, communicator.native.source = device.port, source
            communicator.native.frames_max = lib.KV_DPDK_HELD // len(cpus)
        self._past_xdp.append(device)

    def _communicator(self, cpu: int, cleanup: contextlib.ExitStack) -> Communicator:
        communicator = Communicator(
            engines=len(self.placement.engines),
            port=self.config.port,
            address=network_order_word(self.interface.address),
            broadcast=network_order_word(self.interface.broadcast),
            mac=0 if self._wiring.frames_past_xdp == "udp" else mac_word(self.interface.mac),
            send_after_parse=self.config.send == "after-parse",
            noted=self._wiring.records_in_frames,
        )
        cleanup.callback(communicator.close)
        # A socket's memory holds three times its receive descriptors: once for what engines hold.
        communicator.native.frames_max = max(
            HELD_FRAMES_MIN, self.config.rx_descriptors // len(self.placement.engines)
        )
        for engine in self._engines:
            engine.add_pairs(communicator.pair_of(engine.engine_id), 1)
        self._host(cpu).add_communicator(communicator)
        self._communicators.append(communicator)
        return communicator

    def _host(self, cpu: int) -> HostCore:
        if cpu not in self._hosts:
            self._hosts[cpu] = HostCore(cpu)
        return self._hosts[cpu]

    def _start_hosts(self, cleanup: contextlib.ExitStack) -> None:
        for host in self._hosts.values():
            cleanup.callback(host.stop)
            host.start()

    def _attach(self, cleanup: contextlib.ExitStack) -> None:
        if self._wiring.frames_past_xdp:
            self._attach_pass_program(cleanup)
            return
        deaf_peer = nic.deaf_veth_peer(self.interface.name)
        attachment = register_attachment(
            self.interface.name,
            self._programs.programs["kv_receive"],
            modes=("generic",) if deaf_peer else nic.DEFAULT_MODES,
            goes_with_process=self.config.when_killed == "detach",
        )
        cleanup.callback(release_attachment, attachment)
        self.attachment = replace(attachment, native_refused=deaf_peer or attachment.native_refused)
        if attachment.mode == "generic":
            merged = keep_datagrams_apart(self.interface.name, cleanup)
            self.notes += [merged] if merged else []
        if "kv_send" in self._wiring.programs:
            live_frames.open_way(self.attachment, "--respond sender", cleanup)

    def _attach_pass_program(self, cleanup: contextlib.ExitStack) -> None:
        """Attach a program that passes every frame, where XDP does not process any: it reserves the
        interface, because another server's program would take our frames.
        """
        pass_fd = nic.load_pass_program()
        cleanup.callback(os.close, pass_fd)
        self.attachment = register_attachment(
            self.interface.name,
            pass_fd,
            goes_with_process=self.config.when_killed == "detach",
        )
        cleanup.callback(release_attachment, self.attachment)

    def _place_receive_queues(self, cleanup: contextlib.ExitStack) -> None:
        """Pin the receive queues to the DPU's cores, and steer each endpoint's port to a queue."""
        if self.config.dpu_cpus:
            assert self.attachment is not None
            if self.attachment.mode == "generic" and self.interface.kind == "veth":
                raise MissingError(
                    f"--dpu-cpus on {self.interface.name}",
                    "receive queues with NAPI threads, which a veth end has with native XDP only: "
                    "attach an XDP program to the other end of the pair, or leave out --dpu-cpus",
                )
            queues.set_napi_threads(self.interface.name, True)
            cleanup.callback(queues.set_napi_threads, self.interface.name, False)
            queues.pin_napi_threads(self.interface.name, self.config.dpu_cpus)
        ports = [self.config.port + place.engine for place in self.placement.engines]
        refused = queues.steer_udp_ports(self.interface.name, ports, cleanup)
        self.notes += [refused] if refused else []

    def _check_sockets(self) -> None:
        """Check that bound sockets receive frames, where the kernel can make test frames."""
        if self._sockets and probes.lack_of("live frames"):
            return
        last_port = self.config.port + self.config.endpoint_count() - 1
        for receive in self._sockets:
            receive.check(self._programs, self.interface, last_port)


def _stages(queues_read: Queues) -> dict[str, dict[str, int]]:
    """Return the stage clocks of the communication engines by side: see enum kv_stage."""
    in_xdp, *on_host = queues_read
    return {
        side: {
            "frames": sum(int(own["stage_frames"].sum()) for own in owns),
            "requests": sum(int(own["stage_requests"].sum()) for own in owns),
            **{
                stage.name.lower(): sum(int(own["stage_ns"][:, stage].sum()) for own in owns)
                for stage in abi.Stage
            },
        }
        for side, owns in (("dpu", [in_xdp]), ("host", on_host))
    }
