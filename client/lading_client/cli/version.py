"""`lading version`."""

from __future__ import annotations

import importlib.metadata

import click

from lading_client.cli import output
from lading_client.cli.invocation import Command, Invocation, pass_invocation

PROTOCOL = "lading.v1"


@click.command(cls=Command, examples="lading version\nlading version -o json")
@pass_invocation
def version(invocation: Invocation) -> None:
    """Versions of this client and of the protocol it speaks."""
    found = {"client": importlib.metadata.version("lading"), "protocol": PROTOCOL}
    if invocation.format in ("json", "jsonl", "yaml"):
        output.show_document(invocation, found)
    else:
        output.emit(output.fields(found.items()))
