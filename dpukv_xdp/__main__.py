# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""`python -m dpukv_xdp` is the `dpukv` command."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports: end, without a traceback

from dpukv_xdp.cli.main import main  # noqa: E402 - see above

if __name__ == "__main__":
    main()
