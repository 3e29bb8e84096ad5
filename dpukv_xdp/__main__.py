# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""`python -m dpukv_xdp` is the `dpukv` command."""

from dpukv_xdp.cli import main

if __name__ == "__main__":
    main()
