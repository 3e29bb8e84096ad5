# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""YCSB workloads as arrays of prepared frames for the load generator.

All functions work on whole arrays, because a run prepares a million requests before its first
packet leaves. A *stream* is the sequence of operations and keys that the workload's definition asks
for; it is cut into packets without changing its order. Keys are ranks: key 0 is the hottest of a
Zipf distribution, unscrambled, as in MICA2's netbench.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.load.draws import U64, Distribution, Spacing, gaps_ns, key_ranks
from dpukv_xdp.native.hashing import hash_keys
from dpukv_xdp.topology.placement import owners_of_hashes
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import (
    BATCH_HEADER_BYTES,
    ETHERNET_MTU,
    KEY_LENGTH_SHIFT,
    NETWORK_HEADER_BYTES,
    Endpoint,
    check_lengths,
    ip_to_bytes,
    item_bytes,
    mac_to_bytes,
    payload_max,
)
from dpukv_xdp.wire.hashing import hash_key

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Workload:
    """A mix of operations."""

    name: str
    get_fraction: float
    """Share of GETs; the rest are SETs."""
    description: str


WORKLOADS = {
    "A": Workload("A", 0.50, "update heavy: half GET, half SET"),
    "B": Workload("B", 0.95, "read mostly: 95 % GET, 5 % SET"),
    "C": Workload("C", 1.00, "read only: GET"),
}
"""YCSB's core workloads A to C (Cooper et al., SoCC'10, table 2)."""

LOAD = Workload("load", 0.00, "the load phase: SET")

KEYS_MAX = 1 << 48
"""Most keys: well within the integers that a double, in which Zipf ranks are drawn, represents."""

STREAM_PACKETS_MIN, STREAM_PACKETS_MAX = 4096, 32768
"""Fewest and most packets after which the stream of requests repeats."""
KEY_DRAWS = 8
"""Times that the stream draws each key on average, if that takes no more packets. Many more would
take half a second to prepare, and teach nothing.
"""
CACHE_LINE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The load to prepare."""

    source: Endpoint
    destination: Endpoint
    """The server, with the port of engine 0; engine i listens on that port plus i."""
    workload: Workload
    keys: int
    """Keys in the store."""
    requests_per_packet: int
    """Most requests per packet; a packet is cut earlier if the next request or its response would
    not fit.
    """
    key_size: int = 8
    value_size: int = 8
    distribution: Distribution = "uniform"
    owners: tuple[int, ...] = (0,)
    """The engine of each partition; all requests of one packet belong to one engine."""
    seed: int = 1
    mtu: int = ETHERNET_MTU
    spacing: Spacing = "exponential"
    """Distribution of an open loop's gaps."""
    gap_mean_ns: float = 0.0
    """Mean time between packets of an open loop; 0 for a closed loop."""

    @property
    def engines(self) -> int:
        """Return the number of engines, and so of UDP ports."""
        return max(self.owners, default=-1) + 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """Counts of the frames and requests in the pool."""

    templates: int
    requests: int
    gets: int


def stream_packets(keys: int, requests_per_packet: int) -> int:
    """Return the packets after which a stream of requests for so many keys repeats."""
    wanted = -(-keys * KEY_DRAWS // requests_per_packet)
    return min(max(wanted, STREAM_PACKETS_MIN), STREAM_PACKETS_MAX)


def build_templates(plan: Plan, pool: npt.NDArray[np.void]) -> Prepared:
    """Fill the whole pool, an array of template_dtype(), in place with the plan's stream.

    The same plan gives the same bytes. Raises UsageError for a plan that cannot be sent.
    """
    _check_plan(plan)
    _check_pool(pool)
    request_max = len(pool) * plan.requests_per_packet
    key_seed, operation_seed, gap_seed = np.random.SeedSequence(plan.seed).spawn(3)
    keys = key_ranks(plan.distribution, plan.keys, request_max, np.random.default_rng(key_seed))
    is_get = np.random.default_rng(operation_seed).random(request_max) < plan.workload.get_fraction
    prepared = _fill(plan, pool, keys, is_get)
    pool["gap_ns"] = gaps_ns(
        plan.gap_mean_ns, plan.spacing, len(pool), np.random.default_rng(gap_seed)
    )
    return prepared


def template_room(frame_bytes_max: int) -> int:
    """Return the room for a prepared frame, in bytes, that makes templates fill cache lines."""
    frame_at = abi.offset("kv_template", "frame")
    room = -(-(frame_at + frame_bytes_max) // CACHE_LINE_BYTES) * CACHE_LINE_BYTES - frame_at
    return min(room, abi.KV_TEMPLATE_FRAME)


def template_dtype(room: int) -> np.dtype[np.void]:
    """Return the dtype of struct kv_template with `room` bytes for its frame."""
    full = abi.dtype("kv_template")
    fields = {name: (field, offset) for name, (field, offset, *_) in (full.fields or {}).items()}
    _, frame_at = fields.pop("frame")
    return np.dtype(
        {
            "names": [*fields, "frame"],
            "formats": [*(field for field, _ in fields.values()), (np.uint8, (room,))],
            "offsets": [*(offset for _, offset in fields.values()), frame_at],
            "itemsize": frame_at + room,
        }
    )


def frame_bytes_max(key_size: int, value_size: int, requests_per_packet: int) -> int:
    """Return the bytes of the longest frame with so many requests: all are SETs."""
    _, _, put, _ = _item_sizes(key_size, value_size)
    return NETWORK_HEADER_BYTES + BATCH_HEADER_BYTES + max(requests_per_packet, 1) * put


def load_templates(plan: Plan, pool: npt.NDArray[np.void], first_key: int = 0) -> Prepared:
    """Fill the pool in place with SETs of the plan's keys from `first_key` on, in order, as many
    per packet as fit.

    Ignores the plan's workload, distribution, seed and spacing. The result's `requests` is the
    number of keys taken: the next call continues at `first_key` plus that. The pool needs a
    template for each engine.
    """
    _check_plan(plan)
    _check_pool(pool)
    fit = requests_per_packet_max(plan.key_size, plan.value_size, LOAD, plan.mtu)
    while fit > 1 and frame_bytes_max(plan.key_size, plan.value_size, fit) > _room_of(pool):
        fit -= 1
    # Each engine's last packet may be partly filled: a template is kept for each engine but one.
    full_packets = len(pool) - plan.engines + 1
    if full_packets < 1:
        raise UsageError(f"{len(pool)} templates are too few for {plan.engines} engines: use more")
    count = min(plan.keys - first_key, full_packets * fit)
    if count < 1:
        raise UsageError(f"key {first_key} is not below the number of keys, {plan.keys}")
    keys = np.arange(first_key, first_key + count, dtype=np.uint64)
    pool["gap_ns"] = 0
    return _fill(plan, pool, keys, np.zeros(count, dtype=np.bool_), fit)


def requests_per_packet_max(
    key_size: int, value_size: int, workload: Workload, mtu: int = ETHERNET_MTU
) -> int:
    """Return the most requests for which neither the request frame nor the response frame, with
    every GET a hit, exceeds the MTU, KV_FRAME_MAX or KV_BATCH_MAX.

    For a mixed workload this is the mix that fits best; its other packets are cut earlier. Raises
    KeyValueError if no request fits.
    """
    check_lengths(key_size, value_size, mtu)
    room = payload_max(mtu) - BATCH_HEADER_BYTES
    get, get_hit, put, put_done = _item_sizes(key_size, value_size)

    def gets_beside(sets: int) -> int:
        """Return the GETs that fit beside so many SETs; negative if the SETs alone do not fit."""
        return min((room - sets * put) // get, (room - sets * put_done) // get_hit)

    if workload.get_fraction == 1:
        fit = gets_beside(0)
    elif workload.get_fraction == 0:
        fit = min(room // put, room // put_done)
    else:
        mixes = ((sets, gets_beside(sets)) for sets in range(abi.KV_BATCH_MAX + 1))
        fit = max(sets + gets for sets, gets in mixes if gets >= 0)
    return min(fit, abi.KV_BATCH_MAX)


# ---- Keys, values, operations, gaps --------------------------------------------------------------


def key_words(ranks: U64, key_size: int) -> U64:
    """Return the keys of these ranks, as uint64 [ranks, words], zero padded.

    A key is its rank in 8 bytes, little endian, followed by a fixed filler; a key of fewer than 8
    bytes is the rank's low bytes.
    """
    words = np.empty((len(ranks), -(-key_size // 8)), dtype=np.uint64)
    words[:, 0] = ranks
    words[:, 1:] = KEY_FILLER_WORD
    if key_size % 8 and key_size > 8:
        words[:, -1] &= _low_bytes(key_size % 8)
    return words


def hash_words(words: U64, key_size: int) -> U64:
    """Return CityHash64 of the keys that `key_words` made."""
    if key_size == 8:
        return hash_keys(words[:, 0])
    return hash_keys(words.view(np.uint8)[:, :key_size])


def value_words(hashes: U64, value_size: int) -> U64:
    """Return the values of keys with these hashes, as uint64 [hashes, words], zero padded: see
    KV_LOAD_VALUE_WORD.
    """
    count = -(-value_size // 8)
    salts = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(abi.KV_LOAD_VALUE_SALT)
    words = hashes[:, np.newaxis] ^ salts
    if value_size % 8:
        words[:, -1] &= _low_bytes(value_size % 8)
    return words


def key_bytes(rank: int, key_size: int) -> bytes:
    """Return a key as the load generator writes it."""
    return key_words(np.array([rank], dtype=np.uint64), key_size).tobytes()[:key_size]


def value_bytes(key: bytes, value_size: int) -> bytes:
    """Return the value that the load generator stores under `key` and checks in every answer."""
    hashes = np.array([hash_key(key)], dtype=np.uint64)
    return value_words(hashes, value_size).tobytes()[:value_size]


KEY_FILLER_WORD = np.uint64(0x7965_6B2D_7661_6C75)
"""Every word of a key after its first: an arbitrary constant that reads well in a dump."""


def _low_bytes(count: int) -> np.uint64:
    """Return a mask of the first `count` bytes of a little-endian word."""
    return np.uint64((1 << (8 * count)) - 1)


# ---- From the stream to frames -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Packets:
    """A stream cut into packets: packet p holds the requests order[starts[p]:starts[p] + counts[p]]
    and goes to engines[p].
    """

    order: Indices | None
    """Positions in the stream, grouped by engine; None for 0, 1, 2, ..."""
    starts: Indices
    counts: Indices
    engines: Indices


def _fill(
    plan: Plan,
    pool: npt.NDArray[np.void],
    keys: U64,
    is_get: npt.NDArray[np.bool_],
    fit: int | None = None,
) -> Prepared:
    """Cut the stream and write its first packets, as many as fit the pool."""
    words = key_words(keys, plan.key_size)
    hashes = hash_words(words, plan.key_size)
    packets = _cut(plan, hashes, is_get, fit or plan.requests_per_packet, len(pool))
    taken = _positions(packets)
    words, hashes, is_get = words[taken], hashes[taken], is_get[taken]
    firsts = np.cumsum(packets.counts) - packets.counts
    request_bytes = np.where(is_get, *_item_sizes(plan.key_size, plan.value_size)[::2])
    ends = np.cumsum(request_bytes)
    begins = ends - request_bytes
    payload_bytes = BATCH_HEADER_BYTES + np.add.reduceat(request_bytes, firsts)
    if NETWORK_HEADER_BYTES + payload_bytes.max() > _room_of(pool):
        raise UsageError(
            f"templates of {_room_of(pool)} bytes are too short for {plan.requests_per_packet} "
            "requests per packet"
        )
    used = pool[: len(firsts)]
    used["frame_bytes"] = NETWORK_HEADER_BYTES + payload_bytes
    used["request_count"] = packets.counts
    used["get_count"] = np.add.reduceat(is_get, firsts, dtype=np.uint32)
    used["hash_sum"] = np.add.reduceat(hashes, firsts)
    used["reserved"] = 0
    _write_headers(plan, used, packets, payload_bytes)
    within = np.repeat(np.arange(len(firsts)) * pool.itemsize - begins[firsts], packets.counts)
    indices = np.arange(len(hashes)) - np.repeat(firsts, packets.counts)
    item_at = within + begins + (_FRAME_AT + abi.SIZE("kv_packet_header"))
    _write_items(plan, used, item_at // 8, indices, words, hashes, is_get)
    return Prepared(len(firsts), len(hashes), int(np.count_nonzero(is_get)))


def _cut(
    plan: Plan, hashes: U64, is_get: npt.NDArray[np.bool_], count_max: int, packet_max: int
) -> _Packets:
    """Cut the stream greedily into at most `packet_max` packets, in the order of their first
    requests; each has at most `count_max` requests of one engine.
    """
    engine_of = owners_of_hashes(plan.owners, hashes)
    order = None if plan.engines == 1 else np.argsort(engine_of, kind="stable")
    is_get = is_get if order is None else is_get[order]
    get, get_hit, put, put_done = _item_sizes(plan.key_size, plan.value_size)
    totals = [
        np.concatenate(([0], np.cumsum(np.where(is_get, *sizes))))
        for sizes in ((get, put), (get_hit, put_done))
        if count_max * max(sizes) > payload_max(plan.mtu) - BATCH_HEADER_BYTES
    ]
    sizes = np.bincount(engine_of, minlength=plan.engines)
    starts: list[int] = []
    counts: list[int] = []
    engines: list[int] = []
    begin = 0
    for engine, size in enumerate(sizes.tolist()):
        cuts = _cut_segment(totals, begin, begin + size, count_max, plan.mtu)
        starts += cuts[:-1]
        counts += np.diff(cuts).tolist()
        engines += [engine] * (len(cuts) - 1)
        begin += size
    first_requests = np.array(starts) if order is None else order[starts]
    chosen = np.argsort(first_requests, kind="stable")[:packet_max]
    return _Packets(
        order, np.array(starts)[chosen], np.array(counts)[chosen], np.array(engines)[chosen]
    )


def _cut_segment(
    totals: Sequence[Indices], begin: int, end: int, count_max: int, mtu: int
) -> list[int]:
    """Return the positions in begin..end at which packets begin, followed by `end`.

    `totals` are running sums of the bytes, of requests and of responses, that may fill a packet
    before it has `count_max` requests.
    """
    if not totals:
        return [*range(begin, end, count_max), end]
    room = payload_max(mtu) - BATCH_HEADER_BYTES
    views = [total.data for total in totals]
    cuts = [begin]
    while begin < end:
        stop = min(begin + count_max, end)
        for view in views:
            stop = bisect_right(view, view[begin] + room, begin, stop + 1) - 1
        cuts.append(stop)
        begin = stop
    return cuts


def _positions(packets: _Packets) -> Indices | slice:
    """Return the positions in the stream of the packets' requests, packet after packet."""
    total = int(packets.counts.sum())
    if packets.order is None:
        return slice(0, total)
    firsts = np.cumsum(packets.counts) - packets.counts
    places = np.arange(total) + np.repeat(packets.starts - firsts, packets.counts)
    positions: Indices = packets.order[places]
    return positions


def _item_sizes(key_size: int, value_size: int) -> tuple[int, int, int, int]:
    """Return the bytes on the wire of a GET, of its hit, of a SET, and of its response."""
    return (
        item_bytes(key_size, 0),
        item_bytes(0, value_size),
        item_bytes(key_size, value_size),
        item_bytes(0, 0),
    )


def _write_headers(
    plan: Plan, used: npt.NDArray[np.void], packets: _Packets, payload_bytes: Indices
) -> None:
    """Write Ethernet, IPv4 with a checksum, UDP without one, and the batch header into each
    template.
    """
    headers = np.zeros(len(used), dtype=abi.dtype("kv_packet_header"))
    headers["eth_destination"] = list(mac_to_bytes(plan.destination.mac))
    headers["eth_source"] = list(mac_to_bytes(plan.source.mac))
    headers["eth_type"] = _network_order(np.array(abi.KV_ETHERTYPE_IPV4))
    headers["ip_version_ihl"] = abi.KV_IP_VERSION_IHL
    headers["ip_total_length"] = _network_order(payload_bytes + abi.KV_UDP_BYTES + abi.KV_IP_BYTES)
    headers["ip_ttl"] = abi.KV_IP_TTL
    headers["ip_protocol"] = abi.KV_IP_PROTOCOL_UDP
    headers["ip_source"] = list(ip_to_bytes(plan.source.ip))
    headers["ip_destination"] = list(ip_to_bytes(plan.destination.ip))
    headers["udp_source_port"] = _network_order(np.array(plan.source.port))
    headers["udp_destination_port"] = _network_order(plan.destination.port + packets.engines)
    headers["udp_length"] = _network_order(payload_bytes + abi.KV_UDP_BYTES)
    headers["magic"] = abi.KV_MAGIC_REQUEST
    headers["request_count"] = packets.counts
    rows = headers.view(np.uint8).reshape(len(used), -1)
    ip_header = rows[:, abi.KV_ETH_BYTES : abi.KV_ETH_BYTES + abi.KV_IP_BYTES]
    headers["ip_checksum"] = _ipv4_checksums(ip_header)
    used["frame"][:, : rows.shape[1]] = rows


def _write_items(
    plan: Plan,
    used: npt.NDArray[np.void],
    item_at: Indices,
    indices: Indices,
    keys: U64,
    hashes: U64,
    is_get: npt.NDArray[np.bool_],
) -> None:
    """Write every request into its template.

    `item_at` counts 8-byte words from the pool's start; `indices` is the request's place in its
    packet, which becomes its opaque.
    """
    pool_words = used.view(np.uint64)
    get, put = _item_prototypes(plan.key_size, plan.value_size)
    for word in range(len(get)):
        content: Any = np.where(is_get, get[word], put[word])
        if word == _HASH_WORD:
            content = hashes
        elif word == _OPAQUE_WORD:
            content = content | indices.astype(np.uint64) << _OPAQUE_SHIFT
        pool_words[item_at + word] = content
    key_at = item_at + len(get)
    for word in range(keys.shape[1]):
        pool_words[key_at + word] = keys[:, word]
    is_set = ~is_get
    value_at = key_at[is_set] + keys.shape[1]
    values = value_words(hashes[is_set], plan.value_size)
    for word in range(values.shape[1]):
        pool_words[value_at + word] = values[:, word]


def _item_prototypes(key_size: int, value_size: int) -> tuple[U64, U64]:
    """Return the item headers of a GET and of a SET as words, with hash and opaque 0."""
    headers = np.zeros(2, dtype=abi.dtype("kv_item_header"))
    headers["operation"] = abi.Operation.GET, abi.Operation.SET
    headers["kv_length"] = np.array([0, value_size]) | key_size << KEY_LENGTH_SHIFT
    words = headers.view(np.uint64).reshape(2, -1)
    return words[0], words[1]


def _ipv4_checksums(ip_headers: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Return each row's checksum as it is in memory; a row is a header with a checksum of 0."""
    words = np.ascontiguousarray(ip_headers).view(">u2").astype(np.uint32)
    total = words.sum(axis=1)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return _network_order(~total & 0xFFFF)


def _network_order(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return numbers.astype(np.uint16).byteswap()


def _check_plan(plan: Plan) -> None:
    fit = requests_per_packet_max(plan.key_size, plan.value_size, plan.workload, plan.mtu)
    if not 1 <= plan.keys <= KEYS_MAX:
        raise UsageError(f"{plan.keys} keys are out of range: use 1 to {KEYS_MAX}")
    if plan.key_size < 8 and plan.keys > 256**plan.key_size:
        raise UsageError(
            f"keys of {plan.key_size} bytes tell only {256**plan.key_size} apart, not {plan.keys}: "
            f"use longer ones or fewer"
        )
    if not (
        1 <= len(plan.owners) <= abi.KV_PARTITIONS_MAX
        and min(plan.owners) >= 0
        and plan.engines <= abi.KV_ENGINES_MAX
    ):
        raise UsageError(
            f"{len(plan.owners)} partitions of {plan.engines} engines are out of range: use 1 to "
            f"{abi.KV_PARTITIONS_MAX} and 1 to {abi.KV_ENGINES_MAX}"
        )
    if plan.destination.port + plan.engines > 65536:
        raise UsageError(
            f"{plan.engines} engines from UDP port {plan.destination.port} on exceed 65535"
        )
    if not 1 <= plan.requests_per_packet <= fit:
        raise UsageError(
            f"{plan.requests_per_packet} requests per packet are out of range: with "
            f"keys of {plan.key_size} and values of {plan.value_size} bytes use 1 to {fit}"
        )


def _check_pool(pool: npt.NDArray[np.void]) -> None:
    if pool.dtype != template_dtype(_room_of(pool)) or not pool.flags.c_contiguous or not len(pool):
        raise TypeError(
            "the pool is a contiguous array of struct kv_template (template_dtype()), not empty"
        )


def _room_of(pool: npt.NDArray[np.void]) -> int:
    return int(pool.itemsize - _FRAME_AT)


_FRAME_AT = abi.offset("kv_template", "frame")
_HASH_WORD = abi.offset("kv_item_header", "key_hash") // 8
_OPAQUE_WORD = abi.offset("kv_item_header", "opaque") // 8
_OPAQUE_SHIFT = np.uint64(8 * (abi.offset("kv_item_header", "opaque") % 8))
