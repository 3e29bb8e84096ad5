# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The native stores of the host's engines, and the conversion of C structs of counters."""

import errno
import os
from typing import Any

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import DpukvError, MissingError

PER_STORE = ("count", "overflow_buckets", "index_bytes", "log_bytes")
"""Counters that are equal in all handles of a store."""


class Store:
    """A handle on the native store of one partition."""

    def __init__(self, options: Any, partition: int = 0, region_fd: int | None = None) -> None:
        """Allocate the store; `options` is a struct kv_store_options. With a region its memory is
        there, and `repaired` says what was found in it.

        Raises MissingError if there is not enough memory, DpukvError if the region has another
        store, or one that no killed process can have left.
        """
        self.partition = partition
        self.repaired: dict[str, int] = {}
        if region_fd is None:
            self.handle = lib.kv_store_create(options)
        else:
            repair = ffi.new("struct kv_store_repair *")
            self.handle = lib.kv_store_open(options, region_fd, repair)
            self.repaired = fields_of(repair)
        if self.handle == ffi.NULL and ffi.errno in (errno.EINVAL, errno.EUCLEAN):
            raise DpukvError(
                f"the region of partition {partition} cannot be taken over: {_why(ffi.errno)}"
            )
        if self.handle == ffi.NULL:
            raise _no_memory(options)

    def share(self) -> "Store":
        """Return another handle on the same memory, for another engine's thread.

        Raises MissingError if there is not enough memory.
        """
        shared = object.__new__(Store)
        shared.partition, shared.repaired = self.partition, {}
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


def make_region(options: Any) -> int:
    """Return the descriptor of a new region: memory for such a store that outlives the process as
    long as another one has the descriptor. Raises MissingError if there is not enough memory.
    """
    region_fd = int(lib.kv_store_region(options))
    if region_fd < 0:
        raise _no_memory(options)
    return region_fd


def _no_memory(options: Any) -> MissingError:
    return MissingError(
        f"a store of {options.item_count} items and a log of {options.log_bytes} bytes",
        f"more memory ({os.strerror(ffi.errno)}): ask for fewer items or a smaller log",
    )


def _why(number: int) -> str:
    if number == errno.EUCLEAN:
        return "its content is damaged, so it is not served: start the server anew, without it"
    return "it has a store of other sizes or of another version"


def sums_of(stores: list[Store]) -> dict[str, int]:
    """Return the counters summed over all handles; `pages` is the log's, from any handle."""
    totals: dict[str, int] = {}
    seen: set[int] = set()
    for store in stores:
        for name, value in store.stats().items():
            if name == "pages":
                totals[name] = value
            elif name not in PER_STORE or store.partition not in seen:
                totals[name] = totals.get(name, 0) + value
        seen.add(store.partition)
    return totals


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
