# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""DPU profiles: the limits and costs of real DPUs, as a table (paper, sections 2.1, 4.4, 6.1).

`local` is this machine as it is. The others set the paper's burst and refuse designs that the DPU's
mode cannot run. They emulate the bus and the speed of the DPU's cores, and every result says so.
"""

from dataclasses import dataclass

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.topology.designs import Design
from dpukv_xdp.wire import abi


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of DPU and its host."""

    name: str
    description: str
    burst_requests: int
    """Most requests in one transfer: the paper's N."""
    host_door_refused: str
    """Why the DPU's mode allows the host no door of its own; empty if it allows one."""
    dpu_cores: int
    host_cores: int
    """Cores of the paper's host, the divisor of "host core usage"; 0 for this machine's cores."""
    bus_latency_us: float
    """Emulated latency in microseconds of each transfer between DPU and host; 0 = none."""
    bus_gbytes_per_s: float
    """Emulated bandwidth of the bus in each direction, in GB/s; 0 = unlimited."""
    dpu_speed: float
    """Emulated speed of a DPU core relative to a host core; 1 = not emulated."""

    @property
    def is_emulated(self) -> bool:
        """Whether the bus or the cores' speed is emulated."""
        return self.bus_latency_us > 0 or self.bus_gbytes_per_s > 0 or self.dpu_speed != 1.0

    @property
    def request_buffer_bytes(self) -> int:
        """Bytes of a burst's request buffer: N records and the count RC in one byte (paper, section
        6.1).

        One byte cannot hold 256. It holds the count minus one, so that 0 to 255 mean 1 to 256: a
        buffer without requests is never sent, and the size remains the paper's N*32+1.
        """
        return self.burst_requests * abi.SIZE("kv_request") + 1

    @property
    def response_buffer_bytes(self) -> int:
        """Bytes of a burst's response buffer: N*16+1."""
        return self.burst_requests * abi.SIZE("kv_response") + 1

    @property
    def slower_percent(self) -> int:
        """Emulated extra time of a DPU core, in percent of its own time."""
        return round(100 / self.dpu_speed) - 100

    def label(self) -> str | None:
        """Return the sentence that marks an emulated run's output; None if nothing is emulated."""
        if not self.is_emulated:
            return None
        return (
            f"emulated {self.name}: {self.bus_latency_us:g} us and {self.bus_gbytes_per_s:g} GB/s "
            f"bus, DPU cores at {self.dpu_speed:.0%} speed"
        )

    def check(self, design: Design) -> None:
        """Raise UsageError if this DPU cannot run the design."""
        if self.host_door_refused and len(design.communication) > 1:
            raise UsageError(
                f"profile {self.name} cannot run design {design.name}: {self.host_door_refused}"
            )


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "local",
            "this machine as it is: XDP on its own cores, nothing emulated",
            burst_requests=abi.KV_BATCH_MAX,
            host_door_refused="",
            dpu_cores=0,
            host_cores=0,
            bus_latency_us=0.0,
            bus_gbytes_per_s=0.0,
            dpu_speed=1.0,
        ),
        # Host: 12 hardware threads, PCIe 3.0 x16 (section 3.1). Core speed: throughput of DPU-only
        # over CPU-only for each core, 13.4/8 against 23.6/12 Mops (Figure 5; a hardware thread is
        # a core here). Bus latency: the paper gives no absolute one; an estimate, so say it.
        Profile(
            "bf2",
            "BlueField-2 in separated host mode: 8 A72 cores at 2.5 GHz beside a 12-thread host",
            burst_requests=64,
            host_door_refused="",
            dpu_cores=8,
            host_cores=12,
            bus_latency_us=2.0,
            bus_gbytes_per_s=12.0,
            dpu_speed=0.85,
        ),
        # Its cores are faster than the host's threads (38/8 against about 30/12 Mops, section 6.3),
        # which cannot be emulated: they count as equal.
        Profile(
            "bf3",
            "BlueField-3 in DPU mode: all traffic passes its 8 A78 cores at 3 GHz",
            burst_requests=256,
            host_door_refused="in DPU mode all packets pass the DPU's cores, so the host has no "
            "door of its own (paper, section 6.1): use lat or sav, or profile bf2",
            dpu_cores=8,
            host_cores=12,
            bus_latency_us=1.5,
            bus_gbytes_per_s=12.0,
            dpu_speed=1.0,
        ),
    )
}


def find_profile(name: str) -> Profile:
    """Return the profile of that name. Raises UsageError if the table has none."""
    try:
        return PROFILES[name]
    except KeyError as error:
        raise UsageError(
            f"there is no profile {name!r}: choose one of {', '.join(PROFILES)}"
        ) from error
