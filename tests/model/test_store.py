"""The native store against a dict that knows the two legal ways of losing an item.

An item may be gone only because the log has come round to it, or because it was the oldest of a
full bucket when a new key needed the place. Both follow from sizes alone, so the model below says
exactly which keys must be found.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dpukv_xdp import abi
from dpukv_xdp._core._native import ffi, lib

BUCKET_BYTES = 128
BUCKET_WAYS = 15
SMALL_LOG_BYTES = 1 << 14


class Store:
    """A native store, with the calls as Python methods."""

    def __init__(
        self, item_count: int, log_bytes: int, want_huge: bool = False, handles: int = 1
    ) -> None:
        """More than one handle puts the store into shared mode; `use` chooses among them."""
        self.handles = [lib.kv_store_create(item_count, log_bytes, want_huge)]
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
        key_hash = lib.kv_hash(key, len(key)) if key_hash is None else key_hash
        return int(lib.kv_store_set(self.handle, key_hash, key, len(key), value, len(value)))

    def get(self, key: bytes, key_hash: int | None = None) -> bytes | None:
        """The value, or None if there is none; any other result fails the test."""
        result = self.get_result(key, abi.KV_VALUE_MAX, key_hash)
        if result == abi.KV_NOT_FOUND:
            return None
        assert result == abi.KV_SUCCESS
        return bytes(ffi.buffer(self.room, self.length[0]))

    def get_result(self, key: bytes, room_bytes: int, key_hash: int | None = None) -> int:
        key_hash = lib.kv_hash(key, len(key)) if key_hash is None else key_hash
        return int(
            lib.kv_store_get(
                self.handle, key_hash, key, len(key), self.room, room_bytes, self.length
            )
        )

    def stats(self) -> Any:
        """Of the handle in use."""
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


# ---- The model ---------------------------------------------------------------------------------


@dataclass
class ModelItem:
    """Where an item must lie, and what it holds."""

    bucket: int
    value: bytes
    offset: int
    value_capacity: int


@dataclass
class Model:
    """A dict that forgets what the store may: behind the log's head, or a full bucket's oldest."""

    buckets: int
    log_bytes: int
    tail: int = 0
    items: dict[bytes, ModelItem] = field(default_factory=dict)
    evicted: int = 0

    def get(self, key: bytes) -> bytes | None:
        item = self.items.get(key)
        return item.value if item and self.is_live(item) else None

    def set(self, key: bytes, value: bytes, key_hash: int) -> int:
        old = self.items.get(key)
        if old and self.is_live(old) and len(value) <= old.value_capacity:
            old.value = value
            return abi.KV_SUCCESS
        entry_bytes = lib.kv_store_entry_bytes(len(key), len(value))
        if entry_bytes > self.log_bytes:
            return abi.KV_INSUFFICIENT_SPACE
        was_live = old is not None and self.is_live(old)
        offset = self.append(entry_bytes)
        bucket = (key_hash >> 16 & 0xFFFFFFFF) * self.buckets >> 32
        if not was_live:
            self.make_place(bucket)
        self.items[key] = ModelItem(bucket, value, offset, max(8, (len(value) + 7) // 8 * 8))
        return abi.KV_SUCCESS

    def append(self, entry_bytes: int) -> int:
        left_bytes = -self.tail % self.log_bytes
        if left_bytes and entry_bytes > left_bytes:
            self.tail += left_bytes
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

    def is_live(self, item: ModelItem) -> bool:
        return self.tail - item.offset <= self.log_bytes


KEYS = st.one_of(
    st.integers(0, 40).map(lambda i: i.to_bytes(8, "little")),
    st.binary(min_size=1, max_size=3),
    st.binary(min_size=1, max_size=abi.KV_KEY_MAX),
)
VALUE_BYTES = st.one_of(
    st.integers(0, 24), st.integers(0, abi.KV_VALUE_MAX), st.just(abi.KV_VALUE_MAX)
)

# What is left of a key's hash: all; few tags; few buckets with few tags; one bucket and one tag, in
# two ways. Items then collide in every way that hashes can.
ALL_BITS = (1 << 64) - 1
HASH_MASKS = st.sampled_from([ALL_BITS, ALL_BITS - 0xFFFC, 3 << 46 | 3, 0xFFFF << 48, 0])


def pattern(value_bytes: int, seed: int) -> bytes:
    """A value that no other write has, without zeros: padding shows."""
    return bytes((seed * 7 + i) % 255 + 1 for i in range(value_bytes))


class StoreMachine(RuleBasedStateMachine):
    """Sets and gets in a small store; every answer must be the model's."""

    handles = 1

    @initialize(item_count=st.integers(1, 64), log_shift=st.integers(6, 14), hash_mask=HASH_MASKS)
    def create(self, item_count: int, log_shift: int, hash_mask: int) -> None:
        self.store = Store(item_count, 1 << log_shift, handles=self.handles)
        stats = self.store.stats()
        self.model = Model(stats.index_bytes // BUCKET_BYTES, stats.log_bytes)
        self.hash_mask = hash_mask
        self.seeds = count()

    @rule(key=KEYS, value_bytes=VALUE_BYTES)
    def set(self, key: bytes, value_bytes: int) -> None:
        value = pattern(value_bytes, next(self.seeds))
        key_hash = self.hash(key)
        assert self.store.set(key, value, key_hash) == self.model.set(key, value, key_hash)

    @rule(first=st.integers(0, 40), keys=st.integers(1, 60), value_bytes=st.integers(0, 200))
    def set_many(self, first: int, keys: int, value_bytes: int) -> None:
        for i in range(first, first + keys):
            self.set(i.to_bytes(8, "little"), value_bytes)

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        assert self.store.get(key, self.hash(key)) == self.model.get(key)

    @precondition(lambda self: self.model.items)
    @rule(data=st.data(), growth=st.integers(-9, 9))
    def resize(self, data: st.DataObject, growth: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.items)))
        value_bytes = len(self.model.items[key].value) + growth
        self.set(key, min(max(value_bytes, 0), abi.KV_VALUE_MAX))

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        for key in self.model.items:
            assert self.store.get(key, self.hash(key)) == self.model.get(key)
        stats = self.stats_of_all_handles()
        live = sum(self.model.is_live(item) for item in self.model.items.values())
        assert sum(each.set_evicted for each in stats) == self.model.evicted
        assert all(each.items_estimate >= live for each in stats)

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


class SharedStoreMachine(StoreMachine):
    """The same through two handles of one store in turn: nobody can tell the difference."""

    handles = 2

    @rule(handle=st.integers(0, 1))
    def change_handle(self, handle: int) -> None:
        self.store.use(handle)


TestStoreAgainstModel = StoreMachine.TestCase
TestStoreAgainstModel.settings = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSharedStoreAgainstModel = SharedStoreMachine.TestCase
TestSharedStoreAgainstModel.settings = TestStoreAgainstModel.settings


# ---- Limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key_bytes", [1, 2, 7, 8, 9, 15, 16, 17, abi.KV_KEY_MAX - 1, abi.KV_KEY_MAX]
)
@pytest.mark.parametrize(
    "value_bytes", [0, 1, 7, 8, 9, 16, 100, 1400, abi.KV_VALUE_MAX - 1, abi.KV_VALUE_MAX]
)
def test_lengths_are_exact(store: Store, key_bytes: int, value_bytes: int) -> None:
    key, value = pattern(key_bytes, 1), pattern(value_bytes, 2)
    assert store.set(key, value) == abi.KV_SUCCESS
    assert store.get(key) == value


@pytest.mark.parametrize("key_bytes", [0, abi.KV_KEY_MAX + 1])
def test_a_key_outside_the_limits_is_an_error(store: Store, key_bytes: int) -> None:
    key = b"k" * key_bytes
    assert store.set(key, b"value", key_hash=0) == abi.KV_ERROR
    assert store.get_result(key, abi.KV_VALUE_MAX, key_hash=0) == abi.KV_ERROR
    assert store.length[0] == 0
    assert store.stats().set_refused == 1


def test_a_value_over_the_limit_is_refused_and_changes_nothing(store: Store) -> None:
    store.set(b"key", b"before")
    assert store.set(b"key", b"v" * (abi.KV_VALUE_MAX + 1)) == abi.KV_INSUFFICIENT_SPACE
    assert store.get(b"key") == b"before"


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
    ("item_count", "log_bytes"), [(0, 64), (1, 0), (1 << 40, 64), (1, 1 << 60)]
)
def test_absurd_sizes_are_invalid(item_count: int, log_bytes: int) -> None:
    with pytest.raises(OSError, match="Errno 22"):
        Store(item_count, log_bytes)


NO_MEMORY = """
import resource, sys
from dpukv_xdp._core._native import ffi, lib
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
store = lib.kv_store_create(1, int(sys.argv[1]), 1)
sys.exit(0 if store == ffi.NULL and ffi.errno == 12 else 1)
"""


@pytest.mark.parametrize("log_bytes", [1 << 31, 1 << 46])
def test_memory_that_is_not_there_is_an_error(log_bytes: int) -> None:
    subprocess.run([sys.executable, "-c", NO_MEMORY, str(log_bytes)], check=True, timeout=30)


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


def test_growth_in_place_leaves_the_neighbour_alone(store: Store) -> None:
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
    assert store.stats().set_in_place == 1
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
    assert (stats.items_estimate, stats.set_new, stats.set_in_place) == (64, 64, 64 * 99)


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
        assert store.stats().items_estimate <= 2 * held + 1
    stats = store.stats()
    assert stats.cleanup == stats.set_new - stats.items_estimate
    store.close()


@pytest.mark.parametrize("want_huge", [False, True])
def test_a_store_of_a_million_items_holds_them_all(want_huge: bool) -> None:
    items = 1 << 20
    store = Store(items, items * lib.kv_store_entry_bytes(8, 8), want_huge)
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
    assert (stats.set_new, stats.set_evicted, stats.items_estimate) == (items, 0, items)
    assert stats.log_bytes == items * lib.kv_store_entry_bytes(8, 8)
    wrong = 0
    for i in range(items):
        lib.kv_store_get(store.handle, hashes[i], words + 8 * i, 8, value, 8, store.length)
        wrong += word[0] != ~i & 0xFFFF_FFFF
    assert wrong == 0
    assert store.stats().get_found == items
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
    assert (first.set_new, first.get_found, first.items_estimate) == (1, 0, 2)
    assert (second.set_new, second.get_found, second.items_estimate) == (1, 1, 2)
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
