# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Commands for clients: get, set, add, delete and increment."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.cli.options import client_options
from dpukv_xdp.cli.output import emit_json, require_root
from dpukv_xdp.cli.settings import check_given

if TYPE_CHECKING:  # the command that needs it imports it
    from dpukv_xdp.client.client import Client


@click.command()
@click.argument("key")
@client_options
def get(key: str, json_path: str | None, **whom: Any) -> None:
    """Print a key's value; exit status 1 if there is no such key."""
    with _client(**whom) as client:
        value = client.get(key)
    found = value is not None
    text = value.decode(errors="backslashreplace") if found else None
    emit_json(json_path, {"key": key, "found": found, "value": text})
    if json_path != "-" and found:
        click.echo(value)
    if not found:
        raise DpukvError(f"there is no key {key!r}")


@click.command(name="set")
@click.argument("key")
@click.argument("value")
@client_options
def set_command(key: str, value: str, json_path: str | None, **whom: Any) -> None:
    """Store a value under a key."""
    with _client(**whom) as client:
        stored = client.set(key, value)
    emit_json(json_path, {"key": key, "stored": stored})
    if not stored:
        raise DpukvError(f"the server did not store {key!r}")


@click.command()
@click.argument("key")
@click.argument("value")
@client_options
def add(key: str, value: str, json_path: str | None, **whom: Any) -> None:
    """Store a value under a new key; exit status 1 if the key exists."""
    with _client(**whom) as client:
        added = client.add(key, value)
    emit_json(json_path, {"key": key, "added": added})
    if not added:
        raise DpukvError(f"there is a key {key!r} already")


@click.command()
@click.argument("key")
@client_options
def delete(key: str, json_path: str | None, **whom: Any) -> None:
    """Delete a key; exit status 1 if there is no such key."""
    with _client(**whom) as client:
        deleted = client.delete(key)
    emit_json(json_path, {"key": key, "deleted": deleted})
    if not deleted:
        raise DpukvError(f"there is no key {key!r}")


@click.command()
@click.argument("key")
@click.argument("by", type=int, default=1)
@client_options
def increment(key: str, by: int, json_path: str | None, **whom: Any) -> None:
    """Add BY to a counter; a new counter begins at BY.

    Counters are values of 8 bytes, little endian.
    """
    with _client(**whom) as client:
        value = client.increment(key, by)
        if value is None and client.add(key, (by % 2**64).to_bytes(8, "little")):
            value = by
        if value is None:  # another client has added it meanwhile
            value = client.increment(key, by)
    emit_json(json_path, {"key": key, "value": value})
    if value is None:
        raise DpukvError(f"key {key!r} came and went: try again")
    if json_path != "-":
        click.echo(value)


@contextlib.contextmanager
def _client(
    server_address: str | None,
    directory: str | None,
    lab_id: str | None,
    engines: int,
    timeout: float,
) -> Iterator["Client"]:
    """Yield a client of the server named, of the servers in a directory, or of a lab's server.

    Raises UsageError for options that exclude one another or are out of range.
    """
    from dpukv_xdp.client.client import Client
    from dpukv_xdp.client.routing import parse_address

    if sum(where is not None for where in (server_address, directory, lab_id)) > 1:
        raise UsageError("--server, --directory and --lab exclude one another")
    check_given()
    if server_address is not None:
        with Client(parse_address(server_address), timeout=timeout, ports=engines) as client:
            yield client
    elif directory is not None:
        with Client.from_directory(directory, timeout=timeout) as client:
            yield client
    else:
        with _lab_client(lab_id, timeout) as client:
            yield client


@contextlib.contextmanager
def _lab_client(lab_id: str | None, timeout: float) -> Iterator["Client"]:
    """Yield a client of a lab's server in the lab's client namespace; by default of the only lab.

    Raises UsageError if no lab is named and there is not exactly one.
    """
    from dpukv_xdp.client.client import Client
    from dpukv_xdp.kernel.namespaces import in_namespace
    from dpukv_xdp.lab.lab import Lab, list_labs

    if lab_id is None:
        labs = [record.lab_id for record in list_labs() if record.persistent]
        if len(labs) != 1:
            raise UsageError(
                f"{len(labs) or 'no'} labs are up: name a server with --server HOST:PORT or a lab "
                f"with --lab, or build one with `dpukv lab up`"
            )
        lab_id = labs[0]
    require_root("entering a lab's namespace")
    place = Lab.load(lab_id)
    details = place.record.details
    with in_namespace(place.client.namespace):
        if details["directory"]:
            client = Client.from_directory(
                details["directory"], server=details["name"], timeout=timeout
            )
        else:
            address = (place.server.address, details["port"])
            ports, owners = details["engines"], details["owners"]
            client = Client(address, timeout=timeout, ports=ports, owners=owners)
        with client:
            yield client
