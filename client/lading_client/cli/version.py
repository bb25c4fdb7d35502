"""`lading version`."""

from __future__ import annotations

import importlib.metadata

import click

from lading_client.cli import output
from lading_client.cli.invocation import Command, Invocation, pass_invocation

PROTOCOL = "lading.v1"
PATIENCE = 2.0  # seconds


@click.command(cls=Command, examples="lading version\nlading version --server 127.0.0.1:7443 -o json")
@pass_invocation
def version(invocation: Invocation) -> None:
    """Versions of this client, of the protocol it speaks, and of the server, when that answers within 2 s."""
    server, why = _ask_server(invocation)
    found = {"client": importlib.metadata.version("lading"), "protocol": PROTOCOL, "server": server}
    if invocation.format in ("json", "jsonl", "yaml"):
        output.show_document(invocation, found | ({} if server else {"server_unknown": why}))
    else:
        output.emit(output.fields((found | {"server": server or f"not known: {why}"}).items()))


def _ask_server(invocation: Invocation) -> tuple[str, str]:
    """The server's version; or empty, and why it is not known. Nothing that is wrong on the way there is an error."""
    from lading.v1 import access_pb2
    from lading_client import errors

    try:
        context = invocation.context
        if not context.token:
            return "", f"{context.server} tells it to those who sign in (lading login)"
        asked = access_pb2.WhoAmIRequest()
        answer = invocation.client.access.WhoAmI(asked, timeout=invocation.timeout(PATIENCE))
    except click.ClickException as failure:
        return "", failure.format_message()
    except (errors.Unavailable, errors.DeadlineExceeded):
        return "", f"{context.server} does not answer (lading doctor)"
    except errors.LadingError as failure:
        return "", f"{context.server} says: {failure}"
    return answer.server_version, "" if answer.server_version else f"{context.server} is of a version before it told it"
