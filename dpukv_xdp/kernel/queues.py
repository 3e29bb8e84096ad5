# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Receive queues of an interface: their number, their cores, and the UDP ports steered to them.

Every function works in the network namespace of the calling thread.
"""

import contextlib
import errno
import os
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool, NotSupportedError

from dpukv_xdp.kernel import features
from dpukv_xdp.wire import abi


def receive_queues(interface: str) -> int:
    """Return the number of receive queues in use, at most KV_QUEUES_MAX.

    A driver may have reserved more: a veth end has one in use and one per core in reserve.
    """
    with closing(IoctlEthtool(interface)) as ethtool:
        try:
            channels = ethtool.get_channels()
            count = int(channels.rx_count + channels.combined_count)
        except NotSupportedError:
            with IPRoute() as netlink:
                (link,) = netlink.link("get", ifname=interface)
            count = int(link.get_attr("IFLA_NUM_RX_QUEUES") or 1)
    return min(max(count, 1), abi.KV_QUEUES_MAX)


def set_napi_threads(interface: str, on: bool) -> None:
    """Switch threaded NAPI: kernel threads instead of softirqs serve the queues.

    Raises MissingError where the kernel or the driver cannot. Only sysfs has the switch, and /sys
    shows the network namespace that it was mounted in. A child mounts one of ours, after it has
    unmounted the present one: the kernel refuses to mount the same one twice.
    """
    script = (
        "umount --lazy /sys; mount -t sysfs none /sys && "
        f"echo {int(on)} > /sys/class/net/{interface}/threaded"
    )
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if result.returncode and on:
        reason = OSError(errno.EOPNOTSUPP, result.stderr.strip())
        raise features.missing(
            "threaded NAPI", f"--dpu-cpus on {interface}", str(reason.strerror)
        ) from reason


def napi_threads(interface: str) -> dict[int, dict[str, int]]:
    """Return the kernel threads that serve the interface, by process number: `cpu`, and `cpu_ns`,
    the CPU time in nanoseconds.
    """
    found = {}
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            if path.read_text().startswith(f"napi/{interface}-"):
                pid = int(path.parent.name)
                cpu_ns = int((path.parent / "schedstat").read_text().split()[0])
                found[pid] = {"cpu": min(os.sched_getaffinity(pid)), "cpu_ns": cpu_ns}
    return found


def pin_napi_threads(interface: str, cpus: Sequence[int]) -> None:
    """Pin the queues' threads to cores in turn."""
    for index, pid in enumerate(sorted(napi_threads(interface))):
        os.sched_setaffinity(pid, {cpus[index % len(cpus)]})


def steer_udp_ports(
    interface: str, ports: Sequence[int], cleanup: contextlib.ExitStack
) -> str | None:
    """Steer each UDP port to a receive queue in turn, by ntuple filters of the NIC; `cleanup`
    removes them.

    Return a sentence if the NIC does not support it: then its hash spreads packets over all queues,
    which costs locality only. Return None otherwise, and if there is nothing to steer.
    """
    queues = receive_queues(interface)
    if queues == 1 or len(ports) == 1:
        return None
    for index, port in enumerate(ports):
        rule = f"flow-type udp4 dst-port {port} action {index % queues}"
        result = subprocess.run(
            ["ethtool", "-N", interface, *rule.split()], capture_output=True, text=True, check=False
        )
        if result.returncode:
            return (
                f"{interface} cannot steer UDP ports to queues ({result.stderr.strip()}): its own "
                "hash spreads packets over all of them"
            )
        added = result.stdout.rpartition(" ")[2].strip()
        cleanup.callback(
            subprocess.run,
            ["ethtool", "-N", interface, "delete", added],
            capture_output=True,
            check=False,
        )
    return None
