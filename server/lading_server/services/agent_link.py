"""What agents speak with the server: their sessions, and the bytes of their logs."""

import asyncio
import contextlib
import logging
import time
from typing import Any

from grpc.aio import EOF

from lading.v1 import agent_link_pb2, agent_link_pb2_grpc
from lading_server import admission, errors
from lading_server import call as calls
from lading_server.call import Call
from lading_server.clock import Clock, now
from lading_server.commands import State
from lading_server.dispatch import Dispatcher
from lading_server.ends import conflict_of
from lading_server.errors import Code
from lading_server.event import Event
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Proof, Sight, Transaction
from lading_server.names import ID
from lading_server.reconciliation import reconcile
from lading_server.relay import Relays
from lading_server.services import bulk, clones, drifts, excess, fences, leases
from lading_server.services.cosignatures import Cosignatures
from lading_server.services.leases import Leases
from lading_server.services.neighbours import Neighbours
from lading_server.services.resources import container_values, duration, stamp, text, time_of
from lading_server.services.results import end_of, witness_of
from lading_server.services.upkeep import Upkeep, lifetime
from lading_server.sessions import ACK_RECEIPTS, LEASE_BEATS, WINDOW, Session, Sessions
from lading_server.settings import STREAM_SECONDS
from lading_server.signer import Signer
from lading_server.store import agents, containers
from lading_server.store.wakeups import Topic

log = logging.getLogger(__name__)

HELD_MAX = 10_000
EPOCH_MAX = 2**53
"""No agent lives to see it; one that says more cannot have the numbers end."""
LEDGER_RETRY_SECONDS = 0.5
CAPABILITIES_MAX = 32


class AgentLink(agent_link_pb2_grpc.AgentLinkServicer):
    """See protos/lading/v1/agent_link.proto."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        sessions: Sessions,
        relays: Relays,
        signer: Signer,
        neighbours: Neighbours,
        clock: Clock = now,
        *,
        stream_seconds: float = STREAM_SECONDS,
        connects_per_second: float = admission.PER_SECOND,
    ) -> None:
        self._ledger, self._dispatcher, self._sessions = ledger, dispatcher, sessions
        self._relays, self._neighbours, self._clock = relays, neighbours, clock
        self._stream_seconds = stream_seconds
        self.upkeep = Upkeep(dispatcher, sessions, connects_per_second)
        self.leases = Leases(ledger, sessions, clock)
        self.cosignatures = Cosignatures(ledger, signer)
        self.stopping = False

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        call = calls.current()
        if self.stopping:
            raise errors.Stopping(retry_after=admission.LATER_SECONDS)
        if not ID.fullmatch(call.actor.id):
            raise errors.InvalidArgument("the token's subject is not the name of an agent")
        call.agent = call.actor.id
        call.targets = (("agent", call.actor.id),)
        first = await context.read()
        if first is EOF or first.WhichOneof("frame") != "hello":
            raise errors.InvalidArgument("the first frame must be Hello")
        session, closing = await self._open(call, first, context), "the stream ended without a Goodbye"
        call.details["epoch"] = session.epoch
        try:
            while (frame := await context.read()) is not EOF:
                if frame.epoch != session.epoch:
                    raise errors.InvalidArgument(f"a frame of epoch {frame.epoch} came in epoch {session.epoch}")
                if frame.seq != session.received + 1:
                    raise errors.InvalidArgument(f"frame {frame.seq} came after {session.received}: connect anew")
                session.heard_at = time.monotonic()
                session.pulse.heard(frame.ack, session.sent)
                if frame.WhichOneof("frame") == "goodbye":
                    closing = text(frame.goodbye.reason, 256) or "goodbye"
                    return
                await self._take_durably(session, frame)
                session.received = frame.seq
        except asyncio.CancelledError:
            if session.failure is None:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()  # ended by us, not by the caller: answer with why
            raise session.failure from None
        finally:
            call.details["closing"] = session.failure.message if session.failure else closing
            self._sessions.remove(session)
            session.close()
            gone = errors.AgentOffline(f"agent {session.agent} went away")
            self._relays.fail(session.organization, session.agent, gone)
            # One that was asked to connect anew is expected back: until its lease is over, commands wait for it.
            await self.leases.write([session], connected=session.draining and session.failure is None)
            self._sessions.notify(session.organization)
            if session.allowance.left_out:
                with contextlib.suppress(errors.Error):
                    await self._tell_excess(session)

    async def _open(self, call: Call, first: agent_link_pb2.ConnectRequest, context: Any) -> Session:
        """Raise the epoch, settle what the journal tells, say Welcome; then the agent is online."""
        hello = first.hello
        if len(hello.held) > HELD_MAX:
            raise errors.InvalidArgument(f"the journal holds more than {HELD_MAX} commands")
        elsewhere = False
        sight = Sight(max(0, hello.tree_size))
        witness_key = witness_of(hello.witness_key, call.organization, call.actor.id)
        call.details["witness_key"] = hello.witness_key[:256]
        call.details["resumes"] = {"epoch": small(hello.epoch), "last_server_seq": small(hello.last_server_seq)}
        capabilities = frozenset(text(one, 64) for one in hello.capabilities[:CAPABILITIES_MAX])
        held = {
            one.command: end_of(one.result, call.organization, call.actor.id, witness_key, capabilities)
            if one.HasField("result")
            else None
            for one in hello.held
        }
        boot, journal = text(hello.boot_id, 64), text(hello.journal_id, 64)
        heartbeat = self._sessions.heartbeat()
        lease = LEASE_BEATS * heartbeat
        older = self._sessions.get(call.organization, call.actor.id)
        # The session before this one; it is asked only when this is another process with another journal.
        rival = older.boot if older and clones.differs(hello, older.boot, older.journal) else ""
        if older is not None and rival and not await clones.is_alive(older):
            rival = ""

        def apply(transaction: Transaction) -> tuple[int, tuple[Any, Any, int], Proof | None] | None:
            if sight.size > transaction.size(call.organization):
                raise errors.FailedPrecondition(
                    f"the agent saw a tree of {sight.size} entries, and this log is shorter: the database went "
                    "back; see `lading server accept-rollback`, and then, on the agent's host, "
                    "`lading agent forget-log --help`"
                )
            nonlocal elsewhere
            known = agents.get(transaction.connection, call.organization, call.actor.id)
            elsewhere = known is not None and known.connected and known.replica != self._ledger.boot_id
            if known is not None and known.banned:
                raise errors.PermissionDenied(f"agent {call.actor.id} is banned")
            if known is not None and known.quarantined:
                raise errors.AgentCloned
            if known is not None and (rival or clones.came_back(hello, known)):
                clones.quarantine(transaction, known, boot, rival or known.boot_id)
                return None
            epoch, journal_before = agents.connect(
                transaction.connection,
                call.organization,
                call.actor.id,
                at=transaction.recorded_at,
                version=text(hello.version, 64),
                runtime=text(hello.runtime, 64),
                labels={text(key, 256): text(value, 1024) for key, value in list(hello.labels.items())[:64]},
                replica=self._ledger.boot_id,
                boot_id=boot,
                journal_id=journal,
                seen_epoch=min(max(0, hello.epoch), EPOCH_MAX),
                lease_until=transaction.recorded_at + int((lease + leases.WRITE_SECONDS) * 1_000_000),
            )
            same = not journal_before or journal_before == journal
            settled = reconcile(transaction, call.organization, call.actor.id, epoch, held, same, sight)
            grown = not settled[0] and sight.size < transaction.size(call.organization)
            return epoch, settled, transaction.prove_again(call.organization, -1, sight) if grown else None

        opened = await self._ledger.commit((call.organization,), apply)
        if opened is None:
            self._end_cloned(call.organization, call.actor.id)
            self._dispatcher.tell(Topic.AGENTS)
            raise errors.AgentCloned
        epoch, (resend, settled, in_hand), growth = opened
        task = asyncio.current_task()
        assert task is not None
        session = Session(call.organization, call.actor.id, epoch, context.write, task, WINDOW - in_hand)
        session.received = first.seq
        session.sight, session.witness_key, session.capabilities = sight, witness_key, capabilities
        session.heartbeat, session.lease, session.boot, session.journal = heartbeat, lease, boot, journal
        session.began_at, session.ends_at = self._clock(), time.monotonic() + lifetime(self._stream_seconds)
        await session.send(
            agent_link_pb2.ConnectResponse(
                welcome=agent_link_pb2.Welcome(
                    lease=duration(int(lease * 1_000_000)),
                    heartbeat=duration(int(heartbeat * 1_000_000)),
                    window=WINDOW,
                    server_time=stamp(self._clock()),
                )
            )
        )
        for command, end in held.items():
            if end is not None:
                await session.send(receipt_of(command, -1))
        self._sessions.add(session)
        if elsewhere:
            self._dispatcher.tell(Topic.AGENTS)
        self._dispatcher.resume(session, resend, settled, growth)
        return session

    def _end_cloned(self, organization: str, agent: str) -> None:
        session = self._sessions.get(organization, agent)
        if session is not None:
            session.end(errors.AgentCloned())

    async def _take_durably(self, session: Session, frame: agent_link_pb2.ConnectRequest) -> None:
        """A database that is gone ends no session: the frame waits for it, and the agent's journal keeps the rest."""
        while True:
            try:
                return await self._take(session, frame)
            except (errors.LedgerUnavailable, errors.Overloaded):
                await asyncio.sleep(LEDGER_RETRY_SECONDS)

    async def _take(self, session: Session, frame: agent_link_pb2.ConnectRequest) -> None:
        """Do what a frame says. The next one is read after this one is on disk, so `received` is what was applied."""
        kind = frame.WhichOneof("frame")
        if session.allowance.due:
            await self._tell_excess(session)
        if kind == "heartbeat":
            if session.backlog:
                self._dispatcher.wake(session)
        elif kind == "acknowledge":
            command = text(frame.acknowledge.command, 64)
            await self._dispatcher.acknowledge(session, command, time_of(frame.acknowledge, "agent_time"))
        elif kind == "result":
            if int(frame.result.state) == State.REJECTED and frame.result.code == Code.ALREADY_EXISTS:
                # The agent was sent other content under an id that it has. What it has goes on; this is no end of it.
                said = text(frame.result.error, 4096)
                log.error("agent %s: %s", session.agent, said)
                command = text(frame.result.command, 64)
                at = self._clock()
                conflict = conflict_of(session.organization, session.agent, command, said, at)
                await self._record(session, "conflict", [conflict])
                return
            await self._take_result(session, frame.result)
        elif kind == "canary_echo":
            self._take_echo(session, frame.canary_echo.nonce)
        elif kind == "drift":
            await self._record(session, kind, drifts.events_of(session, frame.drift, self._clock()))
        elif kind == "stale_frame":
            await self._record(session, kind, [fences.event_of(session, frame.stale_frame, self._clock())])
        elif kind == "witness_signature":
            self.cosignatures.take(session, frame.witness_signature)
        elif kind == "inventory":
            await self._take_inventory(session, frame.inventory)

    async def _record(self, session: Session, kind: str, events: list[Event]) -> None:
        """Record what an agent tells of its own accord, as far as its allowance goes."""
        room = session.allowance.room(len(events))

        def apply(transaction: Transaction) -> None:
            drifts.record(transaction, events[:room])

        if room:
            await self._ledger.commit((session.organization,), apply)
        session.allowance.spend(kind, room, len(events) - room)

    async def _tell_excess(self, session: Session) -> None:
        told = session.allowance.left_out
        await self._ledger.record([excess.event_of(session, told, self._clock())])
        told.clear()

    async def _take_result(self, session: Session, result: agent_link_pb2.Result) -> None:
        known = result.HasField("container") and ID.fullmatch(result.container.name)
        found = [container_values(result.container, self._clock())] if known else []

        def put(transaction: Transaction) -> None:
            containers.put(transaction.connection, session.organization, session.agent, found)

        end = end_of(result, session.organization, session.agent, session.witness_key, session.capabilities)
        index = await self._dispatcher.settle(session, text(result.command, 64), end, put)
        # To an agent that knows it, the `ack` of whatever it is sent next says the same.
        if not (self._ledger.busy and ACK_RECEIPTS in session.capabilities):
            await session.send(receipt_of(result.command, index))

    def _take_echo(self, session: Session, nonce: str) -> None:
        probe = session.probes.get(nonce)
        if probe is not None:
            probe.set()
            nonce = session.pulse.canary  # an agent brings back the newest of those that wait
        if session.pulse.echo(nonce, self._clock()):
            self._sessions.notify(session.organization)

    async def _take_inventory(self, session: Session, report: agent_link_pb2.Inventory) -> None:
        if not report.snapshot and report.base_version != session.inventory_version:
            await session.send(agent_link_pb2.ConnectResponse(report_full=agent_link_pb2.ReportFull()))
            return
        at = self._clock()
        found = [container_values(one, at) for one in report.containers if ID.fullmatch(one.name)]

        def apply(transaction: Transaction) -> None:
            if not agents.hold(transaction.connection, session.organization, session.agent, session.epoch):
                raise errors.Superseded
            if report.snapshot:
                containers.replace(transaction.connection, session.organization, session.agent, found)
            else:
                containers.put(transaction.connection, session.organization, session.agent, found)
                containers.drop(transaction.connection, session.organization, session.agent, list(report.removed))

        # With the log's head locked, as sessions that begin do: two processes must not wait for each other in a circle.
        await self._ledger.commit((session.organization,), apply)
        session.inventory_version = report.version
        self._sessions.notify(session.organization)

    async def drain(self, reason: str) -> None:
        """Ask every agent to finish what runs and to connect anew; no session is opened any more."""
        self.stopping = True
        await self.upkeep.drain(reason)

    async def Bulk(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        call = calls.current()
        call.agent = call.actor.id
        call.targets = (("agent", call.actor.id),)
        first = await context.read()
        if first is EOF:
            raise errors.MissingRequest
        relay = self._relays.find(first.session, call.organization, call.actor.id)
        if relay is None:
            call.details["session"] = first.session[:64]
            await self._neighbours.pass_on(call.organization, call.actor.id, first, context.read, context.write)
            return
        call.details["session"], call.details["reader"] = first.session, relay.parent
        await bulk.fill(relay, first, context.read, context.write)


def small(number: int) -> int:
    """A number of an agent as JSON can say it."""
    return max(0, min(number, 2**53 - 1))


def receipt_of(command: str, index: int) -> agent_link_pb2.ConnectResponse:
    """The frame that lets the agent's journal forget a command."""
    return agent_link_pb2.ConnectResponse(result_receipt=agent_link_pb2.ResultReceipt(command=command, index=index))
