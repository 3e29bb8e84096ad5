# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""All readers of bpf/abi see the same bytes, and each witness notices a broken copy of it.

Python's layouts are computed from the headers without a C compiler (wire/_layouts.py). The native
compiler says how the headers lay out their structures. numpy's dtypes and constants, the scapy
layers, the codec's bytes and the hex dumps of docs/PROTOCOL.md are compared with that; the BPF
compiler's view is in tests/bpf.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire._layouts import ffi as layouts
from dpukv_xdp.wire.codec import Reply, Request
from dpukv_xdp.wire.hashing import hash_key
from dpukv_xdp.wire.headers import numeric_macros
from dpukv_xdp.wire.layers import KVBatch, KVItem

PROTOCOL = Path(__file__).parents[2] / "docs" / "PROTOCOL.md"


@dataclass(frozen=True)
class NativeView:
    """The layout of the headers according to the native compiler."""

    constants: dict[str, int]
    sizes: dict[str, int]
    """Size of each structure in bytes."""
    fields: dict[str, dict[str, tuple[int, int]]]
    """Offset and size in bytes by structure and field, in the order of declaration."""

    def field(self, struct_name: str, field_name: str, data: bytes, start: int = 0) -> bytes:
        """Return the bytes of a field in a structure that begins at `start`."""
        offset, size = self.fields[struct_name][field_name]
        return data[start + offset : start + offset + size]


class HeaderError(Exception):
    """The compiler refused the header: a static assertion failed, or it is not valid C."""


def disagreements(include_dir: Path, tmp_path: Path) -> dict[str, list[str]]:
    """Return the differences of each witness from the native compiler's view."""
    try:
        native = native_view(include_dir, tmp_path)
    except HeaderError as error:
        return {"compiler": [str(error)]}
    return {
        "constants": constants_against(native),
        "numpy": numpy_against(native),
        "scapy": scapy_against(native),
        "codec": codec_against(native),
        "protocol": protocol_against(native),
    }


# ---- The native compiler -------------------------------------------------------------------------


def native_view(include_dir: Path, tmp_path: Path) -> NativeView:
    """Compile and run a program that prints the layout of `include_dir`/abi.

    Raises HeaderError if it does not compile.
    """
    text = header_text(include_dir)
    structs = declared_structs(text)
    lines = ['#include <stdio.h>\n#include <stddef.h>\n#include "abi/all.h"\nint main(void) {']
    lines += [
        f'printf("constant {name} %lld\\n", (long long){name});' for name in enumerators(text)
    ]
    for struct, fields in structs.items():
        lines.append(f'printf("size {struct} %zu\\n", sizeof(struct {struct}));')
        lines += [
            f'printf("field {struct}.{field} %zu %zu\\n", offsetof(struct {struct}, {field}), '
            f"sizeof(((struct {struct} *)0)->{field}));"
            for field in fields
        ]
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text("\n".join([*lines, "return 0; }"]))
    command = ["cc", f"-I{include_dir}", "-o", program, source]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if compiled.returncode:
        raise HeaderError(compiled.stderr)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return parse_layout(printed)


def parse_layout(printed: str) -> NativeView:
    view = NativeView({}, {}, {})
    for kind, name, *numbers in (line.split() for line in printed.splitlines()):
        if kind == "constant":
            view.constants[name] = int(numbers[0])
        elif kind == "size":
            view.sizes[name] = int(numbers[0])
        else:
            struct, field = name.split(".")
            view.fields.setdefault(struct, {})[field] = (int(numbers[0]), int(numbers[1]))
    return view


def header_text(include_dir: Path) -> str:
    """Return the text of all headers of `include_dir`/abi."""
    return "\n".join(path.read_text() for path in sorted((include_dir / "abi").glob("*.h")))


def declared_structs(text: str) -> dict[str, list[str]]:
    """Return the structures and their fields, as the headers' text declares them."""
    structs = {}
    for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", text, re.MULTILINE | re.DOTALL):
        plain = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        structs[name] = re.findall(r"(\w+)(?:\[[\w +]+\])?\s*;", plain)
    return structs


def enumerators(text: str) -> list[str]:
    """Return all enumerators of the headers, those that KV_OPERATION_TABLE makes among them."""
    plain = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    bodies = re.findall(r"^enum \w+ \{(.*?)\};", plain, re.MULTILINE | re.DOTALL)
    written = [name for body in bodies for name in re.findall(r"\b(KV_\w+)\s*(?=[=,\n]|$)", body)]
    rows = re.findall(r"\bROW\((\w+),", plain)
    return written + [f"KV_{column}_{row}" for column in ("MISSING", "PRESENT") for row in rows]


# ---- The witnesses -------------------------------------------------------------------------------


def constants_against(native: NativeView) -> list[str]:
    """Return differences in the constants of `abi` and the enumerations made of them."""
    wrong = [
        f"{name}: {value} here, {getattr(abi, name, None)} in abi"
        for name, value in native.constants.items()
        if getattr(abi, name, None) != value
    ]
    for enumeration, prefix in (
        (abi.Operation, "KV_OP_"),
        (abi.Result, "KV_"),
        (abi.Counter, "KV_COUNTER_"),
    ):
        wrong += [
            f"{prefix}{member.name}: {member.value} in {enumeration.__name__}"
            for member in enumeration
            if native.constants.get(prefix + member.name) != member.value
        ]
    return wrong


def numpy_against(native: NativeView) -> list[str]:
    wrong = []
    for struct, fields in native.fields.items():
        dtype = abi.dtype(struct)
        if dtype.itemsize != native.sizes[struct] or abi.SIZE(struct) != native.sizes[struct]:
            wrong.append(f"{struct}: {native.sizes[struct]} bytes here, {dtype.itemsize} in numpy")
        seen = {
            name: (offset, field.itemsize)
            for name, (field, offset, *_) in (dtype.fields or {}).items()
        }
        if seen != fields or list(seen) != list(fields):
            wrong.append(f"{struct}: {fields} here, {seen} in numpy")
    return wrong


def scapy_against(native: NativeView) -> list[str]:
    wrong = []
    for layer, struct, first in (
        (KVItem, "kv_item_header", "operation"),
        (KVBatch, "kv_packet_header", "magic"),
    ):
        marked = {field: 0x11 + index for index, field in enumerate(native.fields[struct])}
        start = native.fields[struct][first][0]
        for field in list(marked)[list(marked).index(first) :]:
            offset, size = native.fields[struct][field]
            content = bytes([marked[field]]) * size
            values = {"key_hash": 0, **layer_values(field, content)}
            built = bytes(layer(**{k: v for k, v in values.items() if k in layer_fields(layer)}))
            if built[offset - start : offset - start + size] != content:
                wrong.append(f"{struct}.{field}: not at {offset} in {layer.__name__}")
    return wrong


def layer_fields(layer: type) -> set[str]:
    return {field.name for field in layer.fields_desc}  # type: ignore[attr-defined]


def layer_values(field: str, content: bytes) -> dict[str, object]:
    """Return the scapy fields that put `content` into an ABI field."""
    if field == "kv_length":
        return {"value_length": int.from_bytes(content[:-1], "little"), "key_length": content[-1]}
    if field == "reserved":
        return {field: content}
    return {field: int.from_bytes(content, "little")}


def codec_against(native: NativeView) -> list[str]:
    """Return differences in the places of the codec's fields, of requests and of replies."""
    batch_start = native.fields["kv_packet_header"]["magic"][0]
    item_start = native.sizes["kv_packet_header"] - batch_start
    item = {"operation": 0x21, "opaque": 0x3433_3231, "key_hash": 0x4847_4645_4443_4241}
    request = codec.encode_batch([Request(key=b"key", value=b"value", **item)])
    reply = codec.encode_batch([Reply(result=0x51, value=b"value", **item)])
    wrong = []
    for payload, magic, result, kv_length in (
        (request, "KV_MAGIC_REQUEST", 0, 5 | 3 << 24),
        (reply, "KV_MAGIC_RESPONSE", 0x51, 5),
    ):
        wanted = {**item, "result": result, "kv_length": kv_length, "reserved0": 0, "reserved1": 0}
        for field in native.fields["kv_item_header"]:
            seen = native.field("kv_item_header", field, payload, item_start)
            if int.from_bytes(seen, "little") != wanted[field]:
                wrong.append(f"kv_item_header.{field}: {seen.hex()} in the codec's bytes")
        batch = {"magic": native.constants[magic], "request_count": 1, "reserved": 0}
        for field, value in batch.items():
            seen = native.field("kv_packet_header", field, payload, -batch_start)
            if int.from_bytes(seen, "little") != value:
                wrong.append(f"kv_packet_header.{field}: {seen.hex()} in the codec's bytes")
    return wrong


def protocol_against(native: NativeView) -> list[str]:
    """Return differences in the tables and hex dumps of docs/PROTOCOL.md."""
    text = PROTOCOL.read_text()
    wrong = []
    for struct in ("kv_packet_header", "kv_item_header", "kv_request", "kv_response"):
        rows = [
            (name, (int(offset), int(size)))
            for offset, size, name in re.findall(
                r"^\| (\d+) \| (\d+) \| `(\w+)` \|", table(text, f"table: {struct}"), re.MULTILINE
            )
        ]
        if rows != list(native.fields[struct].items()):
            wrong.append(f"{struct}: the table of PROTOCOL.md says {rows}")
    wrong += protocol_constants_against(native, text)
    key_hash = hash_key(b"hello").to_bytes(8, "little")
    for kind, magic in (("request", "KV_MAGIC_REQUEST"), ("response", "KV_MAGIC_RESPONSE")):
        dump = hexdump(text, kind)
        item = native.sizes["kv_packet_header"]
        for struct, field, start, content in (
            ("kv_packet_header", "magic", 0, bytes([native.constants[magic]])),
            ("kv_packet_header", "request_count", 0, b"\2"),
            ("kv_packet_header", "ip_source", 0, bytes([10, 0, 0, 2 if kind == "request" else 1])),
            ("kv_item_header", "operation", item, bytes([native.constants["KV_OP_SET"]])),
            ("kv_item_header", "key_hash", item, key_hash),
            ("kv_item_header", "opaque", item, (0x10001).to_bytes(4, "little")),
        ):
            seen = native.field(struct, field, dump, start)
            if seen != content:
                wrong.append(f"{struct}.{field}: {seen.hex()} in PROTOCOL.md's {kind}")
    return wrong


def protocol_constants_against(native: NativeView, text: str) -> list[str]:
    seen = {
        name: int(value)
        for name, value in re.findall(
            r"^\| `(KV_\w+)` \| (\d+) \|", table(text, "table: limits"), re.MULTILINE
        )
    }
    for title, prefix in (("enum: kv_operation", "KV_OP_"), ("enum: kv_result", "KV_")):
        rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", table(text, title), re.MULTILINE)
        members = abi.Operation if prefix == "KV_OP_" else abi.Result
        seen |= {name: int(code) for code, name in rows}
        if len(rows) != len(members):
            return [f"{title}: {len(rows)} of {len(members)} codes are in PROTOCOL.md"]
    dropped = re.findall(r"^\| `(KV_COUNTER_\w+)` \|", table(text, "counters"), re.MULTILINE)
    wanted = [name for name in native.constants if name.startswith("KV_COUNTER_DROP_")]
    wrong = [] if dropped == wanted else [f"counters: PROTOCOL.md lists {dropped}"]
    return wrong + [
        f"{name}: {value} in PROTOCOL.md"
        for name, value in seen.items()
        if native.constants.get(name) != value
    ]


def table(text: str, title: str) -> str:
    """Return the Markdown table after a `<!-- title -->` mark."""
    found = re.search(rf"^<!-- {re.escape(title)} -->\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found, f"PROTOCOL.md has no table marked {title!r}"
    return found[1]


def hexdump(text: str, kind: str) -> bytes:
    """Return the bytes of a ```hexdump block."""
    found = re.search(rf"^```hexdump {kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, f"PROTOCOL.md has no hex dump of a {kind}"
    rows = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} )+)", found[1], re.MULTILINE)
    assert len(rows) == found[1].count("\n")
    data = b""
    for offset, octets in rows:
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(octets)
    return data


# ---- The tests -----------------------------------------------------------------------------------


def test_all_witnesses_agree(tmp_path: Path) -> None:
    found = disagreements(abi.BPF_DIR, tmp_path)
    assert found == {name: [] for name in ("constants", "numpy", "scapy", "codec", "protocol")}


def test_the_check_sees_every_structure_and_constant(tmp_path: Path) -> None:
    text = header_text(abi.BPF_DIR)
    native = native_view(abi.BPF_DIR, tmp_path)
    assert set(native.sizes) == set(re.findall(r"^struct (\w+) \{", text, re.MULTILINE))
    assert all(native.fields[struct] for struct in native.sizes)
    enums = re.findall(r"^enum (\w+) \{", text, re.MULTILINE)
    for cffi in (ffi, layouts):
        known = [cffi.typeof(f"enum {name}").relements for name in enums]
        assert set(native.constants) == {name for names in known for name in names}


def test_the_native_core_has_every_layout_and_macro() -> None:
    for struct in declared_structs(header_text(abi.BPF_DIR)):
        compiled, computed = (each.typeof(f"struct {struct}") for each in (ffi, layouts))
        assert ffi.sizeof(compiled) == layouts.sizeof(computed)
        for (name, ours), (_, theirs) in zip(computed.fields, compiled.fields, strict=True):
            assert ours.offset == theirs.offset == abi.offset(struct, name), f"{struct}.{name}"
    abi_headers = sorted(abi.HEADER_DIR.glob("*.h"))
    macros = re.findall(r"#define (KV_\w+) \.\.\.", numeric_macros(abi_headers, value="..."))
    assert len(macros) > 5
    assert {name: getattr(abi, name) for name in macros} == {
        name: getattr(lib, name) for name in macros
    }


def test_a_constant_that_no_header_has_is_no_attribute() -> None:
    with pytest.raises(AttributeError):
        _ = abi.KV_NO_SUCH_CONSTANT
    with pytest.raises(AttributeError):
        _ = abi.no_constant


def test_offsets_in_the_headers_comments_are_right(tmp_path: Path) -> None:
    text = header_text(abi.BPF_DIR)
    native = native_view(abi.BPF_DIR, tmp_path)
    checked = 0
    for struct, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", text, re.MULTILINE | re.DOTALL):
        for field, offset in re.findall(r"(\w+)(?:\[\w+\])?;\s*/\*\s*(\d+)[\s,:]", body):
            assert native.fields[struct][field][0] == int(offset), f"{struct}.{field}"
            checked += 1
    assert checked > 80


def swapped(first: str, second: str) -> Callable[[str], str]:
    """Return a change that swaps two declarations in struct kv_item_header or kv_packet_header."""

    def change(text: str) -> str:
        assert text.count(first) == text.count(second) <= 1
        return text.replace(first, "\0").replace(second, first).replace("\0", second)

    return change


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert text.count(old) <= 1
        return text.replace(old, new)

    return change


def changed_copy(change: Callable[[str], str], tmp_path: Path) -> Path:
    """Copy bpf/abi into `tmp_path` with one header changed, and return `tmp_path`."""
    shutil.copytree(abi.HEADER_DIR, tmp_path / "abi")
    changed = 0
    for path in (tmp_path / "abi").iterdir():
        text = re.sub(r"[ \t]+", " ", path.read_text())  # declarations are aligned
        changed += change(text) != text
        path.write_text(change(text))
    assert changed == 1
    return tmp_path


EVERYONE = {"numpy", "scapy", "codec", "protocol"}


@pytest.mark.parametrize(
    ("change", "noticed_by"),
    [
        (swapped("__u32 opaque;", "__u32 reserved1;"), EVERYONE),
        (swapped("__u8 operation;", "__u8 result;"), EVERYONE),
        (swapped("__u64 key_hash; /* 8, City", "__u32 kv_length; /* 4, value"), {"compiler"}),
        (swapped("__u8 magic;", "__u8 request_count;"), EVERYONE),
        (replaced("__u8 ip_source[4];", "__u8 ip_source[5];"), {"compiler"}),
        (replaced("__u32 answered; /* 4, batches", "__u16 answered; /* 4,"), {"numpy"}),
        (replaced("__u64 latency_sum_ns;", "__u32 latency_sum_ns;"), {"numpy"}),
        (replaced("KV_KEY_MAX = 255", "KV_KEY_MAX = 254"), {"constants", "protocol"}),
        (replaced("KV_OP_SET = 4", "KV_OP_SET = 14"), {"constants", "protocol"}),
        (replaced("KV_MAGIC_RESPONSE = 0x79", "KV_MAGIC_RESPONSE = 0x7a"),
         {"constants", "codec", "protocol"}),
        (replaced(" KV_COUNTER_DROP_MAGIC,", " KV_COUNTER_NEW, KV_COUNTER_DROP_MAGIC,"),
         {"constants", "numpy"}),
    ],
)  # fmt: skip
def test_a_broken_copy_is_noticed(
    change: Callable[[str], str], noticed_by: set[str], tmp_path: Path
) -> None:
    found = disagreements(changed_copy(change, tmp_path), tmp_path)
    assert noticed_by == {witness for witness, wrong in found.items() if wrong}


def test_masks_name_their_operations() -> None:
    operation = abi.Operation
    assert abi.operations(abi.KV_OPS_KNOWN) == set(operation)
    reading = {operation.NOOP_READ, operation.GET, operation.TEST}
    assert abi.operations(abi.KV_OPS_THAT_READ) == reading
    keyless = {operation.RESET, operation.NOOP_READ, operation.NOOP_WRITE}
    assert abi.operations(abi.KV_OPS_KNOWN & ~abi.KV_OPS_KEYED) == keyless
    codec.check_item(Request(operation.RESET, b""))
