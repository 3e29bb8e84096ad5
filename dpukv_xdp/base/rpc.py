# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Remote procedure calls between processes: a line of JSON each way, over any stream.

A call is {"call": name, "arguments": {...}}. Its answer is {"result": ...}, or {"error": sentence,
"exit_status": number} if the method raised a DpukvError.
"""

from typing import Any

import msgspec

from dpukv_xdp.base.errors import DpukvError, UsageError


def call_line(name: str, arguments: dict[str, Any]) -> bytes:
    """Return a call, encoded as a line."""
    return _line({"call": name, "arguments": arguments})


def answer_line(target: Any, call: dict[str, Any]) -> bytes:
    """Call the method of `target` that a decoded call names; return the answer's line."""
    try:
        result = getattr(target, call["call"])(**call["arguments"])
        return _line({"result": result})
    except DpukvError as error:
        return error_line(error)


def error_line(error: DpukvError) -> bytes:
    """Return the answer's line for a call that failed."""
    return _line({"error": str(error), "exit_status": error.exit_status})


def result_of(answer: bytes) -> Any:
    """Return the result that an answer's line holds, as plain data.

    Raises the callee's error: UsageError or DpukvError.
    """
    reply = msgspec.json.decode(answer)
    if "error" in reply:
        kind = UsageError if reply["exit_status"] == UsageError.exit_status else DpukvError
        raise kind(reply["error"])
    return reply["result"]


def plain(value: Any) -> Any:
    """Return a numpy array as a list: msgspec's hook for what it cannot encode itself."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise NotImplementedError(f"{type(value)} cannot be sent in a call")


def _line(message: dict[str, Any]) -> bytes:
    return msgspec.json.encode(message, enc_hook=plain) + b"\n"
