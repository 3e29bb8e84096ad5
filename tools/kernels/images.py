# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Disk images of guests, made of Debian packages: built once per recipe, then cached.

A `bare` image has a kernel, ssh, sudo and a network, and nothing else: a fresh box. A `prepared`
image also has everything that tools/setup installs, and its kernel's headers for use on the host.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.base.processes import Process, is_alive, start_ticks
from kernels import hosts, processes

Kind = Literal["bare", "prepared"]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that Debian offers for its release 12."""

    name: str
    """Version as the command line takes it, such as "6.1"."""
    suite: str
    """Debian suite of its packages."""


RELEASE = "bookworm"
KERNELS = {
    kernel.name: kernel
    for kernel in (Kernel("6.1", RELEASE), Kernel("6.12", f"{RELEASE}-backports"))
}
"""Kernels for which guests can be made, by name."""

ROOT = Path(__file__).parents[2]
GUESTS_DIR = Path("/var/cache/dpukv_xdp/guests")
PROGRAMS = ("mmdebstrap", "mkfs.ext4", "unshare", "cp")
RECIPE = "1"
"""Version of the recipe: change it when the steps below change."""
BARE = ("systemd-sysv", "openssh-server", "sudo", "ifupdown", "isc-dhcp-client", "ca-certificates")
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4")
"""Kernel modules that the initial RAM disk loads."""
DISK_BYTES = 12 << 30
"""Size of the guest's disk, which is a sparse file."""
NEEDED_BYTES = {"bare": 2 << 30, "prepared": 4 << 30}
"""Free space that a build needs at most, by kind of image."""
BUILD_SECONDS = 1200.0
MIRROR_SECONDS = 20
"""Time-out of apt for an answer of the mirror."""


class Image(msgspec.Struct, frozen=True):
    """A finished image."""

    path: Path
    """Directory of the image."""
    release: str
    """Release of its kernel, such as "6.1.0-56-amd64"."""

    @property
    def disk(self) -> Path:
        """Root file system, which guests must not change."""
        return self.path / "root.img"

    @property
    def kernel(self) -> Path:
        """Kernel that qemu boots."""
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Initial RAM disk of the kernel."""
        return self.path / "initrd"

    @property
    def headers(self) -> Path:
        """Root directory of the kernel headers of a prepared image."""
        return self.path / "headers"


def kernel_named(name: str) -> Kernel:
    """Return a row of KERNELS. Raises UsageError if there is none of that name."""
    if name not in KERNELS:
        raise UsageError(f"--kernels knows {', '.join(KERNELS)}, not {name!r}")
    return KERNELS[name]


@contextmanager
def image(kernel: Kernel, kind: Kind, say: Say, guests_dir: Path = GUESTS_DIR) -> Iterator[Image]:
    """Yield the image of a kernel, built if necessary and locked against removal in the block.

    Raises MissingError without mmdebstrap, DpukvError without disk space or packages.
    """
    packages = _packages(kernel, kind)
    sources = hosts.apt_sources(RELEASE, kernel.suite)
    argv = _mmdebstrap(packages, sources)
    recipe = "\0".join([RECIPE, *argv, *sources, str(hosts.guest_files())])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    path = guests_dir / f"{kernel.name}-{kind}-{digest}"
    guests_dir.mkdir(parents=True, exist_ok=True)
    with _lock_of(path).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # shared with other users, and no process may remove it
        if not path.is_dir():
            fcntl.flock(lock, fcntl.LOCK_EX)
            _remove_unfinished(guests_dir)
            if not path.is_dir():  # no other process built it meanwhile
                processes.require(PROGRAMS, "a guest's image")
                say(f"building the {kind} image of {kernel.name} from Debian's packages")
                _build(path, kernel, kind, argv, sources)
                _remove_older(path, kernel, kind)
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield Image(path, (path / "release").read_text())


def _packages(kernel: Kernel, kind: Kind) -> list[str]:
    names = ["linux-image-amd64"]
    wanted = list(BARE)
    if kind == "prepared":
        names.append("linux-headers-amd64")
        listing = subprocess.run(
            [str(ROOT / "tools" / "setup"), "--packages"],
            check=True,
            capture_output=True,
            text=True,
        )
        wanted += listing.stdout.split()
    return [
        *(f"{name}/{kernel.suite}" if kernel.suite != RELEASE else name for name in names),
        *wanted,
    ]


def _mmdebstrap(packages: Sequence[str], sources: Sequence[str]) -> list[str]:
    """Return the command line without its last three words: release, target, list of sources."""
    initrd = (
        'mkdir -p "$1/etc/initramfs-tools/conf.d"',
        'printf "MODULES=list\\nCOMPRESS=gzip\\n" >"$1/etc/initramfs-tools/conf.d/guest"',
        f'printf "%s\\n" {" ".join(MODULES)} >"$1/etc/initramfs-tools/modules"',
    )
    apt = [
        'APT::Install-Recommends "false"',
        f'Acquire::http::Timeout "{MIRROR_SECONDS}"',
        f'Acquire::https::Timeout "{MIRROR_SECONDS}"',
        'Acquire::Retries "2"',
        *hosts.apt_settings(),
    ]
    return [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--include={','.join(packages)}",
        *(f"--aptopt={setting}" for setting in apt),
        "--dpkgopt=force-unsafe-io",  # an unfinished tree is thrown away, so fsync is useless
        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")),
        f"--essential-hook={'; '.join(initrd)}",
        *(f"--customize-hook={hook}" for hook in hosts.certificate_hooks()),
    ]


def _build(
    path: Path, kernel: Kernel, kind: Kind, argv: Sequence[str], sources: Sequence[str]
) -> None:
    """Build the image in a directory of this process, and rename it when it is complete."""
    check_room(path.parent, NEEDED_BYTES[kind])
    fresh = path.parent / _unfinished_name()
    try:
        tree = fresh / "tree"
        fresh.mkdir()
        (fresh / "sources.list").write_text("".join(f"{line}\n" for line in sources))
        listed = [str(fresh / "sources.list")] if sources else []
        _install([*argv, RELEASE, str(tree), *listed], kernel, fresh)
        release = _take_kernel(tree, kernel, fresh)
        for name, text in hosts.guest_files().items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        if kind == "prepared":
            _take_headers(tree, fresh / "headers", release)
        _make_disk(tree, fresh / "root.img")
        shutil.rmtree(tree)
        (fresh / "release").write_text(release)
        fresh.rename(path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _install(argv: Sequence[str], kernel: Kernel, scratch: Path) -> None:
    """Run mmdebstrap in its own process and mount namespaces, which end with it."""
    isolated = ["unshare", "--mount", "--pid", "--kill-child", "--mount-proc", "--", *argv]
    status, lines = processes.run(
        isolated,
        what=f"building the image of {kernel.name}",
        limit_seconds=BUILD_SECONDS,
        env=processes.environment(TMPDIR=str(scratch), LC_ALL="C"),
    )
    if status:
        telling = [line for line in lines if re.match(r"(E|Err):", line)] or lines
        reason = telling[0].removeprefix("E: ") if telling else f"exit status {status}"
        raise DpukvError(
            f"the image of {kernel.name} could not be built: {reason}: check the network, "
            f"/etc/apt and the free space, then try again"
        )


def _take_kernel(tree: Path, kernel: Kernel, target: Path) -> str:
    """Copy the kernel and the initial RAM disk out of the tree; return the kernel's release."""
    found = [path.name.removeprefix("vmlinuz-") for path in (tree / "boot").glob("vmlinuz-*")]
    if len(found) != 1 or not found[0].startswith(f"{kernel.name}."):
        raise DpukvError(
            f"{kernel.suite} has kernel {', '.join(found) or '(none)'}, not {kernel.name}: ask for "
            "that one, or use a mirror that has it"
        )
    shutil.copy(tree / "boot" / f"vmlinuz-{found[0]}", target / "vmlinuz")
    shutil.copy(tree / "boot" / f"initrd.img-{found[0]}", target / "initrd")
    return found[0]


def _take_headers(tree: Path, target: Path, release: str) -> None:
    sources = target / "usr" / "src"
    sources.mkdir(parents=True)
    trees = [str(path) for path in (tree / "usr" / "src").glob("linux-headers-*")]
    subprocess.run(["cp", "-a", "--reflink=auto", *trees, str(sources)], check=True)


def _make_disk(tree: Path, disk: Path) -> None:
    options = ["-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", str(tree)]
    status, lines = processes.run(
        ["mkfs.ext4", *options, str(disk), str(DISK_BYTES >> 10)],
        what="making the file system of a guest",
        limit_seconds=BUILD_SECONDS,
    )
    if status:
        raise DpukvError(f"mkfs.ext4 could not make a guest's disk: {' '.join(lines[-1:])}")


def check_room(directory: Path, needed_bytes: int) -> None:
    """Raise DpukvError if a directory's file system has less than `needed_bytes` free."""
    there = os.statvfs(directory)
    free_bytes = there.f_bavail * there.f_frsize
    if free_bytes < needed_bytes:
        raise DpukvError(
            f"a guest's image needs {needed_bytes / (1 << 30):.1f} GiB in {directory}, and "
            f"{free_bytes / (1 << 30):.1f} are free: make room there"
        )


# ---- Locks, and leftovers of killed processes


def _unfinished_name() -> str:
    return f".new-{os.getpid()}-{start_ticks(os.getpid())}"


def _remove_unfinished(guests_dir: Path) -> None:
    """Remove unfinished images of dead processes."""
    for path in guests_dir.glob(".new-*"):
        pid, ticks = (int(number) for number in path.name.split("-")[1:3])
        if not is_alive(Process(pid, ticks)):
            shutil.rmtree(path, ignore_errors=True)


def _remove_older(path: Path, kernel: Kernel, kind: Kind) -> None:
    """Remove images of older recipes that no guest uses."""
    for other in path.parent.glob(f"{kernel.name}-{kind}-*"):
        if other == path:
            continue
        with _lock_of(other).open("w") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other)
            _lock_of(other).unlink()


def _lock_of(path: Path) -> Path:
    """Return an image's lock file: its users lock it shared, its builder exclusively."""
    return path.with_name(f".lock-{path.name}")
