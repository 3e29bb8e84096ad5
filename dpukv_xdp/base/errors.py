# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Every error that dpukv_xdp raises, grouped by the party that has to act.

All derive from `DpukvError`. The text is one sentence that says what is wrong and what to do;
fields hold the facts that a program may want to inspect. The command line prints the sentence and
exits with `exit_status`.
"""


class DpukvError(Exception):
    """An expected failure, explained to the user in one sentence."""

    exit_status = 1
    """Exit status of a command that ends with this error."""


class UsageError(DpukvError):
    """An option, a name or a size is wrong: the user has to change it."""

    exit_status = 2


class OptionError(UsageError):
    """The value of one option, or of one setting in a file, cannot be used."""

    def __init__(self, option: str, sentence: str) -> None:
        """`option` is the setting's name, such as `log_bytes`; `sentence` names it as typed."""
        super().__init__(sentence)
        self.option = option


class KeyValueError(UsageError):
    """A key or a value exceeds a limit of bpf/abi: the client's caller has to change it."""


class MissingError(DpukvError):
    """This machine lacks a privilege, a kernel feature or a package."""

    def __init__(self, feature: str, needs: str) -> None:
        """`feature` names the request; `needs` says what is missing and how to get it."""
        super().__init__(f"{feature} needs {needs}")
        self.feature = feature
        self.needs = needs


def install_advice(extra: str) -> str:
    """Return the advice that tells how to install one of pyproject.toml's extras."""
    return f"install them all by pip install 'dpukv_xdp[{extra}]'"


class SocketError(MissingError):
    """AF_XDP is unavailable on an interface, or its socket is bound but receives nothing."""


class BusyError(DpukvError):
    """An interface already runs another owner's XDP program; nothing was changed."""

    def __init__(self, interface: str, program_id: int, program_name: str) -> None:
        super().__init__(
            f"{interface} already runs XDP program {program_id} ({program_name or 'no name'}), "
            "which was not touched: detach it, or choose another interface"
        )
        self.interface = interface
        self.program_id = program_id
        self.program_name = program_name


class LoadError(DpukvError):
    """A BPF program did not compile, or the kernel's verifier refused it."""

    def __init__(self, summary: str, log: str = "") -> None:
        """`summary` is the log's decisive line; `log` is the compiler's or the verifier's log."""
        super().__init__(summary)
        self.summary = summary
        self.log = log


class DirectoryError(DpukvError):
    """The directory of servers cannot be used, or lists no server that matches."""


class RecordError(DirectoryError):
    """A server's record violates MICA2's format: its publisher has to act."""


class ServerError(DpukvError):
    """The server answered with a failure, or cannot continue."""


class NoResponseError(ServerError):
    """No answer arrived in time: no server has that address, or every attempt was lost."""

    def __init__(self, endpoint: str, waited_seconds: float, note: str = "") -> None:
        """`note` is appended to the sentence."""
        super().__init__(
            f"no answer from {endpoint} within {waited_seconds:.3g} s: check the address, and that "
            f"a server runs there{note}"
        )
        self.endpoint = endpoint
        self.waited_seconds = waited_seconds


class RefusedError(NoResponseError):
    """The host answered that nothing listens on the port (ICMP port unreachable)."""

    def __init__(self, endpoint: str, waited_seconds: float, note: str = "") -> None:
        super().__init__(endpoint, waited_seconds)
        self.args = (
            f"{endpoint} refused the connection: no server listens on that UDP port, check the "
            f"port and that the server runs{note}",
        )


class ResultError(ServerError):
    """The server answered a request with a result code that the client cannot turn into a value."""

    def __init__(self, endpoint: str, result: str, advice: str) -> None:
        """`result` is the code's name in bpf/abi."""
        super().__init__(f"{endpoint} answered {result}: {advice}")
        self.endpoint = endpoint
        self.result = result


class ProtocolError(DpukvError):
    """Received bytes violate the protocol; each subclass is one kind of violation."""


class FrameError(ProtocolError):
    """The frame is not plain IPv4/UDP (no options, no fragments), or its lengths disagree."""


class MagicError(ProtocolError):
    """The datagram does not begin with the expected batch header."""


class TruncatedError(ProtocolError):
    """A header, key or value extends beyond the end of the datagram."""


class BatchLengthError(ProtocolError):
    """The datagram holds more than KV_BATCH_MAX items."""
