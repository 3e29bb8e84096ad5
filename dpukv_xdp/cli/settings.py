# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Convert options of the command line to ServerConfig and BenchOptions, and refuse options that
cannot have an effect.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dpukv_xdp.base.errors import OptionError


def settings_of(
    given: dict[str, Any], *, own_server: bool, designs: Collection[str] = (), **facts: Any
) -> tuple[Any, Any]:
    """Return the command line's options as ServerConfig and BenchOptions.

    `designs` are those that are run, if they are not the configured one; `facts` are further values
    for the table of which option goes with what. Raises UsageError.
    """
    from dataclasses import fields

    from dpukv_xdp.bench.options import BenchOptions, replace_config
    from dpukv_xdp.topology import sizing

    names = {field.name for field in fields(BenchOptions)}
    load = {name: value for name, value in given.items() if name in names and value is not None}
    options = BenchOptions(**load)
    options.check()
    rest = {name: value for name, value in given.items() if name not in names}
    config = server_config(rest, designs, facts)
    if own_server:
        sizing.check_memory(replace_config(config, options))
    return config, options


def numbers_of(text: str, name: str, flag: str) -> tuple[int, ...]:
    """Return the numbers of a list such as 2,1024, each in the range of that name.

    Raises OptionError.
    """
    from dpukv_xdp.topology import ranges

    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(
            name, f"{flag} {text!r} is not a list of numbers: give one such as 2,1024"
        ) from error
    for number in numbers:
        ranges.check(name, number, flag)
    return numbers


def server_config(
    given: dict[str, Any],
    designs: Collection[str] = (),
    facts: dict[str, Any] | None = None,
    **defaults: Any,
) -> Any:
    """Return ServerConfig from --config's file and the options in `given`, checked.

    `defaults` replace ServerConfig's own; see settings_of() for `designs` and `facts`. Raises
    UsageError.
    """
    from dpukv_xdp.topology import applies, validation
    from dpukv_xdp.topology.schema import ServerConfig, load_config, read_settings

    path: Path | None = given.pop("config_path")
    for name in ("engine_cpus", "dpu_cpus"):
        if given[name] is not None:
            given[name] = _cores_of(given[name], name)
    config = load_config(path, given, **defaults)
    own = set(ServerConfig.__struct_fields__)
    options = {name: text for name, text in _given().items() if name not in own}
    try:
        validation.check(config)
        applies.check_settings(_command(), config, options, _values() | (facts or {}), designs)
    except OptionError as error:
        is_in_file = path is not None and error.option in read_settings(path)
        if not is_in_file or given.get(error.option) is not None:
            raise
        raise OptionError(error.option, f"{path}: {error}") from error
    _warn_of_full_machine(config)
    return config


def check_given(command: str | None = None, designs: Collection[str] = (), **facts: Any) -> None:
    """Raise OptionError for an option of the running command that cannot have an effect.

    `command` names the rows of the table; by default it is the running command.
    """
    from dpukv_xdp.topology import applies

    applies.check(command or _command(), _given(), _values() | facts, designs)


def _command() -> str:
    context = click.get_current_context(silent=True)
    return str(context.command.name) if context is not None else ""


def _values() -> dict[str, Any]:
    context = click.get_current_context(silent=True)
    return dict(context.params) if context is not None else {}


def _given() -> dict[str, str]:
    """Return the options on the command line that differ from their defaults, as typed."""
    context = click.get_current_context(silent=True)
    if context is None:
        return {}
    given = {}
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params.get(name)
        if (
            isinstance(parameter, click.Option)
            and context.get_parameter_source(name) == ParameterSource.COMMANDLINE
            and value != parameter.get_default(context)
        ):
            given[name] = _as_typed(parameter, value)
    return given


def _as_typed(option: click.Option, value: Any) -> str:
    if option.is_flag:
        return option.opts[0] if value else option.secondary_opts[0]
    text = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f"{option.opts[0]} {text}"


def _cores_of(text: str, name: str) -> list[int]:
    from dpukv_xdp.topology.ranges import flag_of

    try:
        return [int(cpu) for cpu in text.split(",")]
    except ValueError as error:
        raise OptionError(
            name, f"{flag_of(name)} {text!r} is not a list of cores: give one such as 0,1"
        ) from error


def _warn_of_full_machine(config: Any) -> None:
    cores = os.sched_getaffinity(0)
    if set(config.placement().host_cpus) == cores:
        click.echo(
            f"dpukv: engines on all of {len(cores)} cores poll all the time and leave hardly "
            f"anything to the XDP programs and to you: expect everything to crawl",
            err=True,
        )
