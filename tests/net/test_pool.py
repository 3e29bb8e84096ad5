# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The pools of the tests: a lab is lent again only as it was made, programs with blank maps."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from net.serving import client_of, serving, set_link
from pool import Labs, Programs, state_of
from pyroute2 import IPRoute

from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.attachments import attach_napi_program
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.kernel.veth import End
from dpukv_xdp.lab.lab import Lab, list_labs
from dpukv_xdp.server.server import Server


def remove_link(end: End) -> None:
    with in_namespace(end.namespace), IPRoute() as netlink:
        netlink.link("del", index=nic.index_of(end.interface))


def set_address(end: End, command: str, address: str) -> None:
    with in_namespace(end.namespace), IPRoute() as netlink:
        index = nic.index_of(end.interface)
        netlink.addr(command, index=index, address=address, prefixlen=24)


def add_neighbour(end: End) -> None:
    with in_namespace(end.namespace), IPRoute() as netlink:
        index = nic.index_of(end.interface)
        mac = "02:00:00:00:00:99"
        netlink.neigh("add", dst="10.77.0.9", lladdr=mac, ifindex=index, state="permanent")


def add_link(end: End) -> None:
    with in_namespace(end.namespace), IPRoute() as netlink:
        netlink.link("add", kind="veth", ifname="one", peer={"ifname": "other"})


def attach(end: End) -> None:
    with in_namespace(end.namespace):
        attach_napi_program(end.interface)


def turn_gro_off(end: End) -> None:
    with in_namespace(end.namespace):
        nic.set_offloads(end.interface, gro=False)


CHANGES: dict[str, Callable[[Lab], object]] = {
    "down": lambda lab: lab.down(),
    "no link": lambda lab: remove_link(lab.server),
    "link down": lambda lab: set_link(lab.client, state="down"),
    "mtu": lambda lab: set_link(lab.server, mtu=1400),
    "mac": lambda lab: set_link(lab.server, address="02:00:00:00:00:77"),
    "address": lambda lab: set_address(lab.server, "add", "10.99.0.1"),
    "no address": lambda lab: set_address(lab.client, "del", lab.client.address),
    "neighbour": lambda lab: add_neighbour(lab.client),
    "link": lambda lab: add_link(lab.server),
    "program": lambda lab: attach(lab.server),
    "offload": lambda lab: turn_gro_off(lab.client),
    "details": lambda lab: lab.note(port=1),
    "process": lambda lab: lab.spawn(lab.client, ["sleep", "60"]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_lab_that_a_test_has_changed_is_not_lent_again(change: Callable[[Lab], object]) -> None:
    with Labs() as labs:
        with labs.lent() as first:
            change(first)
        with labs.lent() as second:
            assert second.lab_id != first.lab_id
        assert first.lab_id not in {lab.lab_id for lab in list_labs()}


def test_a_lab_is_lent_again_after_a_server_and_not_after_a_failure() -> None:
    with Labs() as labs:
        with labs.lent() as first, serving(first), client_of(first) as client:
            assert client.set("key", "value")
        with labs.lent(queues=2) as other, labs.lent() as second:
            assert second.lab_id == first.lab_id != other.lab_id
        with suppress(ArithmeticError), labs.lent() as second:
            assert second.lab_id == first.lab_id
            raise ArithmeticError
        with labs.lent() as third:
            assert third.lab_id != first.lab_id
    assert state_of(third) is None


def program_of(server: Server) -> int:
    assert server.attachment is not None
    return server.attachment.program_id


@pytest.mark.parametrize("design", ["lat", "dpu-only"])
def test_programs_are_used_again_with_blank_maps(lab: Lab, programs: Programs, design: str) -> None:
    loaded = []
    for _ in range(2):
        with serving(lab, design=design) as server, client_of(lab) as client:
            assert client.get("key") is None
            assert client.set("key", "value")
            assert server.counters()["requests_received"] == 2
            loaded.append(program_of(server))
    assert loaded[0] == loaded[1]
    with programs.bypassed(), serving(lab, design=design) as server:
        assert program_of(server) not in loaded
