"""What the server's own command does to a database and a data directory: begin them, migrate, make tokens.

Whoever can do this has the signing key and the database in hand, so there is nobody to ask for permission; it is
recorded all the same, with the server itself as actor, on behalf of the user of the operating system.
"""

import asyncio
import contextlib
import os
import pwd
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from lading_server import diff, errors, signer, tokens
from lading_server.clock import new_id, now
from lading_server.event import SYSTEM, Actor, ActorType, Event, Outcome, Stage
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.roles import Role
from lading_server.settings import ISSUER, InvalidSettings, Settings
from lading_server.store import access, database, tiles
from lading_server.tree import Edge

R = TypeVar("R")
ACTOR_ID = "lading-server"


class AlreadyInitialized(errors.Error):
    """The database is initialized already: `lading server run` serves it, `lading server token` makes a new token."""


class NothingToAccept(errors.FailedPrecondition):
    """The log extends what was signed of it: there is nothing to accept."""


class NoAdmin(errors.Error):
    """The subject is not an admin."""


def check(settings: Settings) -> None:
    """Whether a server can start here. Raises BadKey, WrongRevision, StoreUnavailable, each with what to run."""
    tokens.load_key(settings.data)
    with _engine(settings) as engine, database.reachable():
        database.check_revision(engine)


def migrate(settings: Settings) -> str:
    """Bring the database to this version's revision; returns that revision. Raises StoreUnavailable."""
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as failure:
        raise InvalidSettings(f"--data {settings.data}: {failure.strerror}") from None
    signer.create(settings.data)
    with _engine(settings) as engine, database.reachable():
        return database.migrate(engine)


def initialize(settings: Settings, organization: str, admin: str, email: str, lifetime_seconds: int) -> str:
    """Make database, key, the organizations `system` and `organization` with their first admin; returns its token.

    A crash leaves a migrated database and perhaps a key, and the same command goes on from there; or, after the
    commit, everything but the token on the screen, for which there is `lading server token`.
    Raises AlreadyInitialized, StoreUnavailable, LedgerUnavailable, BadKey.
    """
    migrate(settings)
    claims = _claims(organization, admin, email, lifetime_seconds)

    def apply(transaction: Transaction) -> str:
        if access.has_organization(transaction.connection, SYSTEM):
            raise AlreadyInitialized
        key = tokens.create_key(settings.data)
        for name in (SYSTEM, organization):
            birth = _begin(transaction, name, admin)
            if name == organization:
                _keep(transaction, claims, "lading server init", birth)
        access.raise_version(transaction.connection)
        return tokens.sign(key, claims, settings.audience)

    return _commit(settings, (SYSTEM, organization), apply)


def issue_token(settings: Settings, organization: str, subject: str, email: str, lifetime_seconds: int) -> str:
    """A new token for an admin whose last one is lost. Raises NoAdmin, BadKey, WrongRevision, StoreUnavailable."""
    check(settings)
    key = tokens.load_key(settings.data)
    claims = _claims(organization, subject, email, lifetime_seconds)

    def apply(transaction: Transaction) -> str:
        if not access.has_organization(transaction.connection, organization):
            raise NoAdmin(f"there is no organization {organization}")
        if Role.ADMIN not in {row.role for row in access.bindings_of(transaction.connection, organization, subject)}:
            admins = ", ".join(access.list_admins(transaction.connection, organization, 10))
            raise NoAdmin(f"{subject} is not an admin of {organization}, but these are: {admins}")
        _keep(transaction, claims, "lading server token", "")
        return tokens.sign(key, claims, settings.audience)

    return _commit(settings, (organization,), apply)


def accept_rollback(settings: Settings, organization: str, reason: str) -> tuple[int, int]:
    """Go on with a log that went back; returns its size, and that which was signed. Recorded there and in `system`.

    A crash before the last line leaves the records and a log that is refused as before: the same command goes on.
    Raises NothingToAccept, NoLogKey, BadKey, WrongRevision, StoreUnavailable, LedgerUnavailable; Damaged for a log that
    is not whole, which nobody could verify; RolledBack when the log `system` must be accepted first.
    """
    check(settings)
    log_signer = signer.load(settings.data)
    with _engine(settings) as engine, database.reachable(), engine.connect() as connection:
        edge, extends = _look(connection, log_signer, organization)
        if extends:
            raise NothingToAccept
        if organization != SYSTEM and not _look(connection, log_signer, SYSTEM)[1]:
            raise signer.RolledBack(
                f"the log of {SYSTEM} went back too, and what is accepted of others is recorded there. Accept it "
                f"first, and then {organization}, with the --data and --database of this call:\n"
                f"  lading server accept-rollback --org {SYSTEM} --reason TEXT\n"
                f"  lading server accept-rollback --org {organization} --reason TEXT",
                metadata={"organization": SYSTEM},
                code=errors.Code.FAILED_PRECONDITION,
            )
        try:
            tiles.check(connection, organization, edge)
        except ValueError as failure:
            raise damaged(organization, failure) from failure
        was = log_signer.accept(organization, edge.size, edge.root())
    assert was is not None, "what was never signed cannot go back"
    signed, found = ({"size": one.size, "root": one.root.hex()} for one in (was, signer.Signed(edge.size, edge.root())))
    made = diff.change("logs", organization, was=signed, value=found)

    def apply(transaction: Transaction) -> None:
        event = _event(organization, "log.rollback.accept", ("log", organization), reason, made)
        transaction.append(event)
        if organization != SYSTEM:
            transaction.append(_event(SYSTEM, event.action, event.targets[0], reason, made, event.operation))

    _commit(settings, tuple({organization, SYSTEM}), apply, log_signer)
    log_signer.keep(organization)
    return edge.size, was.size


def _look(connection: Any, log_signer: signer.Signer, organization: str) -> tuple[Edge, bool]:
    """The end of a log, and whether it extends what was signed of it. Raises Damaged."""
    try:
        edge = tiles.read_edge(connection, organization)
    except ValueError as failure:
        raise damaged(organization, failure) from failure

    def prove(first: int, size: int) -> tuple[bytes, ...]:
        return tiles.consistency(connection, organization, tiles.Cache(), first, size)

    try:
        log_signer.check(organization, edge.size, edge.root(), prove)
    except signer.RolledBack:
        return edge, False
    return edge, True


def damaged(organization: str, failure: ValueError) -> errors.Damaged:
    return errors.Damaged(
        f"the log of {organization} cannot be accepted, it is damaged: {failure}. Bring back a database that is whole"
    )


def _begin(transaction: Transaction, organization: str, admin: str) -> str:
    """Make an organization with its first admin; returns the operation of its birth."""
    connection, at = transaction.connection, transaction.recorded_at
    access.create_organization(connection, organization, at)
    access.assign_role(connection, organization, admin, Role.ADMIN, at, ACTOR_ID)
    reason = "lading server init"
    made = diff.change("organizations", organization, was=None, value={"name": organization})
    birth = _event(organization, "organization.create", ("organization", organization), reason, made)
    transaction.append(birth)
    bound = diff.change("role_bindings", admin, was=None, value=["admin"])
    transaction.append(_event(organization, "rbac.role.assign", ("role", admin), reason, bound, birth.operation))
    return birth.operation


def _keep(transaction: Transaction, claims: tokens.Claims, reason: str, parent: str) -> None:
    """Keep what is kept of a token, and record its issue."""
    access.create_token(transaction.connection, claims, ACTOR_ID)
    issued = tokens.diff_of(claims)
    transaction.append(_event(claims.organization, "token.issue", ("token", claims.subject), reason, issued, parent))


def _claims(organization: str, subject: str, email: str, lifetime_seconds: int) -> tokens.Claims:
    at = now() // tokens.MICROSECONDS * tokens.MICROSECONDS
    ends = at + lifetime_seconds * tokens.MICROSECONDS
    return tokens.Claims(ISSUER, organization, ActorType.USER, subject, new_id(), at, ends, email)


def _event(
    organization: str,
    action: str,
    target: tuple[str, str],
    reason: str,
    made: list[dict[str, Any]],
    parent: str = "",
) -> Event:
    return Event(
        id=new_id(),
        organization=organization,
        operation=new_id(),
        parent=parent,
        stage=Stage.COMPLETED,
        occurred_at=now(),
        actor=Actor(ActorType.SERVICE, ACTOR_ID, auth_method="local", on_behalf_of=_user()),
        action=action,
        outcome=Outcome.SUCCESS,
        changes=True,
        targets=(target,),
        reason=reason,
        details={"diff": made},
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


@contextlib.contextmanager
def _engine(settings: Settings) -> Iterator[Any]:
    try:
        engine = database.open_engine(settings.database_url)
    except ValueError as failure:
        raise InvalidSettings(f"--database: {failure}") from None
    try:
        yield engine
    finally:
        engine.dispose()


def _commit(
    settings: Settings,
    organizations: tuple[str, ...],
    apply: Callable[[Transaction], R],
    log_signer: signer.Signer | None = None,
) -> R:
    async def commit(engine: Any) -> R:
        ledger = Ledger(engine, log_signer or signer.load(settings.data), boot_id=new_id())
        ledger.start()
        try:
            return await ledger.commit(organizations, apply)
        finally:
            await ledger.close()

    with _engine(settings) as engine:
        return asyncio.run(commit(engine))
