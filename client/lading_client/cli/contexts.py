"""`lading login`, `logout`, `context`: servers and tokens that are saved."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import click

from lading_client.cli import config, output
from lading_client.cli.invocation import DEFAULT_SERVER, Command, Group, Invocation, pass_invocation


@click.command(
    cls=Command,
    examples="""
    lading login --server lading.example.com:7443 --ca ca.pem
    lading token create me | lading login --context mine""",
)
@pass_invocation
def login(invocation: Invocation) -> None:
    """Save a server and a token, once the server has accepted it.

    The token is asked for, or read from stdin or LADING_TOKEN. --context names it; else the organization does.
    """
    from lading.v1 import access_pb2
    from lading_client import labels
    from lading_client.client import Client

    server = invocation.flag("server", "LADING_SERVER")
    name = invocation.flag("context")
    known = invocation.saved.contexts.get(name or invocation.saved.current)
    server = server or (known.server if known else DEFAULT_SERVER)
    given = invocation.flag("ca", default=known.ca if known and known.server == server else "")
    ca = os.path.abspath(given) if given else ""
    token = _token(server)
    try:
        client = Client(server, token=token, ca=ca or None, source="cli", timeout=invocation.timeout())
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from None
    with client:
        me = client.access.WhoAmI(access_pb2.WhoAmIRequest())
    name = name or me.organization
    config.write(invocation.saved.with_context(name, config.Context(server, token, me.organization, ca)))
    click.echo(f"Signed in at {server} as {labels.user(me.actor)}, organization {me.organization}. Context: {name}.")


def _token(server: str) -> str:
    if token := os.environ.get("LADING_TOKEN"):
        return token
    text = click.prompt(f"Token for {server}", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
    if not text.strip():
        raise click.UsageError("No token. Make one: lading token create SUBJECT")
    return str(text.strip())


@click.command(cls=Command, examples="lading logout\nlading logout --context acme")
@pass_invocation
def logout(invocation: Invocation) -> None:
    """Forget the token of a context. To make it invalid too: lading token revoke."""
    name = invocation.flag("context", default=invocation.saved.current)
    if name not in invocation.saved.contexts:
        invocation.say("You are not signed in.")
        return
    contexts = {**invocation.saved.contexts, name: replace(invocation.saved.contexts[name], token="")}
    config.write(replace(invocation.saved, contexts=contexts))
    click.echo(f"Signed out of {name}.")


@click.group(cls=Group)
def context() -> None:
    """Servers and tokens that are saved."""


@context.command("ls", examples="lading context ls")
@pass_invocation
def ls(invocation: Invocation) -> None:
    """List contexts; the one in use has a star."""
    from lading_client import claims

    rows = []
    for name, saved in invocation.saved.contexts.items():
        ends = claims.expires_at(saved.token)
        rows.append(
            {
                "current": name == invocation.saved.current,
                "name": name,
                "server": saved.server,
                "organization": saved.org,
                "token_expires_at": ends.isoformat().replace("+00:00", "Z") if ends else "",
            }
        )
    if invocation.format in ("json", "jsonl", "yaml"):
        output.show_document(invocation, rows)
    elif invocation.format == "name" or invocation.quiet:
        output.emit(str(row["name"]) for row in rows)
    else:
        output.emit(output.Table(LISTING).lines(rows))


@context.command("use", examples="lading context use acme")
@click.argument("name")
@pass_invocation
def use(invocation: Invocation, name: str) -> None:
    """Use a context from now on."""
    _known(invocation, name)
    config.write(replace(invocation.saved, current=name))
    click.echo(f"Using {name}.")


@context.command("rm", examples="lading context rm acme")
@click.argument("name")
@pass_invocation
def rm(invocation: Invocation, name: str) -> None:
    """Forget a context and its token."""
    _known(invocation, name)
    config.write(invocation.saved.without(name))
    click.echo(f"{name} removed.")


def _known(invocation: Invocation, name: str) -> None:
    if name not in invocation.saved.contexts:
        known = ", ".join(invocation.saved.contexts) or "none"
        raise click.UsageError(f"There is no context {name}. Contexts: {known}.")


LISTING: output.Listing[dict[str, object]] = output.Listing(
    lambda row: str(row["name"]),
    (
        output.Column("", lambda row: "*" if row["current"] else " "),
        output.Column("CONTEXT", lambda row: str(row["name"])),
        output.Column("SERVER", lambda row: str(row["server"])),
        output.Column("ORG", lambda row: str(row["organization"] or "-")),
        output.Column("EXPIRES", lambda row: str(row["token_expires_at"] or "no token")),
    ),
)
