# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Every transport, way to respond and switch gives the same answers, drops what is malformed for
the same reasons, and lets pass what is not ours.
"""

import itertools
import random
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args
from unittest import mock

import bpf.harness
import pytest
from bpf.test_malformed import FIELD_CASES, ITEM_CASES, TRUNCATED_CASES
from net.conversation import conversation, converse
from net.serving import (
    DROPS,
    PORT,
    TIMEOUT_SECONDS,
    Wire,
    answer_of,
    bpf_descriptors,
    client_of,
    ends,
    gained,
    leave_room,
    native_threads,
    serving,
)
from pyroute2 import IPRoute

from dpukv_xdp import abi, codec, nic
from dpukv_xdp import lab as labs
from dpukv_xdp.codec import Request
from dpukv_xdp.config import (
    FRAMES,
    RESPOND_WAYS,
    TRANSPORTS,
    Prepare,
    Send,
    ServerConfig,
    Transfer,
)
from dpukv_xdp.designs import DESIGNS
from dpukv_xdp.errors import SocketError, UsageError
from dpukv_xdp.lab import Lab
from dpukv_xdp.loader import LoadedObject
from dpukv_xdp.profiles import PROFILES

PACKETS = 120
DOOR = "door packet"
SETTINGS: dict[str, tuple[Any, ...]] = {
    "design": tuple(DESIGNS),
    "transport": TRANSPORTS,
    "frames": FRAMES,
    "respond": RESPOND_WAYS,
    "transfer": get_args(Transfer),
    "prepare": get_args(Prepare),
    "send": get_args(Send),
    "profile": tuple(PROFILES),
}
Settings = dict[str, Any]


def every_pair() -> Iterator[Settings]:
    """Settings in which every value meets every value of every other setting that it may meet."""
    names = list(SETTINGS)
    choices = [dict(zip(names, values, strict=True)) for values in itertools.product(*SETTINGS.values())]
    random.Random(len(choices)).shuffle(choices)
    choices = [settings for settings in choices if is_allowed(settings)]
    pairs = {id(settings): set(itertools.combinations(settings.items(), 2)) for settings in choices}
    left = set().union(*pairs.values())
    while left:
        best = max(choices, key=lambda settings: len(pairs[id(settings)] & left))
        left -= pairs[id(best)]
        yield best
