# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""`python -m dpukv_xdp` is the `dpukv` command."""

import os
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports: end, without a traceback
# Without it numpy's linear algebra starts a thread a core, which spins there for some 30 ms.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from dpukv_xdp.base.errors import DpukvError, MissingError, install_advice  # noqa: E402 - see above

OURS = "dpukv_xdp"


def main() -> None:
    """Run the command line. What an installation of the client alone lacks for it, be it a Python
    package or the native core, is one sentence.
    """
    try:
        from dpukv_xdp.cli.main import main as run

        run()
    except ModuleNotFoundError as error:
        package = (error.name or OURS).partition(".")[0]
        if package == OURS:
            raise
        _fail(
            MissingError("this command", f"the Python package {package}: {install_advice('all')}")
        )
    except DpukvError as error:  # from an import, before the command line catches them
        _fail(error)


def _fail(error: DpukvError) -> None:
    sys.stderr.write(f"dpukv: {error}\n")
    sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
