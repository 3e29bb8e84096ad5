# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The native stores of the host's engines, and the conversion of C structs of counters."""

import os
from typing import Any

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import MissingError


class Store:
    """A handle on the native store of one partition."""

    def __init__(self, options: Any, partition: int = 0) -> None:
        """Allocate the store; `options` is a struct kv_store_options.

        Raises MissingError if there is not enough memory.
        """
        self.partition = partition
        self.handle = lib.kv_store_create(options)
        if self.handle == ffi.NULL:
            raise MissingError(
                f"a store of {options.item_count} items and a log of {options.log_bytes} bytes",
                f"more memory ({os.strerror(ffi.errno)}): ask for fewer items or a smaller log",
            )

    def share(self) -> "Store":
        """Return another handle on the same memory, for another engine's thread.

        Raises MissingError if there is not enough memory.
        """
        shared = object.__new__(Store)
        shared.partition = self.partition
        shared.handle = lib.kv_store_share(self.handle)
        if shared.handle == ffi.NULL:
            raise MissingError("sharing a store", f"more memory ({os.strerror(ffi.errno)})")
        return shared

    def set_reader(self, is_reader: bool) -> None:
        """Mark the handle as a reader, whose GETs do not move items, or as the owner's."""
        lib.kv_store_set_reader(self.handle, is_reader)

    def close(self) -> None:
        """Close the handle; the last one frees the memory."""
        lib.kv_store_destroy(self.handle)
        self.handle = ffi.NULL

    def stats(self) -> dict[str, int]:
        """Return the handle's counters."""
        if self.handle == ffi.NULL:
            return {}
        stats = ffi.new("struct kv_store_stats *")
        lib.kv_store_get_stats(self.handle, stats)
        return fields_of(stats)


def fields_of(struct: Any) -> dict[str, int]:
    """Return the numbers in a C struct, or in the struct that a pointer names, by their fields'
    names; those of a struct inside it are among them.
    """
    kind = ffi.typeof(struct)
    fields: dict[str, int] = {}
    for name, field in (kind.item if kind.kind == "pointer" else kind).fields:
        content = getattr(struct, name)
        fields |= fields_of(content) if field.type.kind == "struct" else {name: int(content)}
    return fields
