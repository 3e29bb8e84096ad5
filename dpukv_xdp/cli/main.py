# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The command `dpukv`: gather all commands; turn errors into one sentence and an exit status.

Modules that take long to import are imported by the command that needs them: `dpukv --help` and
`dpukv get` answer at once.
"""

import errno
import os
import signal
import sys

import click

from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.base.patience import check_stated
from dpukv_xdp.cli.asking import add, delete, get, increment, set_command
from dpukv_xdp.cli.compare import compare
from dpukv_xdp.cli.informing import designs, doctor
from dpukv_xdp.cli.labs import lab_group
from dpukv_xdp.cli.measuring import bench, demo, qp_bench
from dpukv_xdp.cli.model import model, recommend
from dpukv_xdp.cli.reproduce import reproduce
from dpukv_xdp.cli.serving import rebalance, serve, stats
from dpukv_xdp.cli.signals import Interrupted, signals


def main() -> None:
    """Run the command line; report an expected failure as one sentence on stderr."""
    # Until a command calls signals.catch(), nothing is built: a signal ends the process at once.
    # A shell starts background jobs with SIGINT ignored, but `kill -INT` must end them, too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        cli.main(standalone_mode=False, prog_name="dpukv")
        sys.stdout.flush()
    except DpukvError as error:
        _fail(str(error), error.exit_status)
    except click.ClickException as error:
        _fail(error.format_message(), UsageError.exit_status)
    except Interrupted as interrupted:
        _fail("interrupted; everything has been taken down", interrupted.exit_status)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _fail("the disk that the output goes to is full", 1)
    finally:
        signals.end()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dpukv_xdp", prog_name="dpukv")
def cli() -> None:
    """dpukv_xdp: an in-memory key-value store whose communication engine is XDP.

    Start with `dpukv demo`; `dpukv doctor` says what this machine lacks.
    """
    check_stated()


def _fail(sentence: str, status: int) -> None:
    click.echo(f"dpukv: {sentence}", err=True)
    sys.exit(status)


for command in (
    *(add, delete, get, increment, set_command),
    *(bench, compare, demo, model, qp_bench, recommend, reproduce),
    *(designs, doctor, lab_group, rebalance, serve, stats),
):
    cli.add_command(command)
