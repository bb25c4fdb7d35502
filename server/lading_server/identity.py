"""Who calls: the token of a call, or the headers of development, become actor, organization and permissions.

Identity never refuses: what is wrong is noted on the call, and the access interceptor refuses inside the audit.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lading_server import errors, roles, tokens
from lading_server.call import Call
from lading_server.clock import Clock, now
from lading_server.event import SYSTEM, Actor, ActorType
from lading_server.settings import ISSUER, Settings, is_loopback
from lading_server.store import access
from lading_server.store.reader import Reader

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How soon a change that another replica made is seen here."""
COMMIT_SECONDS_MAX = 5.0
"""A change that was not committed by then was undone."""
PRINCIPALS_MAX = 10_000
REPLICA = "replica"


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified identity with what it may do, valid for one version of the access tables."""

    actor: Actor
    organization: str
    roles: frozenset[int]
    permissions: frozenset[str]
    expires_at: int | None


def verifier_of(settings: Settings, key: Ed25519PrivateKey) -> tokens.Verifier:
    """Believes tokens that were signed with `key`, and those of the other issuer in the settings. Raises BadKey."""
    keys: dict[str, tuple[tokens.Key, ...]] = {ISSUER: (tokens.Key("EdDSA", key.public_key()),)}
    if settings.issuer:
        keys[settings.issuer] = tokens.load_trusted(settings.trusted_keys)
    return tokens.Verifier(keys, settings.audience)


class Identity:
    """Identifies calls against tables in memory: organizations, role bindings and revocations.

    They are read anew before the next call is identified after a change that this process committed, and within
    POLL_SECONDS after one that another replica did.
    """

    def __init__(
        self, verifier: tokens.Verifier, reader: Reader, *, development: bool = False, clock: Clock = now
    ) -> None:
        self._verifier = verifier
        self._reader = reader
        self._development = development
        self._clock = clock
        self._access = access.Access(-1, frozenset(), {}, frozenset())
        self._principals: dict[bytes, Principal] = {}
        self._commits = 1
        """Commits that may have changed access, and (below) how many of them the tables in memory hold."""
        self._commits_seen = 0
        self._expected = (-1, 0.0)
        self._reading = asyncio.Lock()
        self._poll: asyncio.Task[None] | None = None
        self.changed: Callable[[], None] = lambda: None
        """Called when this process has changed them."""

    async def start(self) -> None:
        """Read the tables, and keep them fresh. Raises StoreUnavailable."""
        await self._refresh()
        self._poll = asyncio.create_task(self._refresh_forever())

    async def close(self) -> None:
        """End the polling."""
        if self._poll is not None:
            self._poll.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poll

    def expect(self, version: int) -> None:
        """A transaction that raises access to `version` is about to commit; called in the ledger's thread."""
        self._expected = (version, time.monotonic() + COMMIT_SECONDS_MAX)

    def committed(self, _sizes: Mapping[str, int]) -> None:
        """Listener of the ledger: the tables in memory are stale from here on if that commit was an expected one."""
        version, until = self._expected
        if version > self._access.version and time.monotonic() < until:
            self._commits += 1
            self.changed()

    async def look(self) -> None:
        """Another replica changed them. Raises StoreUnavailable."""
        self._commits += 1
        await self._refresh()

    def identify_cached(self, authorization: str) -> Principal | None:
        """Who has this `authorization` header, if that is known and still true; costs a hash and a look-up."""
        principal = self._principals.get(_digest(authorization))
        if principal is None or self._commits != self._commits_seen:
            return None
        return principal if principal.expires_at is None or principal.expires_at > self._clock() else None

    async def identify(self, call: Call, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Fill in who calls, or `call.refused`; never raises. `call.peer` must be set."""
        try:
            principal = await self._identify(call, metadata)
        except errors.Error as refusal:
            call.refused = refusal
        except Exception as failure:
            log.exception("the identity of a call could not be found out")
            call.refused = failure
        else:
            call.actor = principal.actor
            call.organization = principal.organization
            call.roles = principal.roles
            call.permissions = principal.permissions
            call.expires_at = principal.expires_at

    def permissions(self, call: Call) -> frozenset[str]:
        """What the caller of an open stream may do by now: nothing once its token ended or was revoked."""
        if call.expires_at is not None and call.expires_at <= self._clock():
            return frozenset()
        if call.actor.credential in self._access.revoked or call.organization not in self._access.organizations:
            return frozenset()
        return self._grants(call.organization, call.actor)[1]

    async def _identify(self, call: Call, metadata: Iterable[tuple[str, str | bytes]]) -> Principal:
        headers = [(key, value) for key, value in metadata if key == "authorization"]
        if len(headers) > 1:
            raise errors.Unauthenticated("the call has several `authorization` headers: send one")
        if not headers:
            if self._development:
                return await self._identify_developer(call, dict(metadata))
            raise errors.Unauthenticated
        authorization = str(headers[0][1])
        known = self.identify_cached(authorization)
        if known is not None:
            return known
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise errors.Unauthenticated("the header `authorization` must be `Bearer TOKEN`")
        claims = self._verifier.verify(token.strip())
        await self._refresh()
        if claims.id and claims.id in self._access.revoked:
            call.details["presented"] = {
                "token": claims.id,
                "subject": claims.subject,
                "organization": claims.organization,
            }
            raise errors.Unauthenticated("the token was revoked: get a new one from an administrator")
        actor = Actor(
            claims.type,
            claims.subject,
            claims.email,
            claims.name,
            auth_method_of(claims),
            claims.id or f"sha256:{hashlib.sha256(token.encode()).hexdigest()[:16]}",
        )
        principal = self._principal(claims.organization, actor, claims.expires_at)
        if len(self._principals) >= PRINCIPALS_MAX:
            self._principals.clear()  # each is made again, without a verification, when its caller comes back
        self._principals[_digest(authorization)] = principal
        return principal

    async def _identify_developer(self, call: Call, headers: Mapping[str, str | bytes]) -> Principal:
        subject = str(headers.get("x-dev-user-id", ""))
        if not subject:
            raise errors.Unauthenticated(
                "no identity: send `authorization: Bearer TOKEN`, or `x-dev-user-id`, which this server takes"
            )
        if not is_local(call.peer):
            raise errors.Unauthenticated("development identities are only for callers on the server's own machine")
        email = str(headers.get("x-dev-user-email", ""))
        if not (tokens.TEXT.fullmatch(subject) and tokens.TEXT.fullmatch(email)):
            raise errors.Unauthenticated("x-dev-user-id and x-dev-user-email take 256 characters of text at most")
        await self._refresh()
        organization = str(headers.get("x-dev-organization", ""))
        if not organization:
            others = self._access.organizations - {SYSTEM}
            if len(others) != 1:
                raise errors.Unauthenticated("which organization? Send `x-dev-organization` beside `x-dev-user-id`")
            (organization,) = others
        actor = Actor(ActorType.USER, subject, email, auth_method="development")
        return self._principal(organization, actor, None)

    def _principal(self, organization: str, actor: Actor, expires_at: int | None) -> Principal:
        if organization not in self._access.organizations:
            raise errors.Unauthenticated(
                f"there is no organization {organization[:128]!r} here: ask for a token for one that exists"
            )
        held, permissions = self._grants(organization, actor)
        return Principal(actor, organization, held, permissions, expires_at)

    def _grants(self, organization: str, actor: Actor) -> tuple[frozenset[int], frozenset[str]]:
        if actor.type is ActorType.AGENT:
            return frozenset(), roles.OF_AGENTS
        if actor.auth_method == REPLICA:
            return frozenset(), roles.OF_REPLICAS
        held = self._access.bindings.get((organization, actor.id), frozenset())
        return held, roles.permissions(held, organization)

    async def _refresh(self, *, poll: bool = False) -> None:
        """Read the tables again if they may have changed."""
        if self._commits == self._commits_seen and not poll:
            return
        async with self._reading:
            commits = self._commits  # a commit during the reads counts as not seen
            if commits == self._commits_seen and not poll:
                return
            if await self._reader.read(access.version) != self._access.version:
                self._access = await self._reader.read(access.load, self._clock())
                self._principals.clear()
            self._commits_seen = commits

    async def _refresh_forever(self) -> None:
        failed = False
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self._refresh(poll=True)
            except Exception as failure:
                # Calls go on with what is known: while the database is away, none of them can be recorded anyway.
                if not failed:
                    log.warning("roles and revocations cannot be read anew: %s", failure)
                failed = True
            else:
                failed = False


def auth_method_of(claims: tokens.Claims) -> str:
    """How the bearer of a token showed who it is."""
    if claims.replica:
        return REPLICA
    return "token" if claims.issuer == ISSUER else "oidc"


def is_local(peer: str) -> bool:
    """Whether a peer, as grpc names it (`ipv4:127.0.0.1:5`, `ipv6:%5B::1%5D:5`, `unix:`), is on this machine."""
    scheme, _, address = peer.partition(":")
    if scheme == "unix":
        return True
    host = urllib.parse.unquote(address).rpartition(":")[0]
    return scheme in ("ipv4", "ipv6") and is_loopback(host)


def _digest(authorization: str) -> bytes:
    return hashlib.sha256(authorization.encode(errors="replace")).digest()
