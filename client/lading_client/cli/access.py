"""`lading whoami`, `token`, `role`, `org`: who may do what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lading_client.cli import output
from lading_client.cli.invocation import Command, Group, Invocation, pass_invocation
from lading_client.cli.output import Cell, Column, Listing
from lading_client.cli.values import SPAN

if TYPE_CHECKING:
    from lading.v1.access_pb2 import RoleBinding, Token

ROLES = ("viewer", "auditor", "operator", "admin", "recorder")
KINDS = ("user", "service", "agent")


def role_name(number: int) -> str:
    from lading.v1 import access_pb2

    return access_pb2.Role.Name(number).removeprefix("ROLE_").lower()  # type: ignore[arg-type]


def _token_state(token: Token) -> Cell:
    from datetime import UTC, datetime

    from lading_client.labels import moment

    if token.HasField("revoked_at"):
        return Cell("revoked", "red")
    ends = moment(token.expires_at)
    return Cell("expired", "bright_black") if ends and ends < datetime.now(UTC) else Cell("valid", "green")


def _kind(token: Token) -> str:
    from lading.v1 import audit_log_pb2

    return audit_log_pb2.ActorType.Name(token.type).removeprefix("ACTOR_TYPE_").lower()


TOKENS: Listing[Token] = Listing(
    lambda token: token.id,
    (
        Column("ID", lambda token: token.id),
        Column("SUBJECT", lambda token: token.subject, least=12),
        Column("TYPE", _kind),
        Column("STATE", _token_state),
        Column("EXPIRES", lambda token: output.clock(token.expires_at)),
        Column("BY", lambda token: token.created_by, wide=True, least=10),
        Column("AGE", lambda token: output.age(token.created_at)),
    ),
)
BINDINGS: Listing[RoleBinding] = Listing(
    lambda binding: f"{binding.subject}/{role_name(binding.role)}",
    (
        Column("SUBJECT", lambda binding: binding.subject, least=12),
        Column("ROLE", lambda binding: role_name(binding.role)),
        Column("BY", lambda binding: binding.created_by, least=10),
        Column("AGE", lambda binding: output.age(binding.created_at)),
    ),
)


@click.command(cls=Command, examples="lading whoami\nlading whoami -o json")
@pass_invocation
def whoami(invocation: Invocation) -> None:
    """Who the server takes you for, and what you may do."""
    from lading.v1 import access_pb2
    from lading_client import labels

    me = invocation.client.access.WhoAmI(access_pb2.WhoAmIRequest())
    output.show_one(
        invocation,
        me,
        me.actor.id,
        lambda: output.fields(
            (
                ("user", labels.user(me.actor)),
                ("id", me.actor.id),
                ("type", labels.actor_type(me.actor)),
                ("organization", me.organization),
                ("roles", ", ".join(role_name(role) for role in me.roles) or "none"),
                ("permissions", ", ".join(me.permissions) or "none"),
                ("expires", output.clock(me.expires_at) if me.HasField("expires_at") else ""),
                ("server", invocation.context.server),
            )
        ),
    )


@click.group(cls=Group)
def token() -> None:
    """Tokens: how people, services and agents prove who they are."""


@token.command(
    "create",
    examples="""
    lading token create alice --email alice@example.com --lifetime 12h
    lading token create deploy-bot --kind service --role recorder
    lading token create dock-1 --kind agent > dock-1.token""",
)
@click.argument("subject")
@click.option("--kind", "--type", "kind", type=click.Choice(KINDS), default="user", help="Kind of actor. [user]")
@click.option("--email", default="", help="E-mail, for people.")
@click.option("--lifetime", type=SPAN, help="How long it is valid. [30d]")
@click.option("--role", "roles", type=click.Choice(ROLES), multiple=True, help="Assign this role too.")
@click.option("--in", "organization", default="", metavar="ORG", help="Organization; for admins of `system` only.")
@pass_invocation
def create(
    invocation: Invocation,
    subject: str,
    kind: str,
    email: str,
    lifetime: float | None,
    roles: Sequence[str],
    organization: str,
) -> None:
    """Make a token. It is printed once, alone on stdout, and not kept by the server."""
    from lading.v1 import access_pb2, audit_log_pb2
    from lading_client.requests import optional_duration

    if roles and organization:
        raise click.UsageError("Roles are assigned in your own organization only: leave out --role or --in.")
    answer = invocation.client.access.IssueToken(
        access_pb2.IssueTokenRequest(
            type=audit_log_pb2.ActorType.Value(f"ACTOR_TYPE_{kind.upper()}"),
            subject=subject,
            email=email,
            lifetime=optional_duration(lifetime),
            reason=invocation.reason,
            organization=organization,
        )
    )
    for role in roles:
        _assign(invocation, subject, role)
    output.show_one(invocation, answer, answer.secret, lambda: [answer.secret])
    until = f"valid until {output.clock(answer.token.expires_at)}"
    invocation.say(f"Token {answer.token.id} of {subject}, {until}. Revoke: lading token revoke {answer.token.id}")


@token.command("ls", examples="lading token ls")
@pass_invocation
def token_ls(invocation: Invocation) -> None:
    """List tokens, newest first, without the secrets."""
    from lading.v1 import access_pb2
    from lading_client.paging import pages

    found = pages(invocation.client.access.ListTokens, access_pb2.ListTokensRequest(page_size=500))
    output.show(invocation, TOKENS, (token for page in found for token in page.tokens))


@token.command("revoke", examples="lading token revoke 0198c2de-… --reason 'laptop lost'")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@pass_invocation
def revoke(invocation: Invocation, ids: Sequence[str]) -> None:
    """Make tokens invalid at once."""
    from lading.v1 import access_pb2

    for identifier in ids:
        request = access_pb2.RevokeTokenRequest(id=identifier, reason=invocation.reason)
        revoked = invocation.client.access.RevokeToken(request)
        click.echo(f"{revoked.id} revoked, {revoked.subject}")


@click.group(cls=Group)
def role() -> None:
    """Roles: what users and services may do in the organization."""


@role.command("ls", examples="lading role ls")
@pass_invocation
def role_ls(invocation: Invocation) -> None:
    """List who has which role."""
    from lading.v1 import access_pb2
    from lading_client.paging import pages

    found = pages(invocation.client.access.ListRoleBindings, access_pb2.ListRoleBindingsRequest(page_size=500))
    output.show(invocation, BINDINGS, (binding for page in found for binding in page.bindings))


subject_and_role = (
    click.Argument(["subject"]),
    click.Argument(["role"], type=click.Choice(ROLES), metavar="|".join(ROLES)),
)


def _assign(invocation: Invocation, subject: str, role: str) -> None:
    from lading.v1 import access_pb2

    value = access_pb2.Role.Value(f"ROLE_{role.upper()}")
    request = access_pb2.AssignRoleRequest(subject=subject, role=value, reason=invocation.reason)
    invocation.client.access.AssignRole(request)


@role.command("assign", params=list(subject_and_role), examples="lading role assign alice operator --reason 'on call'")
@pass_invocation
def assign(invocation: Invocation, subject: str, role: str) -> None:
    """Give a role to a user or service."""
    _assign(invocation, subject, role)
    click.echo(f"{subject} is {role}")


@role.command("remove", params=list(subject_and_role), examples="lading role remove alice operator")
@pass_invocation
def remove(invocation: Invocation, subject: str, role: str) -> None:
    """Take a role away."""
    from lading.v1 import access_pb2

    value = access_pb2.Role.Value(f"ROLE_{role.upper()}")
    request = access_pb2.RemoveRoleRequest(subject=subject, role=value, reason=invocation.reason)
    invocation.client.access.RemoveRole(request)
    click.echo(f"{subject} is no longer {role}")


@click.group(cls=Group)
def org() -> None:
    """Organizations."""


@org.command("create", examples="lading org create acme --admin alice")
@click.argument("name")
@click.option("--admin", required=True, metavar="SUBJECT", help="Id of its first admin.")
@pass_invocation
def org_create(invocation: Invocation, name: str, admin: str) -> None:
    """Make an organization with its first admin; for admins of the organization `system`."""
    from lading.v1 import access_pb2

    request = access_pb2.CreateOrganizationRequest(name=name, admin=admin, reason=invocation.reason)
    made = invocation.client.access.CreateOrganization(request)
    click.echo(f"{made.name} created")
    invocation.say(f"A token for its admin: lading token create {admin} --in {made.name}")
