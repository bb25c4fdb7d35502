"""Organizations, role bindings and tokens in the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lading_server.roles import Role
from lading_server.store.schema import access_version, organizations, role_bindings, tokens
from lading_server.tokens import Claims

Row = sa.Row[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what, as of `version`: what the identity of every call is checked against.

    `bindings`: roles by organization and subject. `revoked`: ids of tokens that have not ended by themselves.
    """

    version: int
    organizations: frozenset[str]
    bindings: Mapping[tuple[str, str], frozenset[int]]
    revoked: frozenset[str]


def version(connection: sa.Connection) -> int:
    """Number of the newest change of organizations, role bindings and revocations."""
    return int(connection.execute(sa.select(access_version.c.version)).scalar_one())


def raise_version(connection: sa.Connection) -> int:
    """Count a change, in its own transaction; returns the new number."""
    return int(
        connection.execute(
            sa.update(access_version).values(version=access_version.c.version + 1).returning(access_version.c.version)
        ).scalar_one()
    )


def load(connection: sa.Connection, at: int) -> Access:
    """Everything, of all organizations. The version is read first: what is newer than it is read once more later."""
    number = version(connection)
    bindings: dict[tuple[str, str], frozenset[int]] = {}
    for organization, subject, role in connection.execute(
        sa.select(role_bindings.c.organization, role_bindings.c.subject, role_bindings.c.role)
    ):
        bindings[organization, subject] = bindings.get((organization, subject), frozenset()) | {role}
    revoked = connection.scalars(
        sa.select(tokens.c.id).where(tokens.c.revoked_at.is_not(None), tokens.c.expires_at > at)
    )
    names = connection.scalars(sa.select(organizations.c.name))
    return Access(number, frozenset(names), bindings, frozenset(revoked))


def has_organization(connection: sa.Connection, name: str) -> bool:
    """Whether there is an organization of this name."""
    found = connection.execute(sa.select(organizations.c.name).where(organizations.c.name == name))
    return found.first() is not None


def create_organization(connection: sa.Connection, name: str, at: int) -> None:
    """Add an organization; it must not exist."""
    connection.execute(sa.insert(organizations).values(name=name, created_at=at))


def bindings_of(connection: sa.Connection, organization: str, subject: str) -> Sequence[Row]:
    """Role bindings of a subject, by role."""
    return connection.execute(
        sa.select(role_bindings)
        .where(role_bindings.c.organization == organization, role_bindings.c.subject == subject)
        .order_by(role_bindings.c.role)
    ).all()


def list_bindings(
    connection: sa.Connection, organization: str, after: tuple[str, int] | None, limit: int
) -> Sequence[Row]:
    """Role bindings of an organization, by subject and role, after that key."""
    query = sa.select(role_bindings).where(role_bindings.c.organization == organization)
    if after is not None:
        query = query.where(sa.tuple_(role_bindings.c.subject, role_bindings.c.role) > sa.tuple_(*after))
    return connection.execute(query.order_by(role_bindings.c.subject, role_bindings.c.role).limit(limit)).all()


def list_admins(connection: sa.Connection, organization: str, limit: int) -> Sequence[str]:
    """Subjects that are admins of an organization, by name."""
    return connection.scalars(
        sa.select(role_bindings.c.subject)
        .where(role_bindings.c.organization == organization, role_bindings.c.role == Role.ADMIN)
        .order_by(role_bindings.c.subject)
        .limit(limit)
    ).all()


def assign_role(
    connection: sa.Connection, organization: str, subject: str, role: int, at: int, created_by: str
) -> None:
    """Add a role binding; it must not exist."""
    connection.execute(
        sa.insert(role_bindings).values(
            organization=organization, subject=subject, role=role, created_at=at, created_by=created_by
        )
    )


def remove_role(connection: sa.Connection, organization: str, subject: str, role: int) -> None:
    """Take a role binding away."""
    connection.execute(
        sa.delete(role_bindings).where(
            role_bindings.c.organization == organization,
            role_bindings.c.subject == subject,
            role_bindings.c.role == role,
        )
    )


def create_token(connection: sa.Connection, claims: Claims, created_by: str) -> None:
    """Keep what is kept of a token: all but the token."""
    connection.execute(
        sa.insert(tokens).values(
            id=claims.id,
            organization=claims.organization,
            type=claims.type,
            subject=claims.subject,
            email=claims.email,
            created_at=claims.issued_at,
            expires_at=claims.expires_at,
            created_by=created_by,
        )
    )


def find_token(connection: sa.Connection, organization: str, id: str) -> Row | None:
    """A token of an organization."""
    return connection.execute(sa.select(tokens).where(tokens.c.organization == organization, tokens.c.id == id)).first()


def revoke_token(connection: sa.Connection, id: str, at: int) -> None:
    """Make a token invalid."""
    connection.execute(sa.update(tokens).where(tokens.c.id == id).values(revoked_at=at))


def list_tokens(
    connection: sa.Connection, organization: str, before: tuple[int, str] | None, limit: int
) -> Sequence[Row]:
    """Tokens of an organization, newest first, before that key."""
    query = sa.select(tokens).where(tokens.c.organization == organization)
    if before is not None:
        query = query.where(sa.tuple_(tokens.c.created_at, tokens.c.id) < sa.tuple_(*before))
    return connection.execute(query.order_by(tokens.c.created_at.desc(), tokens.c.id.desc()).limit(limit)).all()
