# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""`tools/test --kernels`: test this checkout on other kernels, in guests of Debian packages."""
