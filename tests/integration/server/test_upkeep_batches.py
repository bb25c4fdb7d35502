"""What is done for many agents at once: the log shown, cosignatures and leases written, each in one unit."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lading.transparency import merkle, note
from lading.v1 import access_pb2, agent_link_pb2
from lading_server import errors
from lading_server.services import leases
from lading_server.sessions import Session
from lading_server.settings import Settings
from tests.integration.server.fake_agent import FakeAgent
from tests.integration.server.running import ORGANIZATION, Running, running

NAMES = ("dock-1", "dock-2", "dock-3")


class Witness(FakeAgent):
    """An agent that checks what it is shown, and cosigns it."""

    def __init__(self, server: Running, name: str) -> None:
        super().__init__(server, name)
        self.private = Ed25519PrivateKey.generate()
        self.key = note.Key(f"{ORGANIZATION}/{name}", note.COSIGNATURE, self.private.public_key().public_bytes_raw())
        self.tree: note.Checkpoint | None = None

    async def observe(self) -> None:
        """The next frame, which must show the log grown."""
        frame = await self.call.read()
        self.seen = frame.seq
        assert frame.WhichOneof("frame") == "growth", frame
        found = frame.growth
        tree = note.open_checkpoint(found.checkpoint, note.parse_key(found.log_key))
        if self.tree is not None:
            assert found.extends == self.tree.size
            merkle.verify_consistency(self.tree.size, tree.size, self.tree.root, tree.root, found.consistency)
        self.tree = tree

    async def cosign(self, at: int = 1_700_000_000) -> None:
        assert self.tree is not None
        blob = at.to_bytes(8, "big") + self.private.sign(note.cosigned(self.tree.text(), at))
        line = note.format_signature(self.key, blob)
        signature = agent_link_pb2.WitnessSignature(size=self.tree.size, root=self.tree.root, signature=line)
        await self.send(witness_signature=signature)
        await self.sync()


@pytest.fixture
async def server(any_settings: Settings, quiet: None) -> AsyncIterator[Running]:
    async with running(any_settings) as made:
        yield made


@pytest.fixture
async def fleet(server: Running) -> AsyncIterator[list[Witness]]:
    found = [Witness(server, name) for name in NAMES]
    for agent in found:
        await agent.connect(witness_key=str(agent.key))
        await agent.observe()  # right after Welcome: it is in the unit that began the session
    yield found
    for agent in found:
        agent.vanish()


def sessions(server: Running) -> list[Session]:
    found = [server.server._agent_link._sessions.get(ORGANIZATION, name) for name in NAMES]
    assert None not in found
    return found  # type: ignore[return-value]


def count_commits(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The organizations of each unit from here on."""
    asked: list[tuple[str, ...]] = []
    commit = server.ledger.commit

    async def counted(organizations: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(tuple(organizations))
        return await commit(organizations, *arguments, **options)

    monkeypatch.setattr(server.ledger, "commit", counted)
    return asked


async def test_all_are_shown_the_log_by_one_unit_and_nobody_what_it_has_seen(
    server: Running, fleet: list[Witness], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = server.server._agent_link._dispatcher
    await server.stubs.access.WhoAmI(access_pb2.WhoAmIRequest(), metadata=server.me)
    asked = count_commits(server, monkeypatch)
    await dispatcher.show_growth(*sessions(server))
    assert asked == [(ORGANIZATION,)]
    for agent in fleet:
        await agent.observe()
    sizes = {agent.tree.size for agent in fleet if agent.tree}
    assert len(sizes) == 1
    await dispatcher.show_growth(*sessions(server))
    assert not [session for session in sessions(server) if session.growing]
    assert [session.sent for session in sessions(server)] == [agent.seen for agent in fleet]


async def test_newest_cosignature_of_each_agent_is_kept(
    server: Running, fleet: list[Witness], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = server.server._agent_link.cosignatures
    await fleet[0].cosign(1_700_000_000)
    for agent in fleet:
        await agent.cosign(1_700_000_001)
    stolen, fleet[1].private = fleet[1].private, Ed25519PrivateKey.generate()
    await fleet[1].cosign(1_700_000_002)  # by another key: passed over
    fleet[1].private = stolen
    query = "SELECT agent, size, signed_at FROM cosignatures ORDER BY agent"
    assert server.rows(query) == []
    asked = count_commits(server, monkeypatch)
    await kept.write()
    await kept.write()
    assert asked == [()]
    at = 1_700_000_001_000_000
    assert server.rows(query) == [(agent.name, agent.tree.size, at) for agent in fleet if agent.tree]
    await fleet[0].cosign(1_700_000_003)
    await kept.write()
    assert [row[2] for row in server.rows(query)] == [at + 2_000_000, at, at]
    await fleet[0].cosign(1_700_000_002)  # the same tree, written late
    await kept.write()
    assert [row[2] for row in server.rows(query)] == [at + 2_000_000, at, at]


async def test_cosignatures_outlast_an_outage_of_the_database_and_an_orderly_stop(
    server: Running, fleet: list[Witness], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = server.server._agent_link.cosignatures
    for agent in fleet:
        await agent.cosign()

    async def fail(*_: Any) -> None:
        raise errors.LedgerUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(server.ledger, "commit", fail)
        await kept.write()
    await fleet[0].cosign(1_700_000_009)
    for agent in fleet:
        agent.vanish()
    await server.stop(0)
    times = server.rows("SELECT signed_at FROM cosignatures ORDER BY agent")
    assert times == [(1_700_000_009_000_000,), (1_700_000_000_000_000,), (1_700_000_000_000_000,)]


async def test_cosignature_that_does_not_fit_the_database_spoils_no_other(
    server: Running, fleet: list[Witness]
) -> None:
    for agent, at in zip(fleet, (2**64 - 1, 1_700_000_001, 2**63 // 1_000_000), strict=True):
        await agent.cosign(at)
    await server.server._agent_link.cosignatures.write()
    assert server.rows("SELECT agent FROM cosignatures") == [("dock-2",)]


def leases_of(server: Running) -> list[tuple[Any, ...]]:
    query = "SELECT agent, epoch, lease_until, heard_at FROM agent_sessions ORDER BY agent"
    return server.rows(query)


async def test_leases_of_all_are_written_by_one_unit_save_of_sessions_that_are_over(
    server: Running, fleet: list[Witness], monkeypatch: pytest.MonkeyPatch
) -> None:
    for agent in fleet:
        await agent.sync()
    server.write("UPDATE agent_sessions SET lease_until = 1, heard_at = 2")
    server.write("UPDATE agent_sessions SET epoch = epoch + 1 WHERE agent = 'dock-2'")
    server.write("UPDATE agents SET last_seen_at = 3")
    held = sessions(server)
    held[2].pulse.sent(held[2].sent + 1)
    held[2].heartbeat = -1.0  # it hears nothing
    asked = count_commits(server, monkeypatch)
    await server.server._agent_link.leases.write(held, connected=True)
    assert asked == [(ORGANIZATION,)]
    first, second, third = leases_of(server)
    assert min(first[2], third[2]) > 1_000_000
    assert first[3] > 1_000_000
    assert third[3] == 2, "when it was heard to hear stays as it was"
    assert second[2:] == (1, 2)
    seen = [row[0] > 3 for row in server.rows("SELECT last_seen_at FROM agents ORDER BY name")]
    assert seen == [True, False, True]


async def test_lease_that_could_not_be_written_is_due_again(
    server: Running, fleet: list[Witness], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sessions(server)[0]
    before = session.lease_written_at = time.monotonic() - 2 * leases.WRITE_SECONDS

    async def fail(*_: Any) -> None:
        raise errors.LedgerUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(server.ledger, "commit", fail)
        await server.server._agent_link.leases.write([session], connected=True)
    assert session.lease_written_at == before
    await server.server._agent_link.leases.write([session], connected=True)
    assert session.lease_written_at > before


async def test_leases_that_are_due_are_written_by_organization_and_none_of_a_session_that_ended_meanwhile(
    server: Running, fleet: list[Witness], monkeypatch: pytest.MonkeyPatch
) -> None:
    link, held = server.server._agent_link, sessions(server)
    task = asyncio.current_task()
    assert task is not None
    other = Session("other", "dock-1", 1, held[0].write, task)
    link._sessions.add(other)
    for session in (*held, other):
        session.lease_written_at = time.monotonic() - 2 * leases.WRITE_SECONDS
    server.write("UPDATE agent_sessions SET lease_until = 1")
    monkeypatch.setattr(leases, "TOGETHER_MAX", 2)
    asked: list[tuple[str, ...]] = []
    commit = server.ledger.commit

    async def counted(organizations: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(tuple(organizations))
        link._sessions.remove(held[2])
        return await commit(organizations, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(server.ledger, "commit", counted)
        try:
            await link.leases.write_due()
        finally:
            link._sessions.remove(other)
    assert asked == [(ORGANIZATION,), ("other",)]
    assert [row[2] > 1 for row in leases_of(server)] == [True, True, False]
