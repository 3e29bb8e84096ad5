# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Settings that a guest inherits from its host: mirrors, proxies, certificates, pip's index."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CERTIFICATES_DIR = Path("/usr/local/share/ca-certificates")
"""Certificates that this host trusts in addition to Debian's."""
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")
APT_SETTINGS = re.compile(
    r'^(Acquire::(?:(?:http|https|ftp)::.*|Check-Valid-Until|Check-Date|ForceIPv[46])) "(.*)";$'
)
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "cert", "proxy", "default-timeout")
KEPT_BY_SUDO = ("DPUKV_*", "PIP_*", *PROXIES)
"""Environment variables that sudo keeps in a guest."""


def apt_sources(release: str, suite: str) -> list[str]:
    """Return lines of sources.list for `release` and `suite` on this host's mirrors.

    A Debian host of another release uses its own mirrors with `release`. Empty if this host has no
    Debian mirror: mmdebstrap then uses Debian's own.
    """
    if not _has("apt-get"):
        return []
    own = _codename()
    listing = _output(
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    )
    found = [line.split() for line in dict.fromkeys(listing.splitlines())]
    lines, base = [], None
    for uri, suite_here, component in found:
        match = re.fullmatch(rf"{own}(-updates|-security)?", suite_here)
        if match and component == "main":
            lines.append(f"deb {uri} {release}{match[1] or ''} main")
            base = base or (None if match[1] else uri)
    if base and suite != release:
        lines.append(f"deb {base} {suite} main")
    return lines if base else []


def apt_settings() -> list[str]:
    """Return lines of apt.conf: this host's settings for reaching mirrors."""
    if not _has("apt-config"):
        return []
    found = (APT_SETTINGS.match(line) for line in _output("apt-config", "dump").splitlines())
    return [f'{match[1]} "{match[2]}"' for match in found if match]


def certificate_hooks() -> list[str]:
    """Return mmdebstrap's hooks that install this host's trusted certificates in a guest."""
    if not any(CERTIFICATES_DIR.glob("**/*.crt")):
        return []
    return [
        f"copy-in {CERTIFICATES_DIR} {CERTIFICATES_DIR.parent}",
        'chroot "$1" update-ca-certificates >/dev/null',
    ]


def guest_files() -> dict[str, str]:
    """Return the files that turn a tree of packages into a guest: text by path."""
    proxies = [f"{name}={os.environ[name]}\n" for name in PROXIES if os.environ.get(name)]
    return {
        "etc/hostname": "guest\n",
        "etc/hosts": "127.0.0.1 localhost guest\n",
        "etc/network/interfaces": "auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n",
        "etc/environment": "".join(proxies),
        "etc/pip.conf": "".join(["[global]\n", *pip_settings()]),
        "etc/sudoers.d/guest": f'Defaults env_keep += "{" ".join(KEPT_BY_SUDO)}"\n',
        "etc/systemd/system.conf.d/guest.conf": "[Manager]\nDefaultTimeoutStartSec=300s\n",
    }


def pip_settings() -> list[str]:
    """Return lines of pip.conf: this host's settings that are valid in a guest, too."""
    listing = _output(sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check")
    settings: dict[str, str] = {}
    for line in listing.splitlines():
        match = re.fullmatch(r"(?::env:|global)\.([\w-]+)='(.*)'", line)
        if match and match[1] in PIP_SETTINGS:
            urls = [word for word in match[2].split() if not word.startswith("file:")]
            if urls:
                settings[match[1]] = " ".join(urls)
    return [f"{name} = {value}\n" for name, value in settings.items()]


def _has(program: str) -> bool:
    return shutil.which(program) is not None


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def _codename() -> str:
    text = Path("/etc/os-release").read_text()
    found = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    return found.get("VERSION_CODENAME", "") if found.get("ID") == "debian" else ""
