# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The reference that every server must agree with: a dict."""

import sys

from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import Request, item_bytes

NOOPS = (abi.Operation.NOOP_READ, abi.Operation.NOOP_WRITE)
COUNTER_BYTES = 8
"""Bytes of a value that INCREMENT accepts."""

Answer = tuple[abi.Result, bytes]


def execute(values: dict[bytes, bytes], request: Request, room: int = sys.maxsize) -> Answer:
    """Execute a request as docs/PROTOCOL.md says; return the result and the reply's value.

    `room` is the most bytes of the reply, its header included. RESET is not allowed.
    """
    operation, key = request.operation, request.key
    if operation in NOOPS:
        return abi.Result.SUCCESS, b""
    if operation == abi.Operation.RESET or operation not in tuple(abi.Operation):
        return abi.Result.NOT_SUPPORTED, b""
    if not key:
        return abi.Result.ERROR, b""
    if operation in (abi.Operation.ADD, abi.Operation.SET):
        return _put(values, request), b""
    if operation == abi.Operation.INCREMENT:
        return _increment(values, request, room)
    if key not in values:
        return abi.Result.NOT_FOUND, b""
    if operation == abi.Operation.GET:
        if item_bytes(0, len(values[key])) > room:
            return abi.Result.INSUFFICIENT_SPACE, b""
        return abi.Result.SUCCESS, values[key]
    if operation == abi.Operation.DELETE:
        del values[key]
    return abi.Result.SUCCESS, b""


def _put(values: dict[bytes, bytes], request: Request) -> abi.Result:
    if len(request.value) > abi.KV_VALUE_MAX:
        return abi.Result.INSUFFICIENT_SPACE
    if request.operation == abi.Operation.ADD and request.key in values:
        return abi.Result.EXISTS
    values[request.key] = request.value
    return abi.Result.SUCCESS


def _increment(values: dict[bytes, bytes], request: Request, room: int) -> Answer:
    if len(request.value) != COUNTER_BYTES:
        return abi.Result.ERROR, b""
    if item_bytes(0, COUNTER_BYTES) > room:
        return abi.Result.INSUFFICIENT_SPACE, b""
    value = values.get(request.key)
    if value is None:
        return abi.Result.NOT_FOUND, b""
    if len(value) != COUNTER_BYTES:
        return abi.Result.ERROR, b""
    total = int.from_bytes(value, "little") + int.from_bytes(request.value, "little")
    values[request.key] = (total % 2**64).to_bytes(COUNTER_BYTES, "little")
    return abi.Result.SUCCESS, values[request.key]
