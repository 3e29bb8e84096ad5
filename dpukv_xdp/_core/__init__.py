# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The native core: engines, stores, senders, load generators in C. MissingError if it is not built.

An installation without a C compiler or libxdp is a client only.
"""

from importlib.util import find_spec

from dpukv_xdp.base.errors import MissingError

if find_spec("dpukv_xdp._core._native") is None:
    raise MissingError(
        "this part of dpukv_xdp",
        "the native core, which this installation was built without: install a C compiler and the "
        "headers of libxdp, libbpf and Python, then install dpukv_xdp again",
    )
