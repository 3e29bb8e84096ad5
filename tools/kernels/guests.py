# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Boot an image in qemu, run commands in it over ssh, and leave nothing behind.

The image is not changed: a guest's writes go to an unlinked file of qemu. The ssh key and the
console's log are unlinked files, too, and qemu dies with this process, so that even kill -9 leaves
nothing behind.
"""

import os
import re
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from dpukv_xdp.base import patience
from dpukv_xdp.base.errors import DpukvError
from kernels import processes
from kernels.images import Image, Say
from kernels.processes import LimitError

PROGRAMS = ("qemu-system-x86_64", "ssh", "ssh-keygen")
CPUS = 2
MEMORY_BYTES = 4 << 30
MEMORY_BYTES_MIN = 2 << 30
"""Least memory of a guest: the demo needs it."""
HOST_BYTES = 512 << 20
"""Memory that stays free for this machine."""
BOOT_SECONDS = 60.0
"""Time-out of booting on a processor that is not emulated."""
EMULATION = 8.0
"""Assumed slowness of an emulated processor until it has been measured."""
MEASURE_SECONDS = 30.0
PORT_TRIES = 3
MASKED_UNITS = ("e2scrub_reap.service", "ifupdown-pre.service", "apt-daily.timer", "man-db.timer")
"""Services of a fresh box that would only take time."""
CONSOLE_LINES = 6
"""Lines of the console that an error quotes."""
SPEED_LOOP = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
"""The fixed job that the host's and the guest's shell run to measure the slowness factor."""
SPEED_SCRIPT = f"a=$(date +%s%N); {SPEED_LOOP}; b=$(date +%s%N); echo $((b-a))"


class Guest:
    """A booted guest, reachable over ssh."""

    def __init__(self, name: str, port: int, key_path: str, console: IO[bytes]) -> None:
        """`port` is ssh's on this host; `key_path` is the private key; `console` is the file of the
        serial console.
        """
        self.name = name
        self.slowness = 1.0
        """Factor by which the guest is slower than a reference machine: at least 1."""
        self._port = port
        self._key_path = key_path
        self._console = console

    def run(
        self,
        command: str,
        *,
        what: str,
        limit_seconds: float,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> tuple[int, list[str]]:
        """Run a shell command as root; return its exit status and the lines of its stdout and
        stderr.

        `limit_seconds` is scaled by the guest's slowness. Raises LimitError with the console's last
        lines, DpukvError if the connection breaks.
        """
        try:
            status, lines = processes.run(
                [
                    *self._ssh(),
                    f"export {patience.VARIABLE}={self.slowness:g}; {command}",
                ],
                what=f"guest {self.name}: {what}",
                limit_seconds=limit_seconds * self.slowness,
                on_line=on_line,
            )
        except LimitError as error:
            raise LimitError(f"{error}{self.console_words()}") from error
        if status == 255:  # ssh's own failure
            said = " / ".join(lines[-2:]) or "nothing"
            raise DpukvError(
                f"guest {self.name}: {what}: the connection broke ({said}){self.console_words()}"
            )
        return status, lines

    def measure_slowness(self) -> None:
        """Set `slowness` by timing the fixed job here and in the guest."""
        here_ns = int(subprocess.check_output(["sh", "-c", SPEED_SCRIPT]))
        self.slowness = EMULATION  # for the limit of this command
        _, lines = self.run(SPEED_SCRIPT, what="measuring speed", limit_seconds=MEASURE_SECONDS)
        factor = int(lines[-1]) / here_ns * patience.slowness()
        self.slowness = min(max(1.0, round(factor, 1)), patience.STATED_MAX)

    def console_words(self) -> str:
        """Return the console's last lines, as a clause of an error."""
        return console_words(self._console)

    def _ssh(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": str(int(BOOT_SECONDS)),
            "ServerAliveInterval": "30",
            "ServerAliveCountMax": "10",
            "IdentitiesOnly": "yes",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        address = ["-i", self._key_path, "-p", str(self._port), "root@127.0.0.1"]
        return ["ssh", "-F", "none", *words, *address]


@contextmanager
def booted(name: str, image: Image, payload: IO[bytes], say: Say) -> Iterator[Guest]:
    """Boot an image and yield the guest, which is ended with the block.

    `payload` is an unlinked file that the guest sees as /dev/vdb. Raises MissingError without qemu,
    DpukvError if the guest does not boot.
    """
    processes.require(PROGRAMS, "a guest")
    memory_bytes = guest_memory_bytes()
    with ExitStack() as cleanup:
        console = cleanup.enter_context(tempfile.TemporaryFile())
        key_path, public_key = cleanup.enter_context(_key())
        emulated = not has_kvm()
        say(f"booting {name} ({'emulated' if emulated else 'KVM'}, {memory_bytes >> 20} MiB)")
        # qemu requires a descriptor that is open for reading only.
        payload_fd = os.open(f"/proc/self/fd/{payload.fileno()}", os.O_RDONLY)
        cleanup.callback(os.close, payload_fd)
        for attempt in range(1, PORT_TRIES + 1):
            port = _free_port()
            argv = _qemu(image, payload_fd, port, public_key, memory_bytes)
            errors = cleanup.enter_context(tempfile.TemporaryFile())
            qemu = cleanup.enter_context(
                processes.started(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=errors,
                    pass_fds=[payload_fd],
                    env=processes.environment(TMPDIR=str(image.path.parent)),
                )
            )
            limit_seconds = BOOT_SECONDS * (EMULATION if emulated else 1.0)
            ended = _await_ssh(name, qemu, port, limit_seconds, console)
            if not ended:
                break
            said = _text(errors).strip().splitlines() or ["it said nothing"]
            if "host forwarding" not in said[-1] or attempt == PORT_TRIES:
                raise DpukvError(f"qemu ended before guest {name} was up: {said[-1]}")
        guest = Guest(name, port, key_path, console)
        guest.measure_slowness()
        yield guest


def has_kvm() -> bool:
    """Return whether the processor supports guests and we may use KVM.

    /dev/kvm alone does not suffice: nested inside a paravirtualised guest, it runs only kernels
    that are made for that.
    """
    flags = re.search(r"^flags\s*:.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and os.access("/dev/kvm", os.R_OK | os.W_OK)


def guest_memory_bytes() -> int:
    """Return a guest's memory in bytes: 4 GiB, or the free memory if that is less.

    Raises DpukvError if there is too little.
    """
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    available = (int(found[1]) << 10 if found else MEMORY_BYTES) - HOST_BYTES
    if available < MEMORY_BYTES_MIN:
        raise DpukvError(
            f"a guest needs {MEMORY_BYTES_MIN >> 20} MiB of memory, and {max(available, 0) >> 20} "
            "are available: end other programs"
        )
    return min(MEMORY_BYTES, available)


def console_words(console: IO[bytes]) -> str:
    """Return the last lines of a console, as a clause of an error."""
    lines = [line.strip() for line in _text(console).splitlines() if line.strip()]
    return f"; its console said last: {' / '.join(lines[-CONSOLE_LINES:])}" if lines else ""


def _qemu(
    image: Image, payload_fd: int, port: int, public_key: str, memory_bytes: int
) -> list[str]:
    accelerator = (
        ["-accel", "kvm", "-cpu", "host"]
        if has_kvm()
        else ["-accel", "tcg,thread=multi", "-cpu", "max"]
    )
    # systemd writes its credential ssh.authorized_keys.root to /root/.ssh/authorized_keys.
    command_line = (
        "root=/dev/vda rw console=ttyS0 net.ifnames=0 panic=-1 loglevel=4 "
        f"{' '.join(f'systemd.mask={unit}' for unit in MASKED_UNITS)} "
        f'"systemd.set_credential=ssh.authorized_keys.root:{public_key}"'
    )
    return [
        "qemu-system-x86_64",
        *accelerator,
        *("-smp", str(CPUS), "-m", str(memory_bytes >> 20)),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", command_line),
        *("-drive", f"file={image.disk},if=virtio,format=raw,snapshot=on,cache=unsafe"),
        *("-add-fd", f"fd={payload_fd},set=1"),
        *("-drive", "file=/dev/fdset/1,if=virtio,format=raw,readonly=on"),
        *("-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=net0,romfile="),
        *("-device", "virtio-rng-pci"),
        *("-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"),
    ]


def _await_ssh(
    name: str,
    qemu: subprocess.Popen[bytes],
    port: int,
    limit_seconds: float,
    console: IO[bytes],
) -> bool:
    """Wait for sshd's greeting; return whether qemu ended instead. Raises LimitError if neither
    happens in time.
    """
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        if qemu.poll() is not None:
            return True
        if _greets(port):
            return False
        time.sleep(0.5)
    raise LimitError(
        f"guest {name} did not boot within {limit_seconds:.0f} s{console_words(console)}"
    )


def _greets(port: int) -> bool:
    """Return whether sshd greets: qemu accepts connections before the guest does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def _key() -> Iterator[tuple[str, str]]:
    """Yield a new ssh key: the path of the private key, in memory of this process, and the public
    key.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "key"
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "guest", "-f", str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        private, public = path.read_bytes(), path.with_suffix(".pub").read_text().strip()
    fd = os.memfd_create("ssh-key")
    try:
        os.fchmod(fd, 0o600)  # ssh refuses keys that others may read
        os.write(fd, private)
        yield f"/proc/{os.getpid()}/fd/{fd}", public
    finally:
        os.close(fd)


def _text(file: IO[bytes]) -> str:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")


def quoted(*words: str) -> str:
    """Return words as one command line, quoted for a shell."""
    return shlex.join(words)
