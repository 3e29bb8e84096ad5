# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The BPF compiler's view of bpf/abi: one more witness for tests/unit/test_abi.py.

A program that bcc compiles stores every size, offset and constant of the headers in a map.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bpf.harness import Verdict, run_once
from unit.test_abi import (
    NativeView,
    changed_copy,
    constants_against,
    declared_structs,
    enumerators,
    header_text,
    native_view,
    numpy_against,
    parse_layout,
    replaced,
    swapped,
)

from dpukv_xdp.base.errors import LoadError
from dpukv_xdp.kernel import loader
from dpukv_xdp.wire import abi

pytestmark = pytest.mark.shares_cores

PROGRAM = """
#include "abi/all.h"

struct layout {{ __u64 numbers[{count}]; }};
BPF_ARRAY(layouts, struct layout, 1);

int kv_layout(struct xdp_md *ctx)
{{
	__u32 zero = 0;
	struct layout *layout = layouts.lookup(&zero);

	if (!layout)
		return XDP_ABORTED;
	{stores}
	return XDP_DROP;
}}
"""


def bpf_view(include_dir: Path, tmp_path: Path) -> NativeView:
    """Return the layout that bcc's compiler computes for `include_dir`/abi, bpf/ or `tmp_path`.

    Raises LoadError if it refuses the headers.
    """
    text = header_text(include_dir)
    questions = [(f"constant {name} {{}}", [name]) for name in enumerators(text)]
    for struct, fields in declared_structs(text).items():
        questions.append((f"size {struct} {{}}", [f"sizeof(struct {struct})"]))
        questions += [
            (
                f"field {struct}.{field} {{}} {{}}",
                [f"offsetof(struct {struct}, {field})", f"sizeof(((struct {struct} *)0)->{field})"],
            )
            for field in fields
        ]
    terms = [term for _, asked in questions for term in asked]
    stores = [f"layout->numbers[{i}] = (__u64)({term});" for i, term in enumerate(terms)]
    source = tmp_path / "layout.c"
    program = PROGRAM.format(count=len(terms), stores="\n\t".join(stores))
    source.write_text(program)
    numbers = iter(run_layout_program(source, len(terms)))
    lines = [line.format(*(next(numbers) for _ in asked)) for line, asked in questions]
    return parse_layout("\n".join(lines))


def run_layout_program(source: Path, count: int) -> list[int]:
    """Run the program; return the signed numbers that it stored."""
    loaded = loader.load(str(source), ["kv_layout"], {})
    try:
        assert run_once(loaded.programs["kv_layout"], bytes(64))[0] == Verdict.DROP
        stored = loaded.read_array("layouts", np.dtype((np.int64, (count,))))
    finally:
        loaded.close()
    return [int(number) for number in stored.ravel()]


def disagreements(view: NativeView) -> set[str]:
    """Return the witnesses that differ from this view: the constants of `abi`, or its dtypes."""
    found = {"constants": constants_against(view), "numpy": numpy_against(view)}
    return {witness for witness, wrong in found.items() if wrong}


def test_the_bpf_compiler_agrees(tmp_path: Path) -> None:
    view = bpf_view(abi.BPF_DIR, tmp_path)
    assert constants_against(view) == []
    assert numpy_against(view) == []
    assert view == native_view(abi.BPF_DIR, tmp_path)
    assert {f"KV_COUNTER_{counter.name}" for counter in abi.Counter} <= set(view.constants)
    assert set(view.sizes) == set(declared_structs(header_text(abi.BPF_DIR)))


@pytest.mark.parametrize(
    ("change", "noticed_by"),
    [
        (swapped("__u32 opaque;", "__u32 reserved1;"), {"numpy"}),
        (replaced("KV_OP_SET = 4", "KV_OP_SET = 14"), {"constants"}),
        (replaced("KV_COUNTER_DROP_MAGIC,", "KV_COUNTER_NEW, KV_COUNTER_DROP_MAGIC,"),
         {"constants", "numpy"}),
    ],
)  # fmt: skip
def test_a_broken_copy_is_noticed(
    change: Callable[[str], str], noticed_by: set[str], tmp_path: Path
) -> None:
    broken = changed_copy(change, tmp_path)
    assert disagreements(bpf_view(broken, tmp_path)) == noticed_by


def test_a_copy_that_breaks_its_own_assertions_is_refused(tmp_path: Path) -> None:
    broken = changed_copy(replaced("__u8 ip_source[4];", "__u8 ip_source[5];"), tmp_path)
    with pytest.raises(LoadError, match=r"static_?assert"):
        bpf_view(broken, tmp_path)
