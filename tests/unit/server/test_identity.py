"""Who calls, on a real database in a file: tokens, revocations, development headers, and how soon changes are seen."""

import asyncio
import contextlib
import pathlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import jwt
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lading_server import errors, identity, tokens
from lading_server.call import Call
from lading_server.clock import new_id, now
from lading_server.event import ANONYMOUS, ActorType, Event, Outcome, Stage
from lading_server.identity import Identity, Principal
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.roles import Role
from lading_server.settings import Settings
from lading_server.store import access, database, schema
from lading_server.store.reader import Reader
from tests.signers import new_signer

KEY = Ed25519PrivateKey.generate()
LOCAL = "ipv4:127.0.0.1:4711"
SECOND = 1_000_000


class Server:
    """Identity over a database with the organizations system and acme, whose admin is ada."""

    def __init__(self, engine: sa.Engine, *, development: bool = False) -> None:
        self.reader = Reader(engine)
        self.ledger = Ledger(engine, new_signer(), boot_id=new_id())
        self.clock = 0
        verifier = identity.verifier_of(Settings(pathlib.Path("unused")), KEY)
        self.identity = Identity(verifier, self.reader, development=development, clock=lambda: now() + self.clock)

    async def __aenter__(self) -> "Server":
        self.ledger.start()
        self.ledger.on_commit(self.identity.committed)
        await self.identity.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.identity.close()
        await self.ledger.close()
        self.reader.close()

    async def change(self, organization: str, apply: Callable[[sa.Connection], None]) -> None:
        """Commit a change of access together with an event, as the service does."""

        def unit(transaction: Transaction) -> None:
            apply(transaction.connection)
            self.identity.expect(access.raise_version(transaction.connection))
            transaction.append(
                Event(
                    id=new_id(),
                    organization=organization,
                    operation=new_id(),
                    stage=Stage.COMPLETED,
                    occurred_at=now(),
                    actor=ANONYMOUS,
                    action="test.change",
                    outcome=Outcome.SUCCESS,
                )
            )

        await self.ledger.commit((organization,), unit)

    async def identify(self, *metadata: tuple[str, str | bytes], peer: str = LOCAL) -> Call:
        call = Call(new_id(), "/lading.v1.Access/WhoAmI", now(), peer=peer)
        await self.identity.identify(call, metadata)
        return call

    async def present(self, token: str) -> Call:
        return await self.identify(("authorization", f"Bearer {token}"))


def token(subject: str = "ada", type: ActorType = ActorType.USER, organization: str = "acme", **more: Any) -> str:
    at = now() // SECOND * SECOND
    claims = {"id": new_id(), "issued_at": at, "expires_at": at + 600 * SECOND, "email": f"{subject}@acme.example"}
    return tokens.sign(KEY, tokens.Claims("lading", organization, type, subject, **{**claims, **more}), "lading")


def populate(connection: sa.Connection) -> None:
    schema.metadata.create_all(connection)
    connection.execute(sa.insert(schema.access_version).values(version=0))
    for name in ("system", "acme"):
        access.create_organization(connection, name, 0)
        access.assign_role(connection, name, "ada", Role.ADMIN, 0, "test")


@pytest.fixture
def engine(tmp_path: pathlib.Path) -> Any:
    engine = database.open_engine(database.sqlite_url(tmp_path))
    with engine.begin() as connection:
        populate(connection)
    yield engine
    engine.dispose()


@pytest.fixture
async def server(engine: sa.Engine) -> AsyncIterator[Server]:
    async with Server(engine) as running:
        yield running


def refusal(call: Call) -> str:
    """The sentence for a caller who was not identified, about whom nothing is believed."""
    assert isinstance(call.refused, errors.Unauthenticated)
    assert (call.actor, call.organization, call.permissions) == (ANONYMOUS, "system", frozenset())
    return call.refused.message


async def test_token_says_who_calls(server: Server) -> None:
    call = await server.present(token(id="token-1"))
    assert call.refused is None
    assert (call.actor.type, call.actor.id, call.actor.email) == (ActorType.USER, "ada", "ada@acme.example")
    assert (call.actor.auth_method, call.actor.credential) == ("token", "token-1")
    assert call.organization == "acme"
    assert call.roles == {Role.ADMIN}
    assert "container.operate" in call.permissions
    assert call.expires_at is not None


async def test_caller_without_roles_may_do_nothing(server: Server) -> None:
    call = await server.present(token("bob"))
    assert (call.refused, call.actor.id, call.permissions) == (None, "bob", frozenset())


async def test_role_in_one_organization_is_none_in_another(server: Server) -> None:
    await server.change("acme", lambda connection: access.assign_role(connection, "acme", "bob", Role.ADMIN, 0, "t"))
    assert (await server.present(token("bob", organization="system"))).permissions == frozenset()
    assert "organization.create" not in (await server.present(token("bob"))).permissions


async def test_agent_may_connect_and_nothing_else_whatever_its_name(server: Server) -> None:
    call = await server.present(token("ada", ActorType.AGENT))
    assert call.roles == frozenset()
    assert call.permissions == {"agent.connect"}


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ((), "send `authorization: Bearer TOKEN`"),
        ((("x-dev-user-id", "ada"),), "send `authorization: Bearer TOKEN`"),
        ((("authorization", ""),), "must be `Bearer TOKEN`"),
        ((("authorization", "Basic YWRhOmFkYQ=="),), "must be `Bearer TOKEN`"),
        ((("authorization", "Bearer"),), "must be `Bearer TOKEN`"),
        ((("authorization", "Bearer x.y.z"),), "not a JWT"),
        ((("authorization", b"\xff\xfe"),), "must be `Bearer TOKEN`"),
        ((("authorization", "Bearer a"), ("authorization", "Bearer b")), "several"),
    ],
)
async def test_call_without_an_identity_is_noted_not_refused(server: Server, metadata: Any, sentence: str) -> None:
    assert sentence in refusal(await server.identify(*metadata))


async def test_unknown_organization_is_noted(server: Server) -> None:
    assert "no organization 'evil'" in refusal(await server.present(token(organization="evil")))


async def test_alg_none_is_noted(server: Server) -> None:
    at = int(time.time())
    claims = {"iss": "lading", "aud": "lading", "sub": "ada", "org": "acme", "iat": at, "exp": at + 60}
    assert "not accepted" in refusal(await server.present(jwt.encode(claims, "", algorithm="none")))


async def test_known_token_costs_no_await(server: Server) -> None:
    header = f"Bearer {token()}"
    assert server.identity.identify_cached(header) is None
    await server.identify(("authorization", header))
    known = server.identity.identify_cached(header)
    assert isinstance(known, Principal)
    assert known.actor.id == "ada"


async def test_known_token_ends_when_it_expires(server: Server) -> None:
    header = f"Bearer {token()}"
    call = await server.identify(("authorization", header))
    server.clock = 700 * SECOND
    assert server.identity.identify_cached(header) is None
    assert server.identity.permissions(call) == frozenset()


async def test_change_of_roles_holds_for_the_next_call(server: Server) -> None:
    bob = token("bob")
    before = await server.present(bob)
    assert before.permissions == frozenset()
    await server.change("acme", lambda connection: access.assign_role(connection, "acme", "bob", Role.VIEWER, 0, "t"))
    assert server.identity.identify_cached(f"Bearer {bob}") is None
    assert "audit.read" in (await server.present(bob)).permissions
    assert "audit.read" in server.identity.permissions(before), "an open stream sees it too"
    await server.change("acme", lambda connection: access.remove_role(connection, "acme", "bob", Role.VIEWER))
    assert (await server.present(bob)).permissions == frozenset()


async def test_change_that_was_undone_changes_nothing_and_the_next_one_is_seen(server: Server) -> None:
    bob = token("bob")

    def fail(connection: sa.Connection) -> None:
        access.assign_role(connection, "acme", "bob", Role.ADMIN, 0, "t")
        server.identity.expect(access.raise_version(connection))
        raise errors.FailedPrecondition

    with pytest.raises(errors.FailedPrecondition):
        await server.change("acme", fail)
    assert (await server.present(bob)).permissions == frozenset()
    await server.change("acme", lambda connection: access.assign_role(connection, "acme", "bob", Role.VIEWER, 0, "t"))
    assert "audit.read" in (await server.present(bob)).permissions


async def test_revoked_token_is_noted_with_whose_it_was(server: Server) -> None:
    at = now()
    claims = tokens.Claims("lading", "acme", ActorType.USER, "ada", new_id(), at, at + 600 * SECOND)
    held = tokens.sign(KEY, claims, "lading")
    await server.change("acme", lambda connection: access.create_token(connection, claims, "test"))
    before = await server.present(held)
    assert before.refused is None
    await server.change("acme", lambda connection: access.revoke_token(connection, claims.id, at))
    after = await server.present(held)
    assert "was revoked" in refusal(after)
    assert after.details["presented"] == {"token": claims.id, "subject": "ada", "organization": "acme"}
    assert server.identity.permissions(before) == frozenset(), "an open stream loses it too"
    assert (await server.present(token())).refused is None, "another token of the same user goes on"


async def test_change_by_another_replica_is_seen_without_a_call(engine: sa.Engine) -> None:
    async with Server(engine) as one, Server(engine) as other:
        bob = token("bob")
        call = await other.present(bob)
        await one.change("acme", lambda connection: access.assign_role(connection, "acme", "bob", Role.ADMIN, 0, "t"))
        async with asyncio.timeout(30):
            while not other.identity.permissions(call):
                assert other.identity._poll is not None
                await asyncio.wait({other.identity._poll}, timeout=0.05)
        assert "access.admin" in (await other.present(bob)).permissions


async def test_database_that_fails_is_no_reason_to_raise(server: Server, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE access_version"))
    server.identity._commits += 1
    call = await server.present(token())
    assert isinstance(call.refused, errors.StoreUnavailable)
    assert call.actor == ANONYMOUS


async def test_memory_of_principals_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "PRINCIPALS_MAX", 3)
    for number in range(8):
        assert (await server.present(token(f"user-{number}"))).refused is None
    assert len(server.identity._principals) <= 3


# -- development


@contextlib.asynccontextmanager
async def developing(engine: sa.Engine) -> AsyncIterator[Server]:
    async with Server(engine, development=True) as server:
        yield server


async def test_developer_is_believed_on_this_machine(engine: sa.Engine) -> None:
    async with developing(engine) as server:
        call = await server.identify(("x-dev-user-id", "ada"), ("x-dev-user-email", "ada@acme.example"))
        assert (call.actor.id, call.actor.email, call.actor.auth_method) == ("ada", "ada@acme.example", "development")
        assert call.roles == {Role.ADMIN}
        assert (call.organization, call.expires_at) == ("acme", None)


async def test_developer_has_the_roles_that_are_bound(engine: sa.Engine) -> None:
    async with developing(engine) as server:
        assert (await server.identify(("x-dev-user-id", "bob"))).permissions == frozenset()


@pytest.mark.parametrize("peer", ["ipv4:10.0.0.7:99", "ipv6:%5B2001:db8::1%5D:99", "", "127.0.0.1:1"])
async def test_developer_from_elsewhere_is_nobody(engine: sa.Engine, peer: str) -> None:
    async with developing(engine) as server:
        assert "own machine" in refusal(await server.identify(("x-dev-user-id", "ada"), peer=peer))


async def test_token_goes_before_the_headers_of_development(engine: sa.Engine) -> None:
    async with developing(engine) as server:
        assert "not a JWT" in refusal(await server.identify(("authorization", "Bearer x"), ("x-dev-user-id", "ada")))


async def test_developer_names_the_organization_where_there_are_several(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        access.create_organization(connection, "umbrella", 0)
    async with developing(engine) as server:
        assert "which organization" in refusal(await server.identify(("x-dev-user-id", "ada")))
        call = await server.identify(("x-dev-user-id", "ada"), ("x-dev-organization", "umbrella"))
        assert (call.organization, call.permissions) == ("umbrella", frozenset())


async def test_developer_with_control_characters_is_nobody(engine: sa.Engine) -> None:
    async with developing(engine) as server:
        assert "256 characters" in refusal(await server.identify(("x-dev-user-id", "a\x01b")))


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:1234", True),
        ("ipv4:127.8.9.1:1", True),
        ("ipv6:%5B::1%5D:1234", True),
        ("ipv6:[::1]:1234", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:1", True),
        ("unix:", True),
        ("unix:/run/lading.sock", True),
        ("ipv4:192.168.0.1:1", False),
        ("ipv4:0.0.0.0:1", False),
        ("ipv6:%5B::%5D:1", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", False),
        ("dns:localhost:1", False),
        ("unixx:", False),
        ("garbage", False),
    ],
)
def test_peers_on_this_machine_are_told_from_others(peer: str, local: bool) -> None:
    assert identity.is_local(peer) is local
