"""CityHash64 v1.1, native and in Python, against known answers and each other."""

import random
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.wire import hashing
from dpukv_xdp.wire.hashing import city_hash, hash_key

# Hashes of bytes 0, 1, 2, ... by length, from the reference implementation (PyPI's cityhash
# 0.4.10). The lengths are at the edges of the algorithm's length classes and of its 64-byte blocks.
KNOWN_ANSWERS = {
    0: 0x9AE16A3B2F90404F,
    1: 0xBE6056EDF5E94B54,
    2: 0xC2A04665ED038D75,
    3: 0x94A13D22E9EBA49A,
    4: 0x82BFFD898958E540,
    5: 0xB4BFA9E87732C149,
    7: 0xA2E0BFF20DB0A6A1,
    8: 0xAD5A13E1E8E93B98,
    9: 0x81371E150E4AD84F,
    12: 0x9FD5DF33AEFC3D7D,
    15: 0x862A51555943BD9D,
    16: 0x0EFD25A0A34156D4,
    17: 0xBBB6A6F8F20D1F1C,
    24: 0x3F3B313DCBD16EC7,
    31: 0xFBD950AF27EF6941,
    32: 0x1A9D8199972CDF49,
    33: 0x46E1378CBC22DABA,
    48: 0xC7099EAC443F4625,
    63: 0xAF30927A77ADA6EF,
    64: 0xE99AB80F5EC7DCA5,
    65: 0xAC589C990483DD2E,
    100: 0xA47FE83E60B34CC6,
    127: 0xEFD614390A7B1D95,
    128: 0x10B153630AF1F395,
    129: 0x46BE8F236F918770,
    191: 0x214EFE903049AAC9,
    192: 0xD5BA92662E2D5074,
    193: 0xE56476A1931C992A,
    254: 0xA794AE84547AAF93,
    255: 0x57466E1C585015B8,
    256: 0x0C693049D8C2C68D,
    1000: 0x20777F9F6DA5091E,
}

# Keys as 8-byte little-endian words, with the hashes that MICA2's own client sends for them.
MICA2_ANSWERS = {
    0: 0x14397A23417AF284,
    1: 0x523BE90BB03B5A61,
    2: 0x2E891E4437794289,
    3: 0x64C856FF72C54198,
    7: 0xBB1323C9C6D2080B,
    123456789: 0x6DF94947AC9062D8,
    201326591: 0x32AE36D845B1B723,
}


@pytest.mark.parametrize("key_bytes", KNOWN_ANSWERS)
def test_known_answer_of_each_length_class(key_bytes: int) -> None:
    key = bytes(i & 0xFF for i in range(key_bytes))
    assert lib.kv_hash(key, key_bytes) == KNOWN_ANSWERS[key_bytes]
    assert city_hash(key) == KNOWN_ANSWERS[key_bytes]


@pytest.mark.parametrize("key", MICA2_ANSWERS)
def test_known_answer_of_mica2_words(key: int) -> None:
    assert lib.kv_hash(key.to_bytes(8, "little"), 8) == MICA2_ANSWERS[key]


@given(st.integers(0, 300).flatmap(lambda size: st.binary(min_size=size, max_size=size)))
@example(b"\xff" * 64)
@example(b"\xff" * 255)
def test_python_hashes_as_c_does(key: bytes) -> None:
    assert city_hash(key) == lib.kv_hash(key, len(key)) == hash_key(key)


def test_without_the_native_core_keys_are_hashed_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dpukv_xdp._core._native", None)
    hashing._fastest.cache_clear()
    try:
        assert hashing._fastest() is city_hash
    finally:
        hashing._fastest.cache_clear()


def test_known_answer_of_mica2_texts() -> None:
    assert lib.kv_hash(b"hello", 5) == 0xB48BE5A931380CE8
    assert lib.kv_hash(b"helloworld12345", 15) == 0x1E1FBBD259BBB5C0


@pytest.mark.parametrize(
    ("key_bytes", "stride"), [(1, 1), (5, 8), (8, 8), (8, 32), (12, 16), (255, 256)]
)
def test_many_hashes_as_one_does(key_bytes: int, stride: int) -> None:
    count = 100
    keys = random.Random(key_bytes).randbytes(stride * count)
    hashes = ffi.new("uint64_t[]", count)
    lib.kv_hash_many(keys, stride, key_bytes, count, hashes)
    starts = range(0, stride * count, stride)
    assert list(hashes) == [lib.kv_hash(keys[i : i + key_bytes], key_bytes) for i in starts]


def test_many_writes_nothing_for_no_keys() -> None:
    hashes = ffi.new("uint64_t[]", [7])
    lib.kv_hash_many(b"", 8, 8, 0, hashes)
    assert hashes[0] == 7
