"""The service Access: roles, organizations and tokens."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lading.v1 import access_pb2, access_pb2_grpc, audit_log_pb2
from lading_server import call, diff, errors, names, paging, tokens
from lading_server.boots import VERSION
from lading_server.call import Call, Change
from lading_server.clock import new_id, now
from lading_server.event import SYSTEM, ActorType, Event, Outcome, Stage
from lading_server.identity import Identity
from lading_server.ledger.transaction import Transaction
from lading_server.roles import Role
from lading_server.services.resources import stamp
from lading_server.settings import ISSUER
from lading_server.store import access
from lading_server.store.reader import Reader

DAY_SECONDS = 24 * 3600
LIFETIME_SECONDS = 30 * DAY_SECONDS
LIFETIME_SECONDS_MAX = 366 * DAY_SECONDS


class Access(access_pb2_grpc.AccessServicer):
    """Reads and changes who may do what, in the caller's organization."""

    def __init__(self, reader: Reader, identity: Identity, key: Ed25519PrivateKey, audience: str) -> None:
        self._reader = reader
        self._identity = identity
        self._key = key
        self._audience = audience

    async def WhoAmI(self, request: access_pb2.WhoAmIRequest, context: Any) -> access_pb2.WhoAmIResponse:
        who = call.current()
        return access_pb2.WhoAmIResponse(
            actor=audit_log_pb2.Actor(
                type=audit_log_pb2.ActorType.ValueType(who.actor.type),
                id=who.actor.id,
                email=who.actor.email,
                name=who.actor.name,
                auth_method=who.actor.auth_method,
                credential=who.actor.credential,
            ),
            organization=who.organization,
            roles=[access_pb2.Role.ValueType(role) for role in sorted(who.roles)],
            permissions=sorted(who.permissions),
            expires_at=stamp(who.expires_at),
            server_version=VERSION,
        )

    async def AssignRole(self, request: access_pb2.AssignRoleRequest, context: Any) -> Change[access_pb2.RoleBinding]:  # type: ignore[override]
        """Assigning what is assigned already succeeds, and changes nothing."""
        who, subject, role = call.current(), request.subject, role_of(request.role)

        def apply(transaction: Transaction) -> access_pb2.RoleBinding:
            connection = transaction.connection
            before = access.bindings_of(connection, who.organization, subject)
            if role not in {row.role for row in before}:
                access.assign_role(connection, who.organization, subject, role, transaction.recorded_at, who.actor.id)
                self._identity.expect(access.raise_version(connection))
            after = access.bindings_of(connection, who.organization, subject)
            who.diff = binding_diff(subject, before, after)
            return next(binding(row) for row in after if row.role == role)

        return Change(apply)

    async def RemoveRole(self, request: access_pb2.RemoveRoleRequest, context: Any) -> Change[access_pb2.RoleBinding]:  # type: ignore[override]
        who, subject, role = call.current(), request.subject, role_of(request.role)

        def apply(transaction: Transaction) -> access_pb2.RoleBinding:
            # The head of this organization's log is locked: nobody takes another admin away at the same time.
            connection = transaction.connection
            before = access.bindings_of(connection, who.organization, subject)
            removed = next((row for row in before if row.role == role), None)
            if removed is None:
                raise errors.NotFound(f"{subject} has no role {role.name.lower()} in {who.organization}")
            if role is Role.ADMIN and list(access.list_admins(connection, who.organization, 2)) == [subject]:
                raise errors.FailedPrecondition(
                    f"{subject} is the last admin of {who.organization}: assign the role to somebody else first"
                )
            access.remove_role(connection, who.organization, subject, role)
            self._identity.expect(access.raise_version(connection))
            who.diff = binding_diff(subject, before, [row for row in before if row is not removed])
            return binding(removed)

        return Change(apply)

    async def ListRoleBindings(
        self, request: access_pb2.ListRoleBindingsRequest, context: Any
    ) -> access_pb2.ListRoleBindingsResponse:
        size = paging.size(request.page_size)
        after: Any = paging.key("bindings", request.page_token, str, int)
        rows = await self._reader.read(access.list_bindings, call.current().organization, after, size + 1)
        more = len(rows) > size
        return access_pb2.ListRoleBindingsResponse(
            bindings=[binding(row) for row in rows[:size]],
            next_page_token=paging.token("bindings", rows[size - 1].subject, rows[size - 1].role) if more else "",
        )

    async def CreateOrganization(  # type: ignore[override]
        self, request: access_pb2.CreateOrganizationRequest, context: Any
    ) -> Change[access_pb2.Organization]:
        who, name, admin = call.current(), request.name, request.admin

        def apply(transaction: Transaction) -> access_pb2.Organization:
            connection, at = transaction.connection, transaction.recorded_at
            if access.has_organization(connection, name):
                raise errors.AlreadyExists(f"the organization {name} exists already: choose another name")
            access.create_organization(connection, name, at)
            access.assign_role(connection, name, admin, Role.ADMIN, at, who.actor.id)
            self._identity.expect(access.raise_version(connection))
            who.diff = [
                *diff.change("organizations", name, was=None, value={"name": name}),
                *binding_diff(admin, (), access.bindings_of(connection, name, admin)),
            ]
            # So that the new organization's own history begins with its birth.
            transaction.append(echo(who, name, "organization.create"))
            return access_pb2.Organization(name=name, created_at=stamp(at))

        return Change(apply, organizations=(name,))

    async def IssueToken(  # type: ignore[override]
        self, request: access_pb2.IssueTokenRequest, context: Any
    ) -> Change[access_pb2.IssueTokenResponse]:
        who = call.current()
        organization = request.organization or who.organization
        if organization != who.organization and who.organization != SYSTEM:
            raise errors.PermissionDenied(
                f"only admins of {SYSTEM} issue tokens for another organization than their own"
            )
        kind = kind_of(request)
        created_at = now() // tokens.MICROSECONDS * tokens.MICROSECONDS
        claims = tokens.Claims(
            issuer=ISSUER,
            organization=organization,
            type=kind,
            subject=request.subject,
            id=new_id(),
            issued_at=created_at,
            expires_at=created_at + lifetime_of(request) * tokens.MICROSECONDS,
            email=request.email,
        )
        secret = tokens.sign(self._key, claims, self._audience)

        def apply(transaction: Transaction) -> access_pb2.IssueTokenResponse:
            if not access.has_organization(transaction.connection, organization):
                raise errors.NotFound(f"there is no organization {organization}")
            access.create_token(transaction.connection, claims, who.actor.id)
            who.diff = tokens.diff_of(claims)
            if organization != who.organization:
                transaction.append(echo(who, organization, "token.issue"))
            row = access.find_token(transaction.connection, organization, claims.id)
            return access_pb2.IssueTokenResponse(token=token(row), secret=secret)

        def again(first: access_pb2.IssueTokenResponse) -> access_pb2.IssueTokenResponse:
            """The token itself is kept nowhere: its signature is a function of its claims (RFC 8032)."""
            kept = first.token
            same = replace(
                claims,
                id=kept.id,
                issued_at=kept.created_at.seconds * tokens.MICROSECONDS,
                expires_at=kept.expires_at.seconds * tokens.MICROSECONDS,
            )
            return access_pb2.IssueTokenResponse(token=kept, secret=tokens.sign(self._key, same, self._audience))

        return Change(apply, organizations=(organization,), again=again)

    async def RevokeToken(self, request: access_pb2.RevokeTokenRequest, context: Any) -> Change[access_pb2.Token]:  # type: ignore[override]
        """Revoking what is revoked already succeeds, and changes nothing."""
        who = call.current()

        def apply(transaction: Transaction) -> access_pb2.Token:
            connection = transaction.connection
            found = access.find_token(connection, who.organization, request.id)
            if found is None:
                raise errors.NotFound(f"{who.organization} has no token {request.id}: `lading token ls` lists them")
            who.targets = (("token", found.id), ("subject", found.subject))
            who.diff = []
            if found.revoked_at is None:
                at = transaction.recorded_at
                access.revoke_token(connection, found.id, at)
                self._identity.expect(access.raise_version(connection))
                who.diff = diff.change("tokens", found.id, "revoked_at", was=None, value=tokens.when(at))
            return token(access.find_token(connection, who.organization, request.id))

        return Change(apply)

    async def ListTokens(self, request: access_pb2.ListTokensRequest, context: Any) -> access_pb2.ListTokensResponse:
        size = paging.size(request.page_size)
        before: Any = paging.key("tokens", request.page_token, int, str)
        rows = await self._reader.read(access.list_tokens, call.current().organization, before, size + 1)
        more = len(rows) > size
        return access_pb2.ListTokensResponse(
            tokens=[token(row) for row in rows[:size]],
            next_page_token=paging.token("tokens", rows[size - 1].created_at, rows[size - 1].id) if more else "",
        )


def role_of(number: int) -> Role:
    """The role of a request. Raises InvalidArgument for a number that is none."""
    try:
        return Role(number)
    except ValueError:
        raise errors.InvalidArgument(
            f"role: {number} is not a role", violations={"role": f"{number} is not a role"}
        ) from None


def kind_of(request: access_pb2.IssueTokenRequest) -> ActorType:
    """The kind of actor that a token is asked for. Raises InvalidArgument."""
    kind = next((kind for kind in tokens.KINDS.values() if kind == int(request.type)), None)
    if kind is None:
        sentence = "must be USER, SERVICE or AGENT"
        raise errors.InvalidArgument(f"type: {sentence}", violations={"type": sentence})
    if kind is ActorType.AGENT and not names.ID.fullmatch(request.subject):
        sentence = "an agent's name must be 1 to 128 of a-z A-Z 0-9 _ . - and begin with a letter or digit"
        raise errors.InvalidArgument(f"subject: {sentence}", violations={"subject": sentence})
    return kind


def lifetime_of(request: access_pb2.IssueTokenRequest) -> int:
    """Seconds for which a token is asked, rounded up. Raises InvalidArgument."""
    if not request.HasField("lifetime"):
        return LIFETIME_SECONDS
    seconds = request.lifetime.seconds + (request.lifetime.nanos > 0)
    if not 1 <= seconds <= LIFETIME_SECONDS_MAX:
        sentence = f"must be from 1 second to {LIFETIME_SECONDS_MAX // DAY_SECONDS} days"
        raise errors.InvalidArgument(f"lifetime: {sentence}", violations={"lifetime": sentence})
    return seconds


def echo(who: Call, organization: str, action: str) -> Event:
    """The event that says in the log of another organization what the call does to it."""
    return Event(
        id=new_id(),
        organization=organization,
        operation=new_id(),
        parent=who.operation,
        stage=Stage.COMPLETED,
        occurred_at=now(),
        actor=who.actor,
        action=action,
        outcome=Outcome.SUCCESS,
        changes=True,
        targets=who.targets,
        reason=who.reason,
        request_id=who.request_id,
        source=who.user_agent,
        details={"method": who.method, "diff": list(who.diff or ())},
    )


def binding_diff(subject: str, before: Iterable[access.Row], after: Iterable[access.Row]) -> list[dict[str, Any]]:
    """What changed of the roles of a subject, which are a list of names."""
    was, value = ([Role(row.role).name.lower() for row in rows] or None for rows in (before, after))
    return diff.change("role_bindings", subject, was=was, value=value)


def binding(row: access.Row) -> access_pb2.RoleBinding:
    return access_pb2.RoleBinding(
        subject=row.subject,
        role=access_pb2.Role.ValueType(row.role),
        created_at=stamp(row.created_at),
        created_by=row.created_by,
    )


def token(row: Any) -> access_pb2.Token:
    return access_pb2.Token(
        id=row.id,
        type=audit_log_pb2.ActorType.ValueType(row.type),
        subject=row.subject,
        email=row.email,
        created_at=stamp(row.created_at),
        expires_at=stamp(row.expires_at),
        revoked_at=stamp(row.revoked_at),
        created_by=row.created_by,
    )
