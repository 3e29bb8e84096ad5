# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""`dpukv doctor` on this machine, on machines with gaps, and with programs that fail to load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from net.commands import DPUKV, TIMEOUT_SECONDS

from dpukv_xdp.kernel.features import FEATURES, TRIED_KERNELS
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.ops.builds import usual_builds

pytestmark = pytest.mark.shares_cores


def doctor(*command: str) -> subprocess.CompletedProcess[str]:
    """Run `dpukv doctor` with --json, `dpukv` by these words; it leaves no lab."""
    arguments = [*command, "doctor", "--json", "-"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()
    assert process.pid not in {lab.owner.pid for lab in labs.list_labs()}
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def test_this_machine_has_what_it_takes() -> None:
    run = doctor(*DPUKV)
    assert (run.returncode, run.stderr) == (0, "")
    found = {check["name"]: check for check in json.loads(run.stdout)}
    assert found["kernel"]["tried"] == list(TRIED_KERNELS)
    for name in FEATURES:
        assert name in found
    for build in usual_builds():
        check = found[f"programs of {build.name}"]
        assert check["ok"], check
        assert set(check["verified"]) == {*build.programs, *build.tail_calls}
        assert all(0 < count < 1_000_000 for count in check["verified"].values())


def shell(script: str) -> list[str]:
    """Return the words that run a script first, in a mount namespace of its own."""
    return ["unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh"]


HIDDEN = {
    "no_sys": (shell("mount -t tmpfs none /sys"), []),
    "read_only_cache": (
        [*shell("mount -t tmpfs -o ro none /var/cache"), "env", "XDG_CACHE_HOME=/proc"],
        ["kernel headers"],
    ),
    "read_only_run": (shell("mount -t tmpfs -o ro none /run"), ["network namespaces"]),
    "no_capabilities": (
        ["setpriv", "--bounding-set=-all"],
        ["privilege", "BPF system call", "live frames", "AF_XDP"],
    ),
    "no_net_raw": (["setpriv", "--bounding-set=-net_raw"], ["AF_XDP"]),
    "not_root": (
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
        ["privilege", "programs", "native XDP on veth"],
    ),
}
"""Scripts that hide something from the machine, and the checks that must then fail."""


DOCTOR_OF_ONE = """
from dpukv_xdp.cli.main import main
from dpukv_xdp.ops import doctor
usual = doctor.usual_builds()
doctor.usual_builds = lambda: usual[:1]
main()
"""


@pytest.mark.parametrize(("around", "lacking"), HIDDEN.values(), ids=list(HIDDEN))
def test_it_finishes_whatever_is_missing(around: list[str], lacking: list[str]) -> None:
    """It loads the programs of one design only, as all of them would take seconds."""
    run = doctor(*around, sys.executable, "-P", "-c", DOCTOR_OF_ONE)
    assert "Traceback" not in run.stderr
    found = {check["name"]: check for check in json.loads(run.stdout)}
    for name in lacking:
        assert not found[name]["ok"], found[name]
        assert found[name]["remedy"]
    is_well = all(check["ok"] for check in found.values() if check["required"])
    assert run.returncode == int(not is_well)


REFUSED_BY_THE_VERIFIER = "int broken(struct xdp_md *ctx) { return *(int *)(long)ctx->data; }\n"
REFUSED_BY_CLANG = "int broken(struct xdp_md *ctx) { return nothing; }\n"
DOCTOR_OF = """
import sys
from dpukv_xdp.cli.main import main
from dpukv_xdp.kernel.loader import Build
from dpukv_xdp.ops import doctor
source = sys.argv.pop(1)
doctor.usual_builds = lambda: [Build("broken", source, ("broken",), {})]
main()
"""


@pytest.mark.parametrize(
    ("text", "says", "remedy"),
    [
        (REFUSED_BY_THE_VERIFIER, "was refused by the kernel's verifier: R", TRIED_KERNELS[0]),
        (REFUSED_BY_CLANG, "error: use of undeclared identifier 'nothing'", "tools/setup"),
    ],
    ids=["verifier", "clang"],
)
def test_a_program_that_is_refused_is_reported_with_its_line(
    tmp_path: Path, text: str, says: str, remedy: str
) -> None:
    source = tmp_path / "broken.c"
    source.write_text(text)
    run = subprocess.run(
        [sys.executable, "-P", "-c", DOCTOR_OF, str(source), "doctor"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert (run.returncode, run.stderr) == (1, "")
    (line,) = (line for line in run.stdout.splitlines() if "programs of broken" in line)
    assert line.startswith("MISSING programs of broken: ")
    assert "broken.c" in line
    assert says in line
    assert remedy in line
