# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""CityHash64 v1.1 of a key: the hash that MICA2 clients put on the wire.

`_core/hash.c` is the same in C, and is used where the native core is installed. A client without it
hashes in Python.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module

from dpukv_xdp.base.errors import MissingError

_K0 = 0xC3A5C85C97CB3127
_K1 = 0xB492B66FBE98F273
_K2 = 0x9AE16A3B2F90404F
_K_MUL = 0x9DDFEA08EB382D69
_MASK = 0xFFFFFFFFFFFFFFFF


def hash_key(key: bytes) -> int:
    """Return the hash of a key: natively where possible."""
    return _fastest()(key)


def city_hash(key: bytes) -> int:
    """Return the hash of a key, computed in Python."""
    key_bytes = len(key)
    if key_bytes == 0:
        return _K2
    if key_bytes <= 16:
        return _hash_1_to_16(key, key_bytes)
    if key_bytes <= 32:
        return _hash_17_to_32(key, key_bytes)
    if key_bytes <= 64:
        return _hash_33_to_64(key, key_bytes)
    return _hash_over_64(key, key_bytes)


@cache
def _fastest() -> Callable[[bytes], int]:
    """Look for the native core at the first key only, so that an import does not load it, and by
    its name: this layer works without.
    """
    try:
        native = import_module("dpukv_xdp._core._native").lib.kv_hash
    except (ImportError, MissingError):  # not built, or its libraries have gone
        return city_hash

    def hash_natively(key: bytes) -> int:
        return int(native(key, len(key)))

    return hash_natively


# ---- Mixing: steps and length classes as in hash.c, modulo 2^64 ----------------------------------


def _word(key: bytes, start: int, size: int = 8) -> int:
    return int.from_bytes(key[start : start + size], "little")


def _rotate(word: int, right: int) -> int:
    word &= _MASK
    return word >> right | word << (64 - right) & _MASK


def _shift_mix(word: int) -> int:
    word &= _MASK
    return word ^ word >> 47


def _swap(word: int) -> int:
    return int.from_bytes((word & _MASK).to_bytes(8, "little"), "big")


def _mix_16(u: int, v: int, mul: int) -> int:
    a = _shift_mix((u ^ v) * mul)
    return _shift_mix((v ^ a) * mul) * mul & _MASK


def _weak_mix_32(key: bytes, start: int, a: int, b: int) -> tuple[int, int]:
    last = _word(key, start + 24)
    a += _word(key, start)
    first = a
    b = _rotate(b + a + last, 21)
    a += _word(key, start + 8) + _word(key, start + 16)
    b += _rotate(a, 44)
    return (a + last) & _MASK, (b + first) & _MASK


def _hash_1_to_16(key: bytes, key_bytes: int) -> int:
    mul = _K2 + key_bytes * 2
    if key_bytes >= 8:
        a = _word(key, 0) + _K2
        b = _word(key, key_bytes - 8)
        return _mix_16(_rotate(b, 37) * mul + a, (_rotate(a, 25) + b) * mul, mul)
    if key_bytes >= 4:
        return _mix_16(key_bytes + (_word(key, 0, 4) << 3), _word(key, key_bytes - 4, 4), mul)
    y = key[0] + (key[key_bytes >> 1] << 8)
    z = key_bytes + (key[-1] << 2)
    return _shift_mix(y * _K2 ^ z * _K0) * _K2 & _MASK


def _hash_17_to_32(key: bytes, key_bytes: int) -> int:
    mul = _K2 + key_bytes * 2
    a = _word(key, 0) * _K1
    b = _word(key, 8)
    c = _word(key, key_bytes - 8) * mul
    d = _word(key, key_bytes - 16) * _K2
    return _mix_16(_rotate(a + b, 43) + _rotate(c, 30) + d, a + _rotate(b + _K2, 18) + c, mul)


def _hash_33_to_64(key: bytes, key_bytes: int) -> int:
    mul = _K2 + key_bytes * 2
    a = _word(key, 0) * _K2
    b = _word(key, 8)
    c = _word(key, key_bytes - 24)
    d = _word(key, key_bytes - 32)
    e = _word(key, 16) * _K2
    f = _word(key, 24) * 9
    g = _word(key, key_bytes - 8)
    h = _word(key, key_bytes - 16) * mul
    u = _rotate(a + g, 43) + (_rotate(b, 30) + c) * 9
    v = (a + g & _MASK ^ d) + f + 1
    w = _swap((u + v) * mul) + h
    x = _rotate(e + f, 42) + c
    y = (_swap((v + w) * mul) + g) * mul
    z = e + f + c
    a = _swap((x + z) * mul + y) + b
    return (_shift_mix((z + a) * mul + d + h) * mul + x) & _MASK


def _hash_over_64(key: bytes, key_bytes: int) -> int:
    x = _word(key, key_bytes - 40)
    y = _word(key, key_bytes - 16) + _word(key, key_bytes - 56)
    z = _mix_16(_word(key, key_bytes - 48) + key_bytes, _word(key, key_bytes - 24), _K_MUL)
    v = _weak_mix_32(key, key_bytes - 64, key_bytes, z)
    w = _weak_mix_32(key, key_bytes - 32, y + _K1, x)
    x = x * _K1 + _word(key, 0)
    # Whole blocks of 64 from the front; the last 64 bytes have been mixed in above.
    for start in range(0, (key_bytes - 1) // 64 * 64, 64):
        x = _rotate(x + y + v[0] + _word(key, start + 8), 37) * _K1 & _MASK ^ w[1]
        y = _rotate(y + v[1] + _word(key, start + 48), 42) * _K1 + v[0] + _word(key, start + 40)
        next_x = _rotate(z + w[0], 33) * _K1
        v = _weak_mix_32(key, start, v[1] * _K1, x + w[0])
        w = _weak_mix_32(key, start + 32, next_x + w[1], y + _word(key, start + 16))
        z, x = x, next_x
    return _mix_16(
        _mix_16(v[0], w[0], _K_MUL) + _shift_mix(y) * _K1 + z & _MASK,
        _mix_16(v[1], w[1], _K_MUL) + x & _MASK,
        _K_MUL,
    )
