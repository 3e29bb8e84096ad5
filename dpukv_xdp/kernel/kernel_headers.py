# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Kernel headers for bcc where the running kernel's own headers are not installed.

Our programs use only structures of the kernel's user interface, so the headers of any release are
sufficient. Debian splits them into a common tree and one for the architecture. These are merged
once into a directory of symbolic links, which bcc uses as BCC_KERNEL_SOURCE.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dpukv_xdp.base.errors import DpukvError, MissingError

SOURCES_DIR = Path("/usr/src")
MODULES_DIR = Path("/lib/modules")
CACHE_DIRS = (
    Path("/var/cache/dpukv_xdp"),
    Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dpukv_xdp",
)
VARIABLE = "BCC_KERNEL_SOURCE"
"""Environment variable that tells bcc the tree of kernel headers."""
UTS_RELEASE = "include/generated/utsrelease.h"
NEEDED = ("include/generated/autoconf.h", "include/linux/kconfig.h", "include/uapi/linux/bpf.h")


def kernel_source() -> Path | None:
    """Return the tree for BCC_KERNEL_SOURCE, merged if necessary; None if the running kernel's own
    headers are installed.

    A tree that the environment names is used as it is. Raises MissingError if no headers are
    installed at all.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not _is_complete(Path(named)):
            raise MissingError(
                "compiling BPF programs",
                f"kernel headers, and {VARIABLE} names {named}, which has none: unset it",
            )
        return Path(named)
    if (own_tree() / NEEDED[0]).is_file():  # bcc finds Debian's common half by itself
        return None
    for tree in _installed_trees():
        common = _common_tree(tree)
        if common is None:
            candidate = tree
        elif common.is_dir():
            candidate = _merged_tree(tree, common)
        else:
            continue
        if _is_complete(candidate):
            return candidate
    raise MissingError("compiling BPF programs", "kernel headers: tools/setup installs them")


def own_tree() -> Path:
    """Return where the running kernel's own headers are, if they are installed."""
    return MODULES_DIR / os.uname().release / "build"


def headers_release() -> str:
    """Return the kernel release of bcc's headers, such as "6.1.0-56-amd64".

    Raises MissingError if no headers are installed at all.
    """
    tree = kernel_source() or own_tree()
    found = re.search(r'UTS_RELEASE "(.*)"', (tree / UTS_RELEASE).read_text())
    return found[1] if found else str(tree)


def source_in(root: Path) -> Path:
    """Return one tree of the headers below another system's root directory, merged in that
    directory if necessary.

    Raises MissingError if there are none.
    """
    for tree in _installed_trees(root / SOURCES_DIR.relative_to("/")):
        common = _common_tree(tree)
        if common is None:
            return tree
        target = root / f"merged-{tree.name}"
        if not _is_complete(target):
            _merge(target, (tree, root / common.relative_to("/")))
        return target
    raise MissingError("compiling BPF programs for another kernel", f"its headers in {root}")


def _installed_trees(sources_dir: Path = SOURCES_DIR) -> list[Path]:
    """Return the architecture's header trees, newest first."""
    trees = [tree for tree in sources_dir.glob("linux-headers-*") if (tree / NEEDED[0]).is_file()]
    return sorted(trees, key=_version, reverse=True)


def _version(tree: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", tree.name)]


def _common_tree(tree: Path) -> Path | None:
    """Return the common tree that the Makefile of Debian's architecture tree includes; None if the
    tree is complete by itself.
    """
    makefile = tree / "Makefile"
    found = re.match(r"include (/\S+)/Makefile\s*$", makefile.read_text()[:4096])
    return Path(found[1]) if found else None


def _is_complete(tree: Path) -> bool:
    return all((tree / path).is_file() for path in NEEDED)


# ---- Merging


def _merged_tree(tree: Path, common: Path) -> Path:
    """Return a directory that merges the two trees; it is cached."""
    key = f"{tree.name}-{int(max(tree.stat().st_mtime, common.stat().st_mtime))}"
    for cache in CACHE_DIRS:
        if _is_complete(cache / key):
            return cache / key
    target = writable_cache() / key
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".merging-") as scratch:
        fresh = Path(scratch) / key
        _merge(fresh, (tree, common))
        fresh.chmod(0o755)
        _put_in_place(fresh, target)
    return target


def _put_in_place(fresh: Path, target: Path) -> None:
    """Rename the tree to its place. A complete tree that another process put there is kept, an
    incomplete one replaced.
    """
    if target.exists() and not _is_complete(target):
        with suppress(FileNotFoundError):  # another process may have moved it already
            target.rename(fresh.with_name("broken"))
    try:
        fresh.rename(target)
    except OSError:
        if not _is_complete(target):
            raise


def _merge(target: Path, sources: tuple[Path, ...]) -> None:
    """Fill `target` with links to all files in `sources`; of two with one name, the first wins."""
    target.mkdir()
    for name, paths in _entries(sources):
        if len(paths) > 1 and all(path.is_dir() for path in paths):
            _merge(target / name, paths)
        else:
            (target / name).symlink_to(paths[0])


def _entries(sources: tuple[Path, ...]) -> Iterator[tuple[str, tuple[Path, ...]]]:
    for name in sorted({path.name for source in sources for path in source.iterdir()}):
        paths = tuple(source / name for source in sources if (source / name).exists())
        if paths:  # exists() is false for a dangling link
            yield name, paths


def writable_cache() -> Path:
    """Return the first writable directory of CACHE_DIRS, created if necessary.

    Raises DpukvError if none is writable.
    """
    for cache in CACHE_DIRS:
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError:  # no permission, a read-only file system, a file of that name
            continue
        if os.access(cache, os.W_OK):
            return cache
    raise DpukvError(f"none of {', '.join(map(str, CACHE_DIRS))} is writable: make one writable")


def _main() -> int:
    """Make the tree and print the headers that bcc will use."""
    try:
        source = kernel_source()
    except DpukvError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command of its own
        return error.exit_status
    print(source or own_tree())  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(_main())
