# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Frames that are not ours pass unchanged; malformed ones that are ours are dropped and counted
once, by cause. Neither is answered, reaches the queue pair, or affects the next packet.
"""

import os
from collections.abc import Callable, Iterator

import pytest
from bpf.harness import (
    CLIENT,
    CPU,
    HEADER_BYTES,
    ITEM_BYTES,
    OTHER_CPU,
    PORT,
    SERVER,
    Case,
    Dpu,
    PlayedEngine,
    Verdict,
    expected_replies,
    patched,
    reply_frame,
    request_frame,
    with_lengths_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether

from dpukv_xdp.base.errors import ProtocolError, TruncatedError
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Endpoint, Request
from dpukv_xdp.wire.layers import KVBatch, KVItem

pytestmark = pytest.mark.shares_cores

SHORTEST_RUN = abi.KV_ETH_BYTES
"""BPF_PROG_RUN refuses frames shorter than an Ethernet header, and no driver delivers them."""
PORTS_END = abi.offset("kv_packet_header", "udp_length") + abi.KV_VLAN_BYTES
"""Length from which a frame's UDP port is checked."""

GOOD = [Request.get(b"good key", 0x600D)]
BATCH = [
    Request.set(b"k" * 20, b"v" * 30, 1),
    Request.set(b"8 bytes!", b"12345678", 2),
    Request.get(b"8 bytes!", 3),
]
PLAIN = request_frame(BATCH)
TAGGED = request_frame(BATCH, vlan_tag=7)
GET = request_frame([Request.get(b"8 bytes!")])


def passed(name: str, packet: bytes) -> Case:
    return Case(name, packet, Verdict.PASS, counters={"PASSED": 1})


def dropped(name: str, packet: bytes, counter: str) -> Case:
    return Case(name, packet, Verdict.DROP, counters={f"DROP_{counter}": 1})


def assert_refused(dpu: Dpu, case: Case, engine: int = 0) -> None:
    """Assert the case's verdict and counters, an unchanged frame, nothing published, and that a
    good packet is served afterwards.
    """
    verdict, out = dpu.receive(case.packet)
    assert verdict == case.verdict
    assert out == case.packet
    assert dpu.counters() == case.counters
    assert not dpu.pairs["request_control"]["published"].any()
    assert dpu.in_flight(engine) == 0
    assert_serves(dpu)


def assert_serves(dpu: Dpu) -> None:
    """Assert that a good packet is answered."""
    replies = expected_replies({}, GOOD)
    assert dpu.receive(request_frame(GOOD))[0] == Verdict.DROP, "parked"
    PlayedEngine(dpu.pair()).answer(replies)
    assert dpu.flush() == (Verdict.TX, reply_frame(replies))


@pytest.fixture
def dpu(load: Callable[..., Dpu]) -> Dpu:
    return load()


# ---- Every wrong field ---------------------------------------------------------------------------


def wrong_fields(name: str, packet: bytes, vlan: bool) -> Iterator[Case]:
    """Yield packets with one wrong header field each."""

    def put(**fields: int) -> bytes:
        return patched(packet, vlan, **fields)

    length = len(packet) - abi.KV_ETH_BYTES - vlan * abi.KV_VLAN_BYTES
    for eth_type in (0, 0x0806, 0x86DD, 0x88A8, 0x0801, 0x0008):
        yield passed(f"{name}_eth_type_{eth_type:#06x}", put(eth_type=eth_type))
    for version_ihl in (0x46, 0x4F, 0x65, 0x55, 0x05):
        with_port = options_before_ports(packet, vlan, version_ihl)
        yield dropped(f"{name}_version_ihl_{version_ihl:#04x}", with_port, "IP_HEADER")
    for version_ihl in (0x40, 0x44, 0x46, 0x4F):  # the bytes after this header are not our port
        yield passed(f"{name}_no_port_{version_ihl:#04x}", put(ip_version_ihl=version_ihl))
    for protocol in (0, 1, 6, 16, 18, 132, 255):
        yield passed(f"{name}_protocol_{protocol}", put(ip_protocol=protocol))
    for fragment in (0x2000, 0x6000):
        yield dropped(f"{name}_fragment_{fragment:#06x}", put(ip_fragment=fragment), "FRAGMENT")
    for fragment in (0x0001, 0x0100, 0x1FFF, 0x2001, 0x3FFF):
        yield passed(f"{name}_fragment_{fragment:#06x}", put(ip_fragment=fragment))
    for wrong in (0, 20, length - 1, length + 1, length - 8, 0xFFFF):
        yield dropped(f"{name}_ip_length_{wrong}", put(ip_total_length=wrong), "IP_HEADER")
    length -= abi.KV_IP_BYTES
    for wrong in (0, 7, length - 1, length + 1, length - 8, 0xFFFF):
        yield dropped(f"{name}_udp_length_{wrong}", put(udp_length=wrong), "UDP_LENGTH")
    for port in (0, 1, PORT - 1, PORT + 1, 0xFFFF):
        yield passed(f"{name}_port_{port}", put(udp_destination_port=port))
    for magic in (0, abi.KV_MAGIC_REQUEST - 1, abi.KV_MAGIC_RESPONSE, 0xFF):
        yield dropped(f"{name}_magic_{magic:#04x}", put(magic=magic), "MAGIC")


def options_before_ports(packet: bytes, vlan: bool, version_ihl: int) -> bytes:
    """Return the packet with as many bytes of IP options as the header length says, so that our
    port follows them.
    """
    at = abi.KV_ETH_BYTES + vlan * abi.KV_VLAN_BYTES + abi.KV_IP_BYTES
    options = bytes([1]) * ((version_ihl & 0xF) * 4 - abi.KV_IP_BYTES)
    longer = packet[:at] + options + packet[at:]
    ip_bytes = len(longer) - at + abi.KV_IP_BYTES
    return patched(longer, vlan, ip_version_ihl=version_ihl, ip_total_length=ip_bytes)


FIELD_CASES = [
    *wrong_fields("plain", PLAIN, vlan=False),
    *wrong_fields("vlan", TAGGED, vlan=True),
    *wrong_fields("get", GET, vlan=False),
]


@pytest.mark.parametrize("case", FIELD_CASES, ids=lambda case: case.id)
def test_wrong_field(dpu: Dpu, case: Case) -> None:
    assert_refused(dpu, case)


def ether(*layers: object) -> bytes:
    """Return a frame made by scapy, with all lengths and checksums filled in."""
    frame = Ether(dst=SERVER.mac, src=CLIENT.mac)
    for layer in layers:
        frame /= layer
    return bytes(frame)


TO_US = IP(src=CLIENT.ip, dst=SERVER.ip)
OURS = UDP(sport=CLIENT.port, dport=PORT) / KVBatch(items=[KVItem.get(b"key")])
STACK_CASES = [
    passed("arp", ether(ARP(pdst=SERVER.ip))),
    passed("arp_padded", ether(ARP(pdst=SERVER.ip)).ljust(60, b"\0")),
    passed("ipv6", ether(IPv6(src="::1", dst="::2"), OURS)),
    passed("tcp_to_our_port", ether(TO_US, TCP(dport=PORT), b"data" * 20)),
    passed("icmp", ether(IP(dst=SERVER.ip, proto=1), b"\x08\0" + bytes(62))),
    passed("dns", ether(TO_US, UDP(sport=53, dport=53), b"query" * 20)),
    passed("two_tags", ether(Dot1Q(vlan=1), Dot1Q(vlan=2), TO_US, OURS)),
    passed("service_tag", ether(Dot1AD(vlan=1), TO_US, OURS)),
    passed("our_port_as_source", ether(TO_US, UDP(sport=PORT, dport=CLIENT.port), b"x" * 60)),
    dropped("options", ether(IP(dst=SERVER.ip, options=[IPOption_NOP()] * 4), OURS), "IP_HEADER"),
    dropped("ethernet_padding", ether(TO_US, OURS) + bytes(8), "IP_HEADER"),
]


@pytest.mark.parametrize("case", STACK_CASES, ids=lambda case: case.id)
def test_other_traffic(dpu: Dpu, case: Case) -> None:
    assert_refused(dpu, case)


# ---- Forged addresses


def from_client(**fields: int | bytes) -> bytes:
    """Return a good packet with other values in fields of its headers."""
    return patched(GET, **fields)


def from_ip(address: str) -> bytes:
    return from_client(ip_source=codec.ip_to_bytes(address))


NO_HOSTS = (
    *("0.0.0.0", "0.0.0.1", "0.255.255.255", "127.0.0.0", "127.0.0.1", "127.255.255.255"),
    *("224.0.0.0", "224.0.0.1", "239.255.255.255", "240.0.0.0", "255.255.255.255"),
)
HOSTS = ("1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255", "10.0.0.254", "10.0.1.255")
FORGED = [
    *(dropped(f"from_{address}", from_ip(address), "MARTIAN") for address in NO_HOSTS),
    dropped("from_our_address", from_ip(SERVER.ip), "MARTIAN"),
    dropped("from_our_broadcast", from_ip("10.0.0.255"), "MARTIAN"),
    dropped("from_our_port", from_client(udp_source_port=PORT), "MARTIAN"),
    dropped("from_our_last_port", from_client(udp_source_port=PORT + 1), "MARTIAN"),
    dropped("from_a_group", from_client(eth_source=b"\1\0\x5e\0\0\1"), "MARTIAN"),
    dropped("from_all", from_client(eth_source=b"\xff" * 6), "MARTIAN"),
    dropped("to_all", from_client(eth_destination=b"\xff" * 6), "FOREIGN_MAC"),
    dropped("to_a_group", from_client(eth_destination=b"\1\0\x5e\0\0\1"), "FOREIGN_MAC"),
    *(
        dropped(f"to_{octet}_of_another", from_client(eth_destination=other), "FOREIGN_MAC")
        for octet in range(6)
        for own in [codec.mac_to_bytes(SERVER.mac)]
        for other in [own[:octet] + bytes([own[octet] ^ 0x80]) + own[octet + 1 :]]
    ),
]


@pytest.fixture
def addressed(load: Callable[..., Dpu]) -> Dpu:
    """Return a server that knows its addresses, as on a real interface."""
    return load(engines=2, address=SERVER.ip, mac=SERVER.mac, broadcast="10.0.0.255")


@pytest.mark.parametrize("case", FORGED, ids=lambda case: case.id)
def test_no_answer_goes_to_a_forged_address(addressed: Dpu, case: Case) -> None:
    assert_refused(addressed, case)


@pytest.mark.parametrize("address", HOSTS)
def test_an_answer_goes_to_any_single_host(addressed: Dpu, address: str) -> None:
    assert addressed.receive(from_ip(address))[0] == Verdict.DROP
    assert addressed.in_flight() == 1


@pytest.mark.parametrize("port", [PORT - 1, PORT + 2, 0, 0xFFFF])
def test_an_answer_goes_to_any_port_that_is_not_ours(addressed: Dpu, port: int) -> None:
    assert addressed.receive(from_client(udp_source_port=port))[0] == Verdict.DROP
    assert addressed.in_flight() == 1


@pytest.mark.parametrize("address", NO_HOSTS)
def test_a_server_without_an_address_does_not_answer_from_a_group(
    load: Callable[..., Dpu], address: str
) -> None:
    packet = patched(GET, ip_destination=codec.ip_to_bytes(address))
    assert_refused(load(), dropped(address, packet, "MARTIAN"))


def test_our_address_only(load: Callable[..., Dpu]) -> None:
    """With KV_ADDRESS, packets to other addresses are not ours, however malformed."""
    dpu = load(address=SERVER.ip)
    others = ("10.0.0.3", "10.0.1.1", "11.0.0.1", "10.0.0.255", "255.255.255.255", "1.0.0.10")
    for ip in others:
        packet = request_frame(GOOD, server=Endpoint(SERVER.mac, ip, PORT))
        for case in (passed(ip, packet), passed(ip, patched(packet, magic=0))):
            dpu.reset()
            assert_refused(dpu, case)


def test_a_core_without_a_queue_pair(load: Callable[..., Dpu]) -> None:
    if OTHER_CPU == CPU:
        pytest.skip("a packet on another core needs two cores")
    dpu = load()
    try:
        os.sched_setaffinity(0, {OTHER_CPU})
        ours = dpu.receive(GET)
        malformed = dpu.receive(patched(GET, magic=0))
        not_ours = dpu.receive(patched(GET, ip_protocol=6))
    finally:
        os.sched_setaffinity(0, {CPU})
    assert [ours[0], malformed[0], not_ours[0]] == [Verdict.DROP, Verdict.DROP, Verdict.PASS]
    assert dpu.counters() == {"DROP_NO_QUEUE_PAIR": 2}
    assert dpu.in_flight() == 0
    assert_serves(dpu)


# ---- Items ---------------------------------------------------------------------------------------


def batch_of(*items: KVItem) -> bytes:
    return codec.encode_frame(CLIENT, SERVER, bytes(KVBatch(items=list(items))))


SOUND = KVItem.set(b"8 bytes!", b"12345678")
ITEM_CASES = [
    dropped("key_past_the_end", batch_of(KVItem.get(b"8 bytes!", key_length=9)), "TRUNCATED"),
    dropped("key_255", batch_of(KVItem.get(b"8 bytes!", key_length=255)), "TRUNCATED"),
    dropped("no_key_where_8_should_be", batch_of(KVItem(key_length=8)), "TRUNCATED"),
    dropped("no_value_where_8_should_be",
            batch_of(KVItem.set(b"8 bytes!", b"", value_length=8)), "TRUNCATED"),
    dropped("value_past_the_end",
            batch_of(KVItem.set(b"8 bytes!", b"12345678", value_length=9)), "TRUNCATED"),
    *(dropped(f"value_length_{length:#x}",
              batch_of(KVItem.set(b"k", b"v", value_length=length)), "TRUNCATED")
      for length in (abi.KV_VALUE_MAX, abi.KV_FRAME_MAX, abi.KV_FRAME_MAX + 1, 0x7FFFFF, 0xFFFFF8,
                     0xFFFFFF)),
    dropped("behind_a_sound_one",
            batch_of(SOUND, KVItem.set(b"k", b"v", value_length=17)), "TRUNCATED"),
    dropped("longest_key_and_value_lengths",
            batch_of(SOUND, KVItem(key_length=255, value_length=0xFFFFFF)), "TRUNCATED"),
]  # fmt: skip


def glued(*batches: list[Request]) -> bytes:
    """Return datagrams in one packet, as generic XDP gets them from a sender's kernel."""
    payload = b"".join(codec.encode_batch(batch) for batch in batches)
    return codec.encode_frame(CLIENT, SERVER, payload)


SUPER_CASES = [
    *(
        dropped(f"then_{operation.name.lower()}",
                glued([Request.get(b"8 bytes!")], [Request(operation, b"8 bytes!")]),
                "SUPER_PACKET")
        for operation in abi.Operation
    ),
    dropped("of_other_keys", glued(GOOD, GOOD), "SUPER_PACKET"),
    dropped("of_many", glued(*[[Request.get(b"8 bytes!")]] * 20), "SUPER_PACKET"),
    dropped("of_full_batches", glued(*[[Request.get(b"8 bytes!")] * 20] * 3), "SUPER_PACKET"),
]  # fmt: skip


@pytest.mark.parametrize("case", SUPER_CASES, ids=lambda case: case.id)
def test_several_datagrams_in_one_packet(dpu: Dpu, case: Case) -> None:
    assert_refused(dpu, case)


@pytest.mark.parametrize("case", ITEM_CASES, ids=lambda case: case.id)
def test_item_past_the_end(dpu: Dpu, case: Case) -> None:
    assert_refused(dpu, case)


# ---- Every truncation ----------------------------------------------------------------------------


def truncated(name: str, packet: bytes, vlan: bool) -> Iterator[Case]:
    """Yield the packet cut at each byte, with its original lengths and with lengths that match."""
    shortest = HEADER_BYTES + ITEM_BYTES + vlan * abi.KV_VLAN_BYTES
    for cut in range(SHORTEST_RUN, len(packet)):
        part = packet[:cut]
        fitted = with_lengths_of(part, vlan)
        if cut < PORTS_END:
            yield passed(f"{name}_{cut}", part)
            yield passed(f"{name}_{cut}_fitted", fitted)
        elif cut < shortest:
            yield dropped(f"{name}_{cut}", part, "FRAME_LENGTH")
            yield dropped(f"{name}_{cut}_fitted", fitted, "FRAME_LENGTH")
        else:
            yield dropped(f"{name}_{cut}", part, "IP_HEADER")
            if whole_requests(fitted) is None:
                yield dropped(f"{name}_{cut}_fitted", fitted, "TRUNCATED")


def whole_requests(frame: bytes) -> list[Request] | None:
    """Return the requests that the codec finds in a frame; None if one exceeds the frame."""
    try:
        return codec.decode_requests(codec.decode_frame(frame).payload)
    except TruncatedError:
        return None


TRUNCATED_CASES = [
    *truncated("plain", PLAIN, vlan=False),
    *truncated("vlan", TAGGED, vlan=True),
]


@pytest.mark.parametrize("case", TRUNCATED_CASES, ids=lambda case: case.id)
def test_truncated(dpu: Dpu, case: Case) -> None:
    assert_refused(dpu, case)


@pytest.mark.parametrize(("packet", "vlan"), [(PLAIN, False), (TAGGED, True)])
def test_cut_between_requests(dpu: Dpu, packet: bytes, vlan: bool) -> None:
    """A cut that leaves whole requests and a rest shorter than an item header: the requests are
    served and the rest is ignored.
    """
    cuts = 0
    for cut in range(HEADER_BYTES + ITEM_BYTES + vlan * abi.KV_VLAN_BYTES, len(packet)):
        fitted = with_lengths_of(packet[:cut], vlan)
        requests = whole_requests(fitted)
        if requests is None:
            continue
        cuts += 1
        dpu.reset()
        assert dpu.receive(fitted)[0] == Verdict.DROP, "parked"
        assert dpu.counters()["REQUESTS_RECEIVED"] == len(requests)
        replies = expected_replies({}, requests)
        PlayedEngine(dpu.pair()).answer(replies)
        tag = codec.decode_frame(packet).vlan_tag
        assert dpu.flush() == (Verdict.TX, reply_frame(replies, vlan_tag=tag))
    assert cuts == 2 * ITEM_BYTES


# ---- The XDP parser against the codec ------------------------------------------------------------


def test_parser_and_codec_agree_on_corrupted_packets(dpu: Dpu) -> None:
    """The parser serves exactly the packets that the codec accepts: with flipped bytes, cut and
    extended, with matching lengths or not.
    """

    @settings(max_examples=400, deadline=None, database=None)
    @given(
        st.sampled_from([PLAIN, TAGGED, GET]),
        st.lists(st.tuples(st.integers(12, 250), st.integers(0, 255)), max_size=3),
        st.one_of(st.just(0), st.integers(-40, 40)),
        st.booleans(),
    )
    def check(packet: bytes, flips: list[tuple[int, int]], longer: int, fitted: bool) -> None:
        frame = bytearray(packet[: len(packet) + min(longer, 0)] + b"\5" * max(longer, 0))
        for at, value in flips:
            frame[at % len(frame)] = value
        whole = bytes(frame)
        if fitted and len(whole) >= HEADER_BYTES + abi.KV_VLAN_BYTES:
            whole = with_lengths_of(whole, packet is TAGGED)
        dpu.reset()
        verdict, _ = dpu.receive(whole)
        requests = accepted(whole)
        counters = dpu.counters()
        assert counters.get("REQUESTS_RECEIVED", 0) == len(requests)
        assert dpu.in_flight() == int(dpu.pair()["request_control"]["published"]) == bool(requests)
        if not requests:
            assert sum(counters.values()) == 1
            assert (verdict == Verdict.PASS) == ("PASSED" in counters)

    check()


def accepted(frame: bytes) -> list[Request]:
    """Return the requests in a frame that a server must serve."""
    try:
        decoded = codec.decode_frame(frame)
        if decoded.destination.port != PORT or not is_from_a_client(decoded):
            return []
        return codec.decode_requests(decoded.payload)
    except ProtocolError:
        return []


def is_from_a_client(frame: codec.Frame) -> bool:
    """Return whether a frame's addresses are those of single hosts, and of two."""
    ends = (frame.source, frame.destination)
    return (
        not int(frame.source.mac[:2], 16) & 1
        and frame.source.ip != frame.destination.ip
        and all(0 < int(end.ip.split(".")[0]) < 224 for end in ends)
        and not any(end.ip.startswith("127.") for end in ends)
        and frame.source.port != PORT
    )
