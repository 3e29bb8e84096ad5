"""The native store against a dict that knows the two legal ways of losing an item.

A cache may lose an item only because the log has overwritten it, or because it was the oldest of a
full bucket when a new key needed the place. Both follow from sizes alone, so the model below tells
exactly which keys must be found. A lossless store must find them all. An inline store may also lose
an item of a line, to a new key whose group of lines is full.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.patience import patient
from dpukv_xdp.topology import sizing
from dpukv_xdp.wire import abi

BUCKET_BYTES = 128
BUCKET_WAYS = 15
SMALL_LOG_BYTES = 1 << 14
CACHE, LOSSLESS, INLINE = lib.KV_STORE_CACHE, lib.KV_STORE_LOSSLESS, lib.KV_STORE_INLINE
KINDS = pytest.mark.parametrize(
    "kind", [CACHE, LOSSLESS, INLINE], ids=["cache", "lossless", "inline"]
)
HANDLES = pytest.mark.parametrize("handles", [1, 2], ids=["exclusive", "shared"])
NEVER = 65536  # move_to_head
BLOCK_HEADER_BYTES = 8
LINE_BYTES, LINE_ITEMS, GROUP_LINES, ITEMS_PER_8_LINES = 64, 3, 8, 14
SHORT = 8
"""Most bytes of a key, and of a value, that an inline store keeps in a line."""


def make_options(
    item_count: int,
    log_bytes: int,
    kind: int = CACHE,
    move_to_head: int = NEVER,
    want_huge: int = 0,
) -> Any:
    options = ffi.new("struct kv_store_options *")
    options.item_count, options.log_bytes = item_count, log_bytes
    options.kind, options.move_to_head, options.want_huge = kind, move_to_head, want_huge
    return options


class Store:
    """A native store with its functions as methods."""

    def __init__(self, item_count: int, log_bytes: int, handles: int = 1, **options: int) -> None:
        """More than one handle puts the store into shared mode; `use` selects the handle."""
        self.handles = [lib.kv_store_create(make_options(item_count, log_bytes, **options))]
        if self.handles[0] == ffi.NULL:
            raise OSError(ffi.errno, "kv_store_create failed")
        self.use(0)
        self.room = ffi.new("uint8_t[]", abi.KV_VALUE_MAX)
        self.length = ffi.new("uint32_t *")
        for _ in range(1, handles):
            self.share()

    def share(self) -> None:
        shared = lib.kv_store_share(self.handle)
        if shared == ffi.NULL:
            raise OSError(ffi.errno, "kv_store_share failed")
        self.handles.append(shared)

    def use(self, handle: int) -> None:
        self.handle = self.handles[handle % len(self.handles)]

    def close(self) -> None:
        for handle in self.handles:
            lib.kv_store_destroy(handle)

    def set(self, key: bytes, value: bytes, key_hash: int | None = None) -> int:
        arguments = self.arguments(key, key_hash)
        return int(lib.kv_store_set(*arguments, value, len(value)))

    def add(self, key: bytes, value: bytes, key_hash: int | None = None) -> int:
        return int(lib.kv_store_add(*self.arguments(key, key_hash), value, len(value)))

    def test(self, key: bytes, key_hash: int | None = None) -> int:
        return int(lib.kv_store_test(*self.arguments(key, key_hash)))

    def delete(self, key: bytes, key_hash: int | None = None) -> int:
        return int(lib.kv_store_delete(*self.arguments(key, key_hash)))

    def increment(self, key: bytes, by: int, key_hash: int | None = None) -> tuple[int, int]:
        value = ffi.new("uint64_t *")
        result = lib.kv_store_increment(*self.arguments(key, key_hash), by, value)
        return int(result), int(value[0])

    def reset(self) -> None:
        lib.kv_store_reset(self.handle)

    def arguments(self, key: bytes, key_hash: int | None) -> tuple[Any, int, bytes, int]:
        key_hash = lib.kv_hash(key, len(key)) if key_hash is None else key_hash
        return self.handle, key_hash, key, len(key)

    def get(self, key: bytes, key_hash: int | None = None) -> bytes | None:
        """Return the value, or None if there is none; any other result fails the test."""
        result = self.get_result(key, abi.KV_VALUE_MAX, key_hash)
        if result == abi.KV_NOT_FOUND:
            return None
        assert result == abi.KV_SUCCESS
        return bytes(ffi.buffer(self.room, self.length[0]))

    def get_result(self, key: bytes, room_bytes: int, key_hash: int | None = None) -> int:
        arguments = self.arguments(key, key_hash)
        return int(lib.kv_store_get(*arguments, self.room, room_bytes, self.length))

    def stats(self) -> Any:
        """Return the counters of the handle in use."""
        stats = ffi.new("struct kv_store_stats *")
        lib.kv_store_get_stats(self.handle, stats)
        return SimpleNamespace(
            **{name: getattr(stats, name) for name, _ in ffi.typeof(stats).item.fields}
        )


@pytest.fixture
def store() -> Iterator[Store]:
    opened = Store(item_count=64, log_bytes=SMALL_LOG_BYTES)
    yield opened
    opened.close()


@pytest.fixture(
    params=[(kind, handles) for kind in (CACHE, LOSSLESS, INLINE) for handles in (1, 2)], ids=str
)
def any_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Yield a store of each kind, exclusive and shared."""
    kind, handles = request.param
    opened = Store(item_count=64, log_bytes=SMALL_LOG_BYTES, kind=kind, handles=handles)
    yield opened
    opened.close()


# ---- The model ---------------------------------------------------------------------------------


@dataclass
class ModelItem:
    """An item's expected position in the log, and its content."""

    bucket: int
    value: bytes
    offset: int
    value_capacity: int


@dataclass
class Model:
    """A dict that loses what a cache may lose: overwritten items, and a full bucket's oldest."""

    buckets: int
    log_bytes: int
    move_to_head: int = NEVER
    tail: int = 0
    items: dict[bytes, ModelItem] = field(default_factory=dict)
    evicted: int = 0
    moved: int = 0
    exact: ClassVar[bool] = True
    """Whether refusals follow from sizes alone."""

    def __post_init__(self) -> None:
        self.span = 1 << (self.log_bytes - 1).bit_length()

    def get(self, key: bytes) -> bytes | None:
        item = self.find(key)
        if item is None:
            return None
        self.move_item_to_head(key, item)
        return item.value

    def set(self, key: bytes, value: bytes, key_hash: int) -> int:
        old = self.find(key)
        if old and len(value) <= old.value_capacity:
            old.value = value
            return abi.KV_SUCCESS
        entry_bytes = lib.kv_store_entry_bytes(len(key), len(value))
        if entry_bytes > self.log_bytes:
            return abi.KV_INSUFFICIENT_SPACE
        offset = self.append(entry_bytes)
        bucket = (key_hash >> 16 & 0xFFFFFFFF) * self.buckets >> 32
        if not old:
            self.make_place(bucket)
        self.items[key] = ModelItem(bucket, value, offset, capacity_of(value))
        return abi.KV_SUCCESS

    def delete(self, key: bytes) -> int:
        found = self.find(key)
        self.items.pop(key, None)
        return abi.KV_SUCCESS if found else abi.KV_NOT_FOUND

    def find(self, key: bytes) -> ModelItem | None:
        item = self.items.get(key)
        return item if item and self.is_live(item) else None

    def append(self, entry_bytes: int) -> int:
        if self.tail % self.span + entry_bytes > self.log_bytes:
            self.tail = (self.tail // self.span + 1) * self.span
        self.tail += entry_bytes
        return self.tail - entry_bytes

    def make_place(self, bucket: int) -> None:
        live = [
            (item.offset, key)
            for key, item in self.items.items()
            if item.bucket == bucket and self.is_live(item)
        ]
        if len(live) == BUCKET_WAYS:
            del self.items[min(live)[1]]
            self.evicted += 1

    def move_item_to_head(self, key: bytes, item: ModelItem) -> None:
        age_bytes = self.tail - item.offset
        if item.offset // self.span < self.tail // self.span and self.tail % self.span < age_bytes:
            age_bytes -= self.span - self.log_bytes
        entry_bytes = lib.kv_store_entry_bytes(len(key), len(item.value))
        limit_bytes = self.log_bytes * self.move_to_head // NEVER
        if self.move_to_head < NEVER and age_bytes > max(limit_bytes, entry_bytes):
            item.offset = self.append(entry_bytes)
            item.value_capacity = capacity_of(item.value)
            self.moved += 1

    def is_live(self, item: ModelItem) -> bool:
        return self.tail - item.offset <= self.span

    def reset(self) -> None:
        self.items.clear()


@dataclass
class InlineModel(Model):
    """A cache's model for long items, and lines of short ones in groups."""

    lines: int = 0
    places: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """The key in a line's place."""
    victims: Counter[int] = field(default_factory=Counter)
    """Items that each line has lost to new keys."""

    def get(self, key: bytes) -> bytes | None:
        return self.items[key].value if self.is_short(key) else super().get(key)

    def set(self, key: bytes, value: bytes, key_hash: int) -> int:
        if len(key) <= SHORT and len(value) <= SHORT:
            if not self.is_short(key):
                self.put(key, (key_hash >> 16 & 0xFFFFFFFF) * self.lines >> 32)
            self.items[key] = ModelItem(-1, value, 0, SHORT)
            return abi.KV_SUCCESS
        short = self.items.pop(key) if self.is_short(key) else None
        result = super().set(key, value, key_hash)
        if result == abi.KV_SUCCESS:
            self.free(key)
        elif short:
            self.items[key] = short
        return result

    def put(self, key: bytes, home: int) -> None:
        group = [
            (home ^ distance, way) for distance in range(GROUP_LINES) for way in range(LINE_ITEMS)
        ]
        place = next((place for place in group if place not in self.places), None)
        if place is None:
            place = (home, self.victims[home] % LINE_ITEMS)
            self.victims[home] += 1
            del self.items[self.places[place]]
            self.evicted += 1
        self.places[place] = key

    def delete(self, key: bytes) -> int:
        self.free(key)
        return super().delete(key)

    def free(self, key: bytes) -> None:
        self.places = {place: other for place, other in self.places.items() if other != key}

    def reset(self) -> None:
        super().reset()
        self.places.clear()

    def is_short(self, key: bytes) -> bool:
        return key in self.items and self.items[key].bucket < 0

    def is_live(self, item: ModelItem) -> bool:
        return item.bucket < 0 or super().is_live(item)


class LosslessModel(Model):
    """A dict; whether an item fits depends on the allocator."""

    exact = False

    def set(self, key: bytes, value: bytes, key_hash: int) -> int:
        self.items[key] = ModelItem(0, value, 0, 0)
        return abi.KV_SUCCESS

    def get(self, key: bytes) -> bytes | None:
        return self.items[key].value if key in self.items else None

    def is_live(self, item: ModelItem) -> bool:
        return True

    def used_bytes(self) -> int:
        return sum(block_bytes(len(key), len(item.value)) for key, item in self.items.items())


def capacity_of(value: bytes) -> int:
    return max(8, (len(value) + 7) // 8 * 8)


def block_bytes(key_bytes: int, value_bytes: int) -> int:
    return int(lib.kv_store_entry_bytes(key_bytes, value_bytes)) + BLOCK_HEADER_BYTES


KEYS = st.one_of(
    st.integers(0, 40).map(lambda i: i.to_bytes(8, "little")),
    st.binary(min_size=1, max_size=3),
    st.binary(min_size=1, max_size=abi.KV_KEY_MAX),
)
VALUE_BYTES = st.one_of(
    st.integers(0, 24), st.integers(0, abi.KV_VALUE_MAX), st.just(abi.KV_VALUE_MAX)
)

# Masks of a key's hash: all bits; few tags; few buckets with few tags; one bucket and one tag, in
# two ways. Items then collide in every way that hashes can.
ALL_BITS = (1 << 64) - 1
HASH_MASKS = st.sampled_from([ALL_BITS, ALL_BITS - 0xFFFC, 3 << 46 | 3, 0xFFFF << 48, 0])


def pattern(value_bytes: int, seed: int) -> bytes:
    """Return a value that no other write uses, without zeros, so that padding shows."""
    return bytes((seed * 7 + i) % 255 + 1 for i in range(value_bytes))


class StoreMachine(RuleBasedStateMachine):
    """Run all operations on a small store; every answer must be the model's."""

    handles = 1

    @initialize(
        item_count=st.integers(1, 64),
        log_bytes=st.one_of(st.integers(6, 14).map(lambda i: 1 << i), st.integers(1, 1 << 14)),
        hash_mask=HASH_MASKS,
        move_to_head=st.sampled_from([0, 1 << 13, 1 << 15, NEVER - 1, NEVER]),
    )
    def create(self, item_count: int, log_bytes: int, hash_mask: int, move_to_head: int) -> None:
        self.store = Store(item_count, log_bytes, self.handles, move_to_head=move_to_head)
        stats = self.store.stats()
        assert stats.log_bytes == (log_bytes + 63) // 64 * 64
        self.model = Model(stats.index_bytes // BUCKET_BYTES, stats.log_bytes, move_to_head)
        self.hash_mask = hash_mask
        self.seeds = count()

    @rule(key=KEYS, value_bytes=VALUE_BYTES)
    def set(self, key: bytes, value_bytes: int) -> None:
        self.put(self.store.set, key, value_bytes)

    @rule(key=KEYS, value_bytes=VALUE_BYTES)
    def add(self, key: bytes, value_bytes: int) -> None:
        if self.model.find(key):
            too_large = lib.kv_store_entry_bytes(len(key), value_bytes) > self.model.log_bytes
            expected = abi.KV_INSUFFICIENT_SPACE if too_large else abi.KV_EXISTS
            assert self.store.add(key, bytes(value_bytes), self.hash(key)) == expected
        else:
            self.put(self.store.add, key, value_bytes)

    def put(self, operation: Callable[..., int], key: bytes, value_bytes: int) -> None:
        value = pattern(value_bytes, next(self.seeds))
        key_hash = self.hash(key)
        result = operation(key, value, key_hash)
        if self.model.exact:
            assert result == self.model.set(key, value, key_hash)
        elif result == abi.KV_SUCCESS:
            self.model.set(key, value, key_hash)
        else:
            self.check_refusal(result, key, value)

    def check_refusal(self, result: int, key: bytes, value: bytes) -> None:
        raise AssertionError

    @rule(first=st.integers(0, 40), keys=st.integers(1, 60), value_bytes=st.integers(0, 200))
    def set_many(self, first: int, keys: int, value_bytes: int) -> None:
        for i in range(first, first + keys):
            self.set(i.to_bytes(8, "little"), value_bytes)

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        assert self.store.get(key, self.hash(key)) == self.model.get(key)

    @rule(key=KEYS)
    def test(self, key: bytes) -> None:
        expected = abi.KV_SUCCESS if self.model.find(key) else abi.KV_NOT_FOUND
        assert self.store.test(key, self.hash(key)) == expected

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        assert self.store.delete(key, self.hash(key)) == self.model.delete(key)

    @precondition(lambda self: self.model.items)
    @rule(data=st.data(), keys=st.integers(1, 30))
    def delete_some(self, data: st.DataObject, keys: int) -> None:
        known = sorted(self.model.items)
        for key in data.draw(st.lists(st.sampled_from(known), max_size=keys, unique=True)):
            self.delete(key)

    @precondition(lambda self: self.model.items)
    @rule(data=st.data(), by=st.integers(0, (1 << 64) - 1))
    def increment(self, data: st.DataObject, by: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.items)))
        item = self.model.find(key)
        result, value = self.store.increment(key, by, self.hash(key))
        if item is None or len(item.value) != 8:
            assert (result, value) == (abi.KV_ERROR if item else abi.KV_NOT_FOUND, 0)
            return
        assert result == abi.KV_SUCCESS
        assert value == (int.from_bytes(item.value, "little") + by) % (1 << 64)
        item.value = value.to_bytes(8, "little")

    @rule(really=st.integers(0, 9))
    def reset(self, really: int) -> None:
        if really == 0:
            self.store.reset()
            self.model.reset()
            assert self.store.stats().count == 0

    @precondition(lambda self: self.model.items)
    @rule(data=st.data(), growth=st.integers(-9, 9))
    def resize(self, data: st.DataObject, growth: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.items)))
        value_bytes = len(self.model.items[key].value) + growth
        self.set(key, min(max(value_bytes, 0), abi.KV_VALUE_MAX))

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        for key in list(self.model.items):
            assert self.store.get(key, self.hash(key)) == self.model.get(key)
        stats = self.stats_of_all_handles()
        live = sum(self.model.is_live(item) for item in self.model.items.values())
        assert sum(each.set_evicted for each in stats) == self.model.evicted
        assert sum(each.move_to_head_performed for each in stats) == self.model.moved
        assert all(each.count >= live for each in stats)

    def stats_of_all_handles(self) -> list[Any]:
        stats = []
        for i in range(self.handles):
            self.store.use(i)
            stats.append(self.store.stats())
        return stats

    def hash(self, key: bytes) -> int:
        return int(lib.kv_hash(key, len(key))) & self.hash_mask

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


class InlineMachine(StoreMachine):
    """The same for an inline store."""

    @initialize(
        item_count=st.integers(1, 64),
        log_bytes=st.one_of(st.integers(6, 14).map(lambda i: 1 << i), st.integers(1, 1 << 14)),
        hash_mask=HASH_MASKS,
        move_to_head=st.sampled_from([0, 1 << 15, NEVER]),
    )
    def create(self, item_count: int, log_bytes: int, hash_mask: int, move_to_head: int) -> None:
        self.store = Store(
            item_count, log_bytes, self.handles, kind=INLINE, move_to_head=move_to_head
        )
        stats = self.store.stats()
        lines = -(-item_count * 8 // ITEMS_PER_8_LINES)
        lines = -(-lines // GROUP_LINES) * GROUP_LINES
        buckets = (stats.index_bytes - lines * LINE_BYTES) // BUCKET_BYTES
        self.model = InlineModel(buckets, stats.log_bytes, move_to_head, lines=lines)
        self.hash_mask = hash_mask
        self.seeds = count()


class SharedInlineMachine(InlineMachine):
    """The same for an inline store through two handles."""

    handles = 2

    @rule(handle=st.integers(0, 1))
    def change_handle(self, handle: int) -> None:
        self.store.use(handle)


class LosslessMachine(StoreMachine):
    """The same for a lossless store: no item is lost, and a refusal needs a reason."""

    model: LosslessModel

    @initialize(
        item_count=st.integers(1, 64),
        log_bytes=st.one_of(st.integers(1, 1 << 14), st.just(1 << 20)),
        hash_mask=HASH_MASKS,
    )
    def create(self, item_count: int, log_bytes: int, hash_mask: int) -> None:
        self.store = Store(item_count, log_bytes, self.handles, kind=LOSSLESS)
        self.model = LosslessModel(1, self.store.stats().log_bytes)
        self.hash_mask = hash_mask
        self.seeds = count()

    def check_refusal(self, result: int, key: bytes, value: bytes) -> None:
        assert result == abi.KV_INSUFFICIENT_SPACE
        # Blocks of many sizes leave holes, and every key of 17 buckets may be in one chain.
        needed_bytes = self.model.used_bytes() + block_bytes(len(key), len(value))
        assert needed_bytes > self.model.log_bytes // 4 or len(self.model.items) >= 17 * BUCKET_WAYS

    @invariant()
    def counts_exactly(self) -> None:
        assert self.store.stats().count == len(self.model.items)

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for key in list(self.model.items):
            self.delete(key)
        stats = self.store.stats()
        assert (stats.count, stats.overflow_buckets) == (0, 0)
        largest = min(stats.log_bytes - 8 - block_bytes(8, 8) + 8, abi.KV_VALUE_MAX)
        assert self.store.set(b"8 bytes.", bytes(largest)) == abi.KV_SUCCESS
        self.store.close()


class SharedStoreMachine(StoreMachine):
    """The same through two handles of one store in turn: the answers must not differ."""

    handles = 2

    @rule(handle=st.integers(0, 1))
    def change_handle(self, handle: int) -> None:
        self.store.use(handle)


class SharedLosslessMachine(LosslessMachine):
    """The same for a lossless store through two handles."""

    handles = 2

    @rule(handle=st.integers(0, 1))
    def change_handle(self, handle: int) -> None:
        self.store.use(handle)


TestStoreAgainstModel = StoreMachine.TestCase
TestStoreAgainstModel.settings = settings(
    max_examples=200,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSharedStoreAgainstModel = SharedStoreMachine.TestCase
TestSharedStoreAgainstModel.settings = TestStoreAgainstModel.settings
TestLosslessAgainstModel = LosslessMachine.TestCase
TestLosslessAgainstModel.settings = TestStoreAgainstModel.settings
TestSharedLosslessAgainstModel = SharedLosslessMachine.TestCase
TestSharedLosslessAgainstModel.settings = TestStoreAgainstModel.settings
TestInlineAgainstModel = InlineMachine.TestCase
TestInlineAgainstModel.settings = TestStoreAgainstModel.settings
TestSharedInlineAgainstModel = SharedInlineMachine.TestCase
TestSharedInlineAgainstModel.settings = TestStoreAgainstModel.settings


# ---- Limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key_bytes", [1, 2, 7, 8, 9, 15, 16, 17, abi.KV_KEY_MAX - 1, abi.KV_KEY_MAX]
)
@pytest.mark.parametrize(
    "value_bytes", [0, 1, 7, 8, 9, 16, 100, 1400, abi.KV_VALUE_MAX - 1, abi.KV_VALUE_MAX]
)
def test_lengths_are_exact(any_store: Store, key_bytes: int, value_bytes: int) -> None:
    """MICA2 returns right lengths for multiples of 8 only."""
    key, value = pattern(key_bytes, 1), pattern(value_bytes, 2)
    assert any_store.set(key, value) == abi.KV_SUCCESS
    assert any_store.get(key) == value
    assert any_store.test(key) == abi.KV_SUCCESS
    assert any_store.add(key, b"") == abi.KV_EXISTS
    assert any_store.delete(key) == abi.KV_SUCCESS
    assert any_store.get(key) is None
    assert any_store.add(key, value) == abi.KV_SUCCESS
    assert any_store.get(key) == value


@pytest.mark.parametrize("key_bytes", [0, abi.KV_KEY_MAX + 1])
def test_a_key_outside_the_limits_is_an_error(any_store: Store, key_bytes: int) -> None:
    key = b"k" * key_bytes
    assert any_store.set(key, b"value", key_hash=0) == abi.KV_ERROR
    assert any_store.add(key, b"value", key_hash=0) == abi.KV_ERROR
    assert any_store.test(key, key_hash=0) == abi.KV_ERROR
    assert any_store.delete(key, key_hash=0) == abi.KV_ERROR
    assert any_store.increment(key, 1, key_hash=0) == (abi.KV_ERROR, 0)
    assert any_store.get_result(key, abi.KV_VALUE_MAX, key_hash=0) == abi.KV_ERROR
    assert any_store.length[0] == 0
    assert any_store.stats().set_refused == 2


def test_a_value_over_the_limit_is_refused_and_changes_nothing(any_store: Store) -> None:
    any_store.set(b"key", b"before")
    too_long = b"v" * (abi.KV_VALUE_MAX + 1)
    assert any_store.set(b"key", too_long) == abi.KV_INSUFFICIENT_SPACE
    assert any_store.add(b"new", too_long) == abi.KV_INSUFFICIENT_SPACE
    assert any_store.get(b"key") == b"before"
    assert any_store.get(b"new") is None
    assert any_store.stats().set_refused == 2


def test_an_item_as_large_as_the_log_fits_and_a_larger_one_is_refused() -> None:
    store = Store(item_count=4, log_bytes=1024)
    largest = 1024 - lib.kv_store_entry_bytes(8, 8) + 8
    assert store.set(b"8 bytes.", pattern(largest, 1)) == abi.KV_SUCCESS
    assert store.get(b"8 bytes.") == pattern(largest, 1)
    assert store.set(b"8 bytes.", pattern(largest + 1, 2)) == abi.KV_INSUFFICIENT_SPACE
    assert store.get(b"8 bytes.") == pattern(largest, 1)
    store.close()


def test_a_get_with_too_little_room_copies_nothing_and_says_how_much(store: Store) -> None:
    store.set(b"key", b"123456789")
    ffi.memmove(store.room, b"untouched", 9)
    assert store.get_result(b"key", 8) == abi.KV_INSUFFICIENT_SPACE
    assert store.length[0] == 9
    assert bytes(ffi.buffer(store.room, 9)) == b"untouched"
    assert store.get_result(b"key", 9) == abi.KV_SUCCESS


@pytest.mark.parametrize(
    ("item_count", "log_bytes", "options"),
    [
        (0, 64, {}),
        (1, 0, {}),
        (1 << 40, 64, {}),
        (1, 1 << 60, {}),
        (1, 64, {"kind": lib.KV_STORE_KINDS}),
        (1, 64, {"move_to_head": NEVER + 1}),
    ],
)
def test_absurd_sizes_are_invalid(item_count: int, log_bytes: int, options: dict[str, int]) -> None:
    assert lib.kv_store_memory_bytes(make_options(item_count, log_bytes, **options)) == 0
    with pytest.raises(OSError, match="Errno 22"):
        Store(item_count, log_bytes, **options)


NO_MEMORY = """
import resource, sys
from dpukv_xdp._core._native import ffi, lib
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
options = ffi.new("struct kv_store_options *")
options.item_count, options.log_bytes, options.want_huge = 1, int(sys.argv[1]), 1
store = lib.kv_store_create(options)
sys.exit(0 if store == ffi.NULL and ffi.errno == 12 else 1)
"""


@pytest.mark.parametrize("log_bytes", [1 << 31, 1 << 46])
def test_memory_that_is_not_there_is_an_error(log_bytes: int) -> None:
    subprocess.run(
        [sys.executable, "-c", NO_MEMORY, str(log_bytes)], check=True, timeout=patient(30)
    )


# ---- Semantics ---------------------------------------------------------------------------------


def test_keys_that_differ_in_length_or_padding_only_are_different_keys(store: Store) -> None:
    keys = [b"a", b"a\0", b"a" + bytes(7), b"a" + bytes(8), b"a" + bytes(15), b"a" + bytes(16)]
    for i, key in enumerate(keys):
        store.set(key, b"%d" % i, key_hash=0)
    assert [store.get(key, key_hash=0) for key in keys] == [b"%d" % i for i in range(len(keys))]


@pytest.mark.parametrize("place", [0, 7, 8, 15, 16, 254])
def test_keys_that_differ_in_one_byte_are_different_keys(store: Store, place: int) -> None:
    key = bytes(255)
    other = key[:place] + b"x" + key[place + 1 :]
    store.set(key, b"value", key_hash=0)
    assert store.get(other, key_hash=0) is None


def test_the_whole_hash_must_match(store: Store) -> None:
    store.set(b"key", b"value", key_hash=1)
    assert store.get(b"key", key_hash=1 | 1 << 63) is None


def test_a_tag_of_zero_counts_as_one(store: Store) -> None:
    store.set(b"zero", b"0", key_hash=0)
    store.set(b"one", b"1", key_hash=1)
    assert (store.get(b"zero", key_hash=0), store.get(b"one", key_hash=1)) == (b"0", b"1")


def test_a_full_bucket_gives_up_its_oldest_item(store: Store) -> None:
    """MICA2 gives up the youngest instead."""
    keys = [b"key %d" % i for i in range(20)]
    for i, key in enumerate(keys):
        store.set(key, key, key_hash=i + 1)
    found = [store.get(key, key_hash=i + 1) for i, key in enumerate(keys)]
    assert found == [None] * 5 + keys[5:]
    assert store.stats().set_evicted == 5


def test_a_full_bucket_gives_up_the_item_written_longest_ago_not_the_first_word(
    store: Store,
) -> None:
    for i in range(BUCKET_WAYS):
        store.set(b"key %d" % i, b"small", key_hash=i + 1)
    store.set(b"key 0", b"larger than its place", key_hash=1)
    store.set(b"new", b"new", key_hash=99)
    assert store.get(b"key 0", key_hash=1) == b"larger than its place"
    assert store.get(b"key 1", key_hash=2) is None
    assert store.stats().set_moved == 1


def test_growth_in_place_leaves_the_neighbour_alone(any_store: Store) -> None:
    """MICA2 loses key 3 here."""
    store = any_store
    one, two, three = (i.to_bytes(8, "little") for i in (1, 2, 3))
    for key in (one, two, three):
        store.set(key, pattern(8, 1))
    store.set(one, pattern(16, 2))
    store.set(two, pattern(1000, 3))
    assert store.get(one) == pattern(16, 2)
    assert store.get(two) == pattern(1000, 3)
    assert store.get(three) == pattern(8, 1)


@pytest.mark.parametrize("value_bytes", range(33))
def test_an_item_grows_in_place_to_the_end_of_its_last_word_only(
    store: Store, value_bytes: int
) -> None:
    store.set(b"first", pattern(value_bytes, 1))
    store.set(b"second", pattern(8, 2))
    capacity = max(8, (value_bytes + 7) // 8 * 8)
    store.set(b"first", pattern(capacity, 3))
    assert store.stats().set_inplace == 1
    assert (store.get(b"first"), store.get(b"second")) == (pattern(capacity, 3), pattern(8, 2))
    store.set(b"first", pattern(capacity + 1, 4))
    assert store.stats().set_moved == 1
    assert (store.get(b"first"), store.get(b"second")) == (pattern(capacity + 1, 4), pattern(8, 2))


def test_overwriting_for_ever_loses_nothing(store: Store) -> None:
    keys = [i.to_bytes(8, "little") for i in range(64)]
    for turn in range(100):
        for key in keys:
            store.set(key, pattern(8, turn))
    assert all(store.get(key) == pattern(8, 99) for key in keys)
    stats = store.stats()
    assert (stats.count, stats.set_new, stats.set_inplace) == (64, 64, 64 * 99)


def test_the_log_keeps_exactly_its_last_lap() -> None:
    store = Store(item_count=1 << 12, log_bytes=1 << 12)
    held = (1 << 12) // lib.kv_store_entry_bytes(8, 8)
    keys = [i.to_bytes(8, "little") for i in range(5 * held + 3)]
    for key in keys:
        store.set(key, key)
    assert [store.get(key) for key in keys[-held:]] == keys[-held:]
    assert all(store.get(key) is None for key in keys[:-held])
    store.close()


def test_cleanup_drops_dead_words_within_a_lap() -> None:
    store = Store(item_count=2048, log_bytes=1 << 13)
    held = (1 << 13) // lib.kv_store_entry_bytes(8, 8)
    for i in range(20 * held):
        store.set(i.to_bytes(8, "little"), b"8 bytes.")
        assert store.stats().count <= 2 * held + 1
    stats = store.stats()
    assert stats.cleanup == stats.set_new - stats.count
    store.close()


@pytest.mark.parametrize("want_huge", [False, True])
def test_a_store_of_a_million_items_holds_them_all(want_huge: bool) -> None:
    items = 1 << 20
    store = Store(items, items * lib.kv_store_entry_bytes(8, 8), want_huge=want_huge)
    keys = ffi.new("uint64_t[]", list(range(items)))
    hashes = ffi.new("uint64_t[]", items)
    words = ffi.cast("uint8_t *", keys)
    lib.kv_hash_many(words, 8, 8, items, hashes)
    word = ffi.new("uint64_t *")
    value = ffi.cast("uint8_t *", word)
    for i in range(items):
        word[0] = ~i & 0xFFFF_FFFF
        lib.kv_store_set(store.handle, hashes[i], words + 8 * i, 8, value, 8)
    stats = store.stats()
    assert (stats.set_new, stats.set_evicted, stats.count) == (items, 0, items)
    assert stats.log_bytes == items * lib.kv_store_entry_bytes(8, 8)
    wrong = 0
    for i in range(items):
        lib.kv_store_get(store.handle, hashes[i], words + 8 * i, 8, value, 8, store.length)
        wrong += word[0] != ~i & 0xFFFF_FFFF
    assert wrong == 0
    assert store.stats().get_found == items
    store.close()


@pytest.mark.parametrize("log_bytes", [64, 128, 192, 1088, 4096, 4160, 6208, 8128])
@HANDLES
def test_a_log_of_any_length_holds_exactly_what_fits_for_many_laps(
    log_bytes: int, handles: int
) -> None:
    store = Store(item_count=1024, log_bytes=log_bytes, handles=handles)
    assert store.stats().log_bytes == log_bytes
    held = log_bytes // lib.kv_store_entry_bytes(8, 8)
    keys = [i.to_bytes(8, "little") for i in range(10 * held + 3)]
    for i, key in enumerate(keys):
        store.set(key, key)
        if i > len(keys) - 2 * held:
            kept = range(max(0, i + 1 - held), i + 1)
            assert all(store.get(keys[j]) == keys[j] for j in kept)
    assert all(store.get(key) is None for key in keys[:-held])
    store.close()


def test_cleanup_keeps_up_with_a_log_whose_span_is_much_longer() -> None:
    store = Store(item_count=2048, log_bytes=4096 + 64)
    held = (4096 + 64) // lib.kv_store_entry_bytes(8, 8)
    for i in range(20 * held):
        store.set(i.to_bytes(8, "little"), b"8 bytes.")
        assert store.stats().count <= 3 * held + 1
    store.close()


# ---- Operations --------------------------------------------------------------------------------


def test_an_increment_is_modulo_2_to_the_64th(any_store: Store) -> None:
    any_store.set(b"key", (5).to_bytes(8, "little"))
    assert any_store.increment(b"key", 7) == (abi.KV_SUCCESS, 12)
    assert any_store.increment(b"key", (1 << 64) - 13) == (abi.KV_SUCCESS, (1 << 64) - 1)
    assert any_store.increment(b"key", 1) == (abi.KV_SUCCESS, 0)
    assert any_store.get(b"key") == bytes(8)


@pytest.mark.parametrize("value_bytes", [0, 7, 9, 16])
def test_only_8_bytes_are_a_number(any_store: Store, value_bytes: int) -> None:
    any_store.set(b"key", pattern(value_bytes, 1))
    assert any_store.increment(b"key", 1) == (abi.KV_ERROR, 0)
    assert any_store.get(b"key") == pattern(value_bytes, 1)


def test_reset_forgets_everything_and_the_store_goes_on(any_store: Store) -> None:
    keys = [b"key %d" % i for i in range(200)]
    for turn in range(3):
        for key in keys:
            assert any_store.set(key, b"%d" % turn) == abi.KV_SUCCESS
        any_store.reset()
        assert [any_store.get(key) for key in keys] == [None] * len(keys)
        stats = any_store.stats()
        assert (stats.count, stats.overflow_buckets, stats.resets) == (0, 0, turn + 1)
    assert any_store.add(b"key 1", b"again") == abi.KV_SUCCESS


def test_a_deleted_word_leaves_the_others_a_prefix(any_store: Store) -> None:
    keys = [b"key %d" % i for i in range(BUCKET_WAYS)]
    for i, key in enumerate(keys):
        any_store.set(key, key, key_hash=i + 1)
    for gone in (0, 14, 7, 3):
        assert any_store.delete(keys[gone], key_hash=gone + 1) == abi.KV_SUCCESS
        assert any_store.delete(keys[gone], key_hash=gone + 1) == abi.KV_NOT_FOUND
    left = [i for i in range(BUCKET_WAYS) if i not in (0, 14, 7, 3)]
    assert [any_store.get(keys[i], key_hash=i + 1) for i in left] == [keys[i] for i in left]
    assert any_store.stats().count == len(left)


def test_every_counter_counts(any_store: Store) -> None:
    number = bytes(8)
    any_store.set(b"key", number)
    any_store.set(b"key", number)
    any_store.set(b"key", bytes(100))
    any_store.add(b"key", number)
    any_store.set(b"key", bytes(9))
    any_store.add(b"number", number)
    any_store.set(b"key", bytes(abi.KV_VALUE_MAX + 1))
    for key in (b"key", b"none"):
        any_store.get(key)
        any_store.test(key)
        any_store.increment(key, 1)
    any_store.increment(b"number", 1)
    any_store.delete(b"number")
    any_store.delete(b"number")
    stats = vars(any_store.stats())
    wanted = {
        "count": 1,
        "set_nooverwrite": 1,
        "set_new": 2,
        "set_inplace": 2,
        "set_moved": 1,
        "set_evicted": 0,
        "set_refused": 1,
        "get_found": 1,
        "get_notfound": 1,
        "test_found": 1,
        "test_notfound": 1,
        "increment_found": 2,
        "increment_notfound": 1,
        "delete_found": 1,
        "delete_notfound": 1,
        "resets": 0,
        "cleanup": 0,
        "move_to_head_performed": 0,
        "move_to_head_failed": 0,
        "overflow_buckets": 0,
    }
    assert {name: stats[name] for name in wanted} == wanted


@KINDS
@pytest.mark.parametrize("item_count", [1, 3, 4, 1000])
@pytest.mark.parametrize("log_bytes", [1, 63, 64, 65, 100_000, 1 << 21])
def test_the_memory_is_what_was_predicted(kind: int, item_count: int, log_bytes: int) -> None:
    store = Store(item_count, log_bytes, kind=kind)
    stats = store.stats()
    predicted = lib.kv_store_memory_bytes(make_options(item_count, log_bytes, kind))
    assert stats.index_bytes + stats.log_bytes == predicted
    store.close()


@KINDS
def test_sizes_beyond_32_bits_are_predicted(kind: int) -> None:
    predicted = lib.kv_store_memory_bytes(make_options(192 << 20, 12 << 30, kind))
    least = (20 if kind != INLINE else 26) << 30  # besides the lines, an index for all of the log
    assert least <= predicted <= least + (1 << 30)


def test_an_inline_store_takes_at_most_40_bytes_for_an_item_and_evicts_few() -> None:
    """The log, which no short item uses, has the least bytes for each item that it can have by
    default.
    """
    items = 200_000
    store = Store(items, int(items * sizing.INLINE_LOG_BYTES), kind=INLINE)
    for i in range(items):
        store.set(i.to_bytes(8, "little"), i.to_bytes(8, "big"))
    stats = store.stats()
    assert stats.index_bytes + stats.log_bytes <= 40 * items
    assert stats.count == items - stats.set_evicted
    assert stats.set_evicted < 0.005 * items
    found = sum(store.get(i.to_bytes(8, "little")) == i.to_bytes(8, "big") for i in range(items))
    assert found == stats.count
    store.close()


@HANDLES
def test_a_key_with_two_hashes_harms_no_other_key(handles: int) -> None:
    """The hash is the client's. A DELETE with another hash must not unmark a line that other keys
    are in.
    """
    store = Store(item_count=1, log_bytes=64, kind=INLINE, handles=handles)
    homes = [home << 45 for home in range(GROUP_LINES)]  # hash bits 16 to 47 choose the line
    store.set(b"home 3 a", b"", homes[3])
    for number in range(LINE_ITEMS + 1):  # the last one goes into line 3
        store.set(b"home 2 %d" % number, b"%d" % number, homes[2])
    store.set(b"home 3 b", b"", homes[3])
    store.set(b"stray", b"", homes[3])  # line 3 is full
    assert store.delete(b"stray", homes[2]) == abi.KV_NOT_FOUND
    assert store.delete(b"home 3 a", homes[2]) == abi.KV_NOT_FOUND
    for number in range(LINE_ITEMS + 1):
        assert store.get(b"home 2 %d" % number, homes[2]) == b"%d" % number
    assert store.delete(b"stray", homes[3]) == abi.KV_SUCCESS
    assert store.stats().set_evicted == 0
    store.close()


# ---- Move to head ------------------------------------------------------------------------------


@pytest.mark.parametrize("log_bytes", [4096, 4160, 6208])
@pytest.mark.parametrize(("move_to_head", "stays"), [(0, True), (NEVER // 2, True), (NEVER, False)])
@HANDLES
def test_hot_items_survive_churn_unless_the_log_is_a_fifo(
    log_bytes: int, move_to_head: int, stays: bool, handles: int
) -> None:
    store = Store(1024, log_bytes, handles, move_to_head=move_to_head)
    hot = [b"hot %d" % i for i in range(8)]
    for key in hot:
        store.set(key, key)
    for i in range(1000):
        store.set(i.to_bytes(8, "little"), b"cold")
        if i % 16 == 15:
            found = [store.get(key) for key in hot]
            if stays:
                assert found == hot
    assert all(key is not None for key in found) == stays
    stats = store.stats()
    assert (stats.move_to_head_performed > 0) == stays
    assert stats.get_found == stats.move_to_head_performed + stats.move_to_head_skipped
    store.close()


@HANDLES
def test_an_item_stays_while_it_is_near_the_head_and_moves_when_it_is_far(handles: int) -> None:
    store = Store(64, 1024, handles, move_to_head=NEVER // 2)
    store.set(b"hot", b"hot")
    for i in range(15):
        store.set(b"%d" % i, b"cold")
        store.get(b"hot")
    assert (store.stats().move_to_head_skipped, store.stats().move_to_head_performed) == (15, 0)
    store.set(b"15", b"cold")
    store.get(b"hot")
    assert (store.stats().move_to_head_skipped, store.stats().move_to_head_performed) == (15, 1)
    store.get(b"hot")
    assert (store.stats().move_to_head_skipped, store.stats().move_to_head_performed) == (16, 1)
    store.close()


def test_the_last_item_has_nowhere_to_go_and_one_that_fills_the_log_moves_onto_itself() -> None:
    store = Store(64, 1024, move_to_head=0)
    largest = 1024 - lib.kv_store_entry_bytes(8, 8) + 8
    store.set(b"8 bytes.", pattern(largest, 1))
    assert store.get(b"8 bytes.") == pattern(largest, 1)
    assert store.stats().move_to_head_performed == 0
    store.set(b"8 bytes.", pattern(300, 2))  # in place, so that it moves without its slack
    for _ in range(10):
        assert store.get(b"8 bytes.") == pattern(300, 2)
    assert store.stats().move_to_head_performed == 1
    store.close()


def test_a_reader_moves_nothing() -> None:
    store = Store(64, 1024, handles=2, move_to_head=0)
    for key in (b"hot", b"cold"):
        store.set(key, key)
    store.use(1)
    lib.kv_store_set_reader(store.handle, 1)
    assert store.get(b"hot") == b"hot"
    assert store.stats().move_to_head_performed == 0
    lib.kv_store_set_reader(store.handle, 0)
    assert store.get(b"hot") == b"hot"
    assert store.stats().move_to_head_performed == 1
    store.close()


# ---- Lossless ----------------------------------------------------------------------------------


def fill(store: Store, value_bytes: int) -> list[bytes]:
    """Store keys until there is no space for another; return them."""
    keys: list[bytes] = []
    while store.set(key := len(keys).to_bytes(8, "little"), pattern(value_bytes, len(keys))) == 0:
        keys.append(key)
    return keys


@pytest.mark.parametrize("value_bytes", [8, 100, 600, abi.KV_VALUE_MAX])
@HANDLES
def test_a_full_store_refuses_loses_nothing_and_has_its_memory_back(
    value_bytes: int, handles: int
) -> None:
    log_bytes = 1 << 16
    store = Store(4096, log_bytes, handles, kind=LOSSLESS)
    keys = fill(store, value_bytes)
    assert len(keys) == (log_bytes - 8) // block_bytes(8, value_bytes)
    assert store.set(keys[0], bytes(value_bytes + 8)) == abi.KV_INSUFFICIENT_SPACE
    for i, key in enumerate(keys):
        assert store.get(key) == pattern(value_bytes, i)
    assert (store.stats().count, store.stats().set_refused) == (len(keys), 2)
    for key in keys[::2] + keys[1::2]:
        assert store.delete(key) == abi.KV_SUCCESS
    largest = min(log_bytes - 64, abi.KV_VALUE_MAX)
    assert store.set(b"largest", bytes(largest)) == abi.KV_SUCCESS
    assert store.delete(b"largest") == abi.KV_SUCCESS
    assert fill(store, value_bytes) == keys
    store.close()


def test_an_8_byte_item_takes_at_most_48_bytes() -> None:
    store = Store(1024, 48 * 1000 + 64, kind=LOSSLESS)
    assert len(fill(store, 8)) >= 1000
    store.close()


@HANDLES
def test_a_shorter_value_gives_memory_back(handles: int) -> None:
    store = Store(64, 8192, handles, kind=LOSSLESS)
    keys = fill(store, 1000)
    for key in keys:
        assert store.set(key, pattern(8, 1)) == abi.KV_SUCCESS
    for i in range(100):
        assert store.set(b"more %d" % i, pattern(8, i)) == abi.KV_SUCCESS
    assert all(store.get(key) == pattern(8, 1) for key in keys)
    assert all(store.get(b"more %d" % i) == pattern(8, i) for i in range(100))
    store.close()


@HANDLES
def test_a_full_bucket_overflows_and_chains_shrink_again(handles: int) -> None:
    store = Store(1, 1 << 16, handles, kind=LOSSLESS)
    keys = [b"key %d" % i for i in range(100)]
    for i, key in enumerate(keys):
        assert store.set(key, key, key_hash=i) == abi.KV_SUCCESS
        assert store.stats().overflow_buckets == i // BUCKET_WAYS
    for i, key in reversed(list(enumerate(keys))):
        if i % 3:
            store.delete(key, key_hash=i)
    left = [i for i in range(100) if i % 3 == 0]
    assert [store.get(keys[i], key_hash=i) for i in left] == [keys[i] for i in left]
    assert store.stats().overflow_buckets == (len(left) - 1) // BUCKET_WAYS
    for i in left:
        store.delete(keys[i], key_hash=i)
    assert (store.stats().overflow_buckets, store.stats().count) == (0, 0)
    store.close()


@HANDLES
def test_no_overflow_bucket_left_is_no_space(handles: int) -> None:
    store = Store(1, 1 << 20, handles, kind=LOSSLESS)
    for turn in range(2):
        stored = 0
        while store.set(b"key %d" % stored, b"value", key_hash=stored) == abi.KV_SUCCESS:
            stored += 1
        buckets = store.stats().index_bytes // BUCKET_BYTES
        assert (stored, store.stats().overflow_buckets) == (buckets * BUCKET_WAYS, buckets - 1)
        assert store.stats().set_refused == turn + 1
        store.delete(b"key 7", key_hash=7)
        assert store.set(b"another", b"value", key_hash=1 << 60) == abi.KV_SUCCESS
        store.reset()
    assert store.stats().overflow_buckets == 0
    store.close()


# ---- Handles -----------------------------------------------------------------------------------


def test_a_store_in_use_can_be_shared_and_every_handle_sees_every_write() -> None:
    store = Store(item_count=64, log_bytes=SMALL_LOG_BYTES)
    store.set(b"before", b"exclusive")
    for _ in range(2):
        store.share()
    for i in range(3):
        store.use(i)
        assert store.set(b"key", b"%d" % i) == abi.KV_SUCCESS
        store.use(i + 1)
        assert (store.get(b"key"), store.get(b"before")) == (b"%d" % i, b"exclusive")
    store.close()


def test_each_handle_counts_its_own_operations_and_all_know_the_items() -> None:
    store = Store(item_count=64, log_bytes=SMALL_LOG_BYTES, handles=2)
    store.set(b"one", b"1")
    store.use(1)
    store.set(b"two", b"2")
    store.get(b"one")
    second = store.stats()
    store.use(0)
    first = store.stats()
    assert (first.set_new, first.get_found, first.count) == (1, 0, 2)
    assert (second.set_new, second.get_found, second.count) == (1, 1, 2)
    assert (first.index_bytes, first.log_bytes) == (second.index_bytes, second.log_bytes)
    store.close()


def test_the_store_lives_as_long_as_one_handle_and_a_place_given_back_can_be_taken() -> None:
    store = Store(item_count=64, log_bytes=SMALL_LOG_BYTES, handles=abi.KV_ENGINES_MAX)
    store.set(b"key", b"value")
    with pytest.raises(OSError, match="Errno 28"):
        store.share()
    for place in (0, 3):
        lib.kv_store_destroy(store.handles.pop(place))
    store.use(5)
    store.share()
    store.use(-1)
    assert store.get(b"key") == b"value"
    while len(store.handles) > 1:
        lib.kv_store_destroy(store.handles.pop(0))
    store.use(0)
    assert store.get(b"key") == b"value"
    store.close()


# ---- Memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("want_huge", [False, True])
@pytest.mark.parametrize("size_bytes", [1, 4096, (1 << 21) - 1, 1 << 21, (1 << 21) + 1, 5 << 20])
def test_memory_is_zeroed_aligned_and_present(size_bytes: int, want_huge: bool) -> None:
    pages = ffi.new("int *", -1)
    memory = lib.kv_memory_map(size_bytes, want_huge, pages)
    assert memory != ffi.NULL
    assert pages[0] in (lib.KV_PAGES_SMALL, lib.KV_PAGES_TRANSPARENT, lib.KV_PAGES_HUGE)
    if size_bytes >= 1 << 21:
        assert int(ffi.cast("uintptr_t", memory)) % (1 << 21) == 0
    assert bytes(ffi.buffer(memory, size_bytes)) == bytes(size_bytes)
    ffi.memmove(memory, b"\xff" * size_bytes, size_bytes)
    lib.kv_memory_unmap(memory, size_bytes)


@pytest.mark.parametrize("size_bytes", [0, (1 << 64) - 1, 1 << 62])
def test_memory_of_no_or_impossible_size_is_an_error(size_bytes: int) -> None:
    assert lib.kv_memory_map(size_bytes, False, ffi.new("int *")) == ffi.NULL
    assert ffi.errno in (12, 22)
