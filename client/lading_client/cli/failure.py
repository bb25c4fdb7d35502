"""A failed call, in sentences: what went wrong, and what helps."""

from __future__ import annotations

from collections.abc import Iterator

import click

from lading_client import errors, names
from lading_client.cli.output import printable

HELP = {
    "UNAUTHENTICATED": "Sign in: lading login. Or set LADING_TOKEN.",
    "UNAVAILABLE": "What is wrong: lading doctor",
    "UNIMPLEMENTED": "Versions: lading version",
}
# What the server says of a command that has ended; else it was the caller's time that was over.
COMMAND_FAILED = "COMMAND_FAILED"


def sentences(error: errors.LadingError, verbose: bool = False) -> Iterator[str]:
    message = " ".join(printable(line) for line in str(error).splitlines())
    yield f"{click.style(error.code, fg='red')}: {message}"
    for field, description in error.fields:
        told = f"{printable(field)}: {printable(description)}"
        if told not in message:
            yield f"  {told}"
    if error.retry_after:
        yield f"Try again in {error.retry_after:g} s."
    if error.command and isinstance(error, errors.DeadlineExceeded) and error.reason != COMMAND_FAILED:
        yield f"The command may still finish: lading commands wait {names.short(error.command)}"
    elif error.command:
        yield f"Show: lading audit ls cmd:{names.short(error.command)}"
    elif error.operation and verbose:
        yield f"Show: lading audit ls cmd:{error.operation}"
    if error.code in HELP and not error.command:
        yield HELP[error.code]
