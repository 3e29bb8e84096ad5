# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Derive the XDP programs of a server from its design and settings: which are loaded, with which
settings, and what they hand to the host.
"""

from dataclasses import dataclass

from dpukv_xdp.kernel import loader, nic
from dpukv_xdp.topology import sizing
from dpukv_xdp.topology.placement import EnginePlace, Placement
from dpukv_xdp.topology.schema import FRAMES_PAST_XDP, Frames, ServerConfig
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import mac_word, network_order_word

TRANSPORTS = {
    "ring": "KV_TRANSPORT_RING",
    "ringbuf": "KV_TRANSPORT_RINGBUF",
    "af_xdp": "KV_TRANSPORT_AF_XDP",
}
"""Names in bpf/abi of the configuration's transports."""
WHEN_SILENT = {"reject": "KV_SILENT_REJECT", "pass": "KV_SILENT_PASS"}
"""Names in bpf/abi of what happens to the frames for a silent engine."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """The parts that requests and responses of one server pass through."""

    programs: tuple[str, ...]
    """XDP programs of kv_receive.c that are loaded."""
    tail_calls: tuple[str, ...]
    """Programs that these tail-call, in the order of enum kv_program in bpf/base/maps.h."""
    dpu_engines: int
    """Number of engines whose frames XDP parses: the first ones."""
    sends_records: bool
    """Whether requests that XDP parses are processed on the host."""
    processes_here: bool
    """Whether XDP processes the requests that it parses."""
    needs_sockets: bool
    """Whether frames go to the host through AF_XDP."""
    needs_frame_rings: bool
    """Whether whole frames go to the host through mapped rings."""
    records_in_frames: bool
    """Whether request records are appended to the frames that AF_XDP carries."""
    frames_past_xdp: Frames | None
    """How frames reach the host if XDP passes all of them to the kernel's stack; else None."""

    @classmethod
    def of(cls, config: ServerConfig) -> "Wiring":
        """Return the wiring of a server with these settings."""
        placement = config.placement()
        behind_dpu, behind_host = placement.behind("dpu"), placement.behind("host")
        sends_records = any(place.processing == "host" for place in behind_dpu)
        records_in_frames = sends_records and config.transport == "af_xdp"
        needs_frame_rings = bool(behind_host) and config.frames == "ring"
        is_past_xdp = bool(behind_host) and config.frames in FRAMES_PAST_XDP
        parks_batches = (sends_records and not records_in_frames) or needs_frame_rings
        needs_host = sends_records or (bool(behind_host) and not is_past_xdp)
        processes_here = any(place.processing == "dpu" for place in behind_dpu)
        if config.respond == "sender" and parks_batches:
            respond: tuple[str, ...] = ("kv_send",)
        else:
            respond = ("kv_flush",) if parks_batches or processes_here else ()
        return cls(
            programs=("kv_receive", *respond),
            tail_calls=(*(needs_host * ("kv_reject",)), *(parks_batches * ("kv_wait",))),
            dpu_engines=len(behind_dpu),
            sends_records=sends_records,
            processes_here=processes_here,
            needs_sockets=records_in_frames or (bool(behind_host) and config.frames == "af_xdp"),
            needs_frame_rings=needs_frame_rings,
            records_in_frames=records_in_frames,
            frames_past_xdp=config.frames if is_past_xdp else None,
        )

    def settings(self, config: ServerConfig, cpus: int, interface: nic.Interface) -> dict[str, int]:
        """Return the settings of bpf/base/maps.h.

        One that has no effect gets a value that makes the program short, whatever the
        configuration, so that less is verified.
        """
        parks_batches = "kv_wait" in self.tail_calls
        has_beats = bool(self.tail_calls)
        depth_min, depth_max = config.depths() if parks_batches else (0, 0)
        sends_by_queue = self.sends_records and not self.records_in_frames
        transport = config.transport if self.sends_records else "ring"
        frames = config.frames if config.frames in TRANSPORTS and self.needs_sockets else "ring"
        return {
            "KV_ENGINES": config.endpoint_count(),
            "KV_DPU_ENGINES": self.dpu_engines,
            "KV_CPUS": cpus,
            "KV_PORT": config.port,
            "KV_ADDRESS": network_order_word(interface.address),
            "KV_MAC": mac_word(interface.mac),
            "KV_BROADCAST": network_order_word(interface.broadcast),
            "KV_PROCESS_HERE": int(self.processes_here),
            "KV_TRANSPORT": getattr(abi, TRANSPORTS[transport]),
            "KV_HOST_FRAMES": getattr(abi, TRANSPORTS[frames]),
            "KV_DEPTH_MIN": depth_min,
            "KV_DEPTH_MAX": depth_max,
            "KV_SENDER_ONLY": int(config.respond == "sender" or not parks_batches),
            "KV_TRANSFER_PER_REQUEST": int(config.transfer == "request" and sends_by_queue),
            "KV_PREPARE_OVERLAPS": int(config.prepare == "overlap" or not sends_by_queue),
            "KV_SLOWER_PERCENT": config.profile_row().slower_percent,
            "KV_SILENT_NS": round(config.silent_after_ms * 1e6) if has_beats else 0,
            "KV_WHEN_SILENT": getattr(abi, WHEN_SILENT[config.when_silent]) if has_beats else 0,
            **(
                sizing.dpu_store_sizes(config).settings(
                    self.response_bytes_max(interface), stores=sizing.dpu_store_count(config)
                )
                if self.processes_here
                else {}
            ),
        }

    def build(
        self, name: str, config: ServerConfig, cpus: int, interface: nic.Interface
    ) -> loader.Build:
        """Return the server's BPF programs for `interface`; `cpus` cores may run them."""
        settings = self.settings(config, cpus, interface)
        return loader.Build(name, "kv_receive.c", self.programs, settings, self.tail_calls)

    def response_bytes_max(self, interface: nic.Interface) -> int:
        """Return the most bytes of responses in one packet after the packet header, leaving room
        for a VLAN tag.

        Responses that kv_send sends leave only in frames that BPF_PROG_RUN makes.
        """
        link_bytes_max = interface.mtu + abi.KV_ETH_BYTES + abi.KV_VLAN_BYTES
        longest = abi.KV_LIVE_FRAME_MAX if "kv_send" in self.programs else abi.KV_FRAME_MAX
        frame_bytes_max = min(link_bytes_max, longest)
        return frame_bytes_max - abi.KV_VLAN_BYTES - abi.SIZE("kv_packet_header")

    def serves_pairs(self, place: EnginePlace) -> bool:
        """Return whether an engine serves queue pairs that XDP fills with requests."""
        return place.door == "dpu" and place.processing == "host" and not self.records_in_frames

    def communication_cpus(self, placement: Placement) -> tuple[int, ...]:
        """Return the cores of the host's communication engines: those of the engines they feed."""
        fed = placement.behind("host") if placement.behind("host") else placement.engines
        cpus = tuple(dict.fromkeys(place.cpu for place in fed if place.cpu is not None))
        return cpus or placement.host_cpus
