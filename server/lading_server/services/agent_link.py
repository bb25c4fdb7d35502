"""What agents speak with the server: their sessions, and the bytes of their logs."""

import asyncio
import contextlib
import logging
import time
from typing import Any

from google.protobuf.duration_pb2 import Duration
from grpc.aio import EOF

from lading.transparency import note
from lading.v1 import agent_link_pb2, agent_link_pb2_grpc
from lading_server import call as calls
from lading_server import errors
from lading_server.call import Call
from lading_server.clock import Clock, now
from lading_server.commands import State
from lading_server.dispatch import Dispatcher
from lading_server.ends import End
from lading_server.errors import Code
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Sight, Transaction
from lading_server.names import ID
from lading_server.relay import Relay, Relays
from lading_server.services.resources import container_values, stamp, text, time_of
from lading_server.sessions import HEARTBEAT_SECONDS, LEASE_SECONDS, WINDOW, Session, Sessions
from lading_server.signer import Signer
from lading_server.store import agents, containers, tiles

log = logging.getLogger(__name__)

LEASE_WRITE_SECONDS = 30.0
"""A heartbeat renews the lease in memory; in the database it is written this often, and so much longer."""
HELD_MAX = 10_000
GROWTH_SECONDS = 5.0
GROWTHS_PER_SECOND = 100.0
LEDGER_RETRY_SECONDS = 0.5
AGENT_STATES: frozenset[int] = frozenset(
    {State.SUCCEEDED, State.FAILED, State.REJECTED, State.CANCELLED, State.UNKNOWN}
)
DRAIN_SECONDS = 1.0
DRAIN_RECONNECT_SECONDS = 1.0


class AgentLink(agent_link_pb2_grpc.AgentLinkServicer):
    """See protos/lading/v1/agent_link.proto."""

    def __init__(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        sessions: Sessions,
        relays: Relays,
        signer: Signer,
        clock: Clock = now,
    ) -> None:
        self._ledger, self._dispatcher, self._sessions, self._signer = ledger, dispatcher, sessions, signer
        self._relays, self._clock = relays, clock
        self.stopping = False

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        call = calls.current()
        if self.stopping:
            raise errors.Stopping(retry_after=DRAIN_RECONNECT_SECONDS)
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
                session.heard_at = time.monotonic()
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
            gone = errors.AgentOffline(f"agent {session.agent} went away")
            self._relays.fail(session.organization, session.agent, gone)
            await self._keep(session, connected=False)
            self._sessions.notify(session.organization)

    async def _open(self, call: Call, first: agent_link_pb2.ConnectRequest, context: Any) -> Session:
        """Raise the epoch, settle what the journal tells, say Welcome; then the agent is online."""
        hello = first.hello
        if len(hello.held) > HELD_MAX:
            raise errors.InvalidArgument(f"the journal holds more than {HELD_MAX} commands")
        held = {one.command: end_of(one.result) if one.HasField("result") else None for one in hello.held}

        sight = Sight(max(0, hello.tree_size))
        witness_key = witness_of(hello.witness_key, call.organization, call.actor.id)
        call.details["witness_key"] = hello.witness_key[:256]

        def apply(transaction: Transaction) -> tuple[int, tuple[Any, Any, int]]:
            if sight.size > transaction.size(call.organization):
                raise errors.FailedPrecondition(
                    f"the agent saw a tree of {sight.size} entries, and this log is shorter: the database went back; "
                    "see `lading server accept-rollback`"
                )
            known = agents.get(transaction.connection, call.organization, call.actor.id)
            if known is not None and known.banned:
                raise errors.PermissionDenied(f"agent {call.actor.id} is banned")
            epoch, journal_before = agents.connect(
                transaction.connection,
                call.organization,
                call.actor.id,
                at=transaction.recorded_at,
                version=text(hello.version, 64),
                runtime=text(hello.runtime, 64),
                labels={text(key, 256): text(value, 1024) for key, value in list(hello.labels.items())[:64]},
                replica=self._ledger.boot_id,
                boot_id=text(hello.boot_id, 64),
                journal_id=text(hello.journal_id, 64),
                seen_epoch=max(0, hello.epoch),
                lease_until=transaction.recorded_at + int((LEASE_SECONDS + LEASE_WRITE_SECONDS) * 1_000_000),
            )
            same = not journal_before or journal_before == text(hello.journal_id, 64)
            return epoch, self._dispatcher.reconcile(
                transaction, call.organization, call.actor.id, epoch, held, same, sight
            )

        epoch, (resend, settled, in_hand) = await self._ledger.commit((call.organization,), apply)
        task = asyncio.current_task()
        assert task is not None
        session = Session(call.organization, call.actor.id, epoch, context.write, task, WINDOW - in_hand)
        session.received = first.seq
        session.sight, session.witness_key = sight, witness_key
        await session.send(
            agent_link_pb2.ConnectResponse(
                welcome=agent_link_pb2.Welcome(
                    lease=Duration(seconds=int(LEASE_SECONDS)),
                    heartbeat=Duration(seconds=int(HEARTBEAT_SECONDS)),
                    window=WINDOW,
                    server_time=stamp(self._clock()),
                )
            )
        )
        for command, end in held.items():
            if end is not None:
                await session.send(receipt_of(command, -1))
        self._sessions.add(session)
        self._dispatcher.resume(session, resend, settled)
        return session

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
        if kind == "heartbeat":
            if session.backlog:
                self._dispatcher.wake(session)
            if time.monotonic() - session.lease_written_at > LEASE_WRITE_SECONDS:
                await self._keep(session, connected=True)
        elif kind == "acknowledge":
            command = text(frame.acknowledge.command, 64)
            await self._dispatcher.acknowledge(session, command, time_of(frame.acknowledge, "agent_time"))
        elif kind == "result":
            if int(frame.result.state) == State.REJECTED and frame.result.code == Code.ALREADY_EXISTS:
                # The agent was sent other content under an id that it has. What it has goes on; this is no end of it.
                log.error("agent %s: %s", session.agent, frame.result.error)
                return
            await self._take_result(session, frame.result)
        elif kind == "witness_signature":
            await self._take_cosignature(session, frame.witness_signature)
        elif kind == "inventory":
            await self._take_inventory(session, frame.inventory)

    async def _take_result(self, session: Session, result: agent_link_pb2.Result) -> None:
        known = result.HasField("container") and ID.fullmatch(result.container.name)
        found = [container_values(result.container, self._clock())] if known else []

        def put(transaction: Transaction) -> None:
            containers.put(transaction.connection, session.organization, session.agent, found)

        index = await self._dispatcher.settle(session, text(result.command, 64), end_of(result), put)
        await session.send(receipt_of(result.command, index))

    async def _take_inventory(self, session: Session, report: agent_link_pb2.Inventory) -> None:
        if not report.snapshot and report.base_version != session.inventory_version:
            await session.send(agent_link_pb2.ConnectResponse(report_full=agent_link_pb2.ReportFull()))
            return
        at = self._clock()
        found = [container_values(one, at) for one in report.containers if ID.fullmatch(one.name)]

        def apply(transaction: Transaction) -> None:
            if report.snapshot:
                containers.replace(transaction.connection, session.organization, session.agent, found)
            else:
                containers.put(transaction.connection, session.organization, session.agent, found)
                containers.drop(transaction.connection, session.organization, session.agent, list(report.removed))

        await self._ledger.commit((), apply)
        session.inventory_version = report.version
        self._sessions.notify(session.organization)

    async def _take_cosignature(self, session: Session, found: agent_link_pb2.WitnessSignature) -> None:
        """Keep what the agent signed, if it is of a tree of this log and by its key; else it is passed over."""
        if session.witness_key is None:
            return
        origin = self._signer.key(session.organization).name
        try:
            text = note.Checkpoint(origin, found.size, found.root).text()
            ((_, at),) = note.verify_note(note.parse_note(f"{text}\n{found.signature}"), [session.witness_key])
        except note.InvalidNote as failure:
            log.warning("a cosignature of agent %s does not hold: %s", session.agent, failure)
            return
        values = {
            "witness_key": str(session.witness_key),
            "size": found.size,
            "root": found.root,
            "signature": found.signature,
            "signed_at": at * 1_000_000,
        }

        def apply(transaction: Transaction) -> None:
            tiles.put_cosignature(transaction.connection, session.organization, session.agent, **values)

        await self._ledger.commit((), apply)

    async def show_growth(self) -> None:
        """For ever: show every agent how the log has grown, for it to check and to cosign; at most so many a second
        that cosignatures never crowd out commands."""
        while True:
            sessions = self._sessions.all()
            await asyncio.sleep(max(GROWTH_SECONDS, len(sessions) / GROWTHS_PER_SECOND))
            for session in sessions:
                try:
                    async with asyncio.timeout(GROWTH_SECONDS):
                        await self._dispatcher.show_growth(session)
                except Exception as failure:
                    log.info("agent %s was not shown the log: %s", session.agent, failure or type(failure).__name__)

    async def _keep(self, session: Session, *, connected: bool) -> None:
        """Write the lease; a crash before leaves the older one, which ends earlier, and that is safe."""
        at = self._clock()
        silent = int((time.monotonic() - session.heard_at) * 1_000_000)
        more = LEASE_SECONDS + (LEASE_WRITE_SECONDS if connected else 0.0)

        def apply(transaction: Transaction) -> None:
            agents.keep(
                transaction.connection,
                session.organization,
                session.agent,
                epoch=session.epoch,
                seen_at=at - silent,
                lease_until=at - silent + int(more * 1_000_000),
                connected=connected,
            )

        session.lease_written_at = time.monotonic()
        with contextlib.suppress(errors.Error):
            await self._ledger.commit((), apply)

    async def drain(self, reason: str) -> None:
        """Ask every agent to finish what runs and to connect anew; no session is opened any more."""
        self.stopping = True
        after = Duration()
        after.FromMilliseconds(int(DRAIN_RECONNECT_SECONDS * 1000))
        sends = []
        for session in self._sessions.all():
            session.draining = True
            drain = agent_link_pb2.Drain(reason=reason, reconnect_after=after)
            sends.append(session.send(agent_link_pb2.ConnectResponse(drain=drain)))
        with contextlib.suppress(TimeoutError):  # who does not read sees its stream end without it
            async with asyncio.timeout(DRAIN_SECONDS):
                await asyncio.gather(*sends, return_exceptions=True)

    async def Bulk(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        call = calls.current()
        call.agent = call.actor.id
        call.targets = (("agent", call.actor.id),)
        first = await context.read()
        relay = None
        if first is not EOF:
            relay = self._relays.attach(first.session, call.organization, call.actor.id)
        if relay is None:
            raise errors.NotFound("no such bulk session: it was not asked for, or its reader is gone")
        call.details["session"], call.details["reader"] = first.session, relay.parent
        stop = asyncio.create_task(self._tell_stop(relay, context))
        try:
            await self._pump(relay, first, context)
        finally:
            if not relay.stopped.is_set():
                stop.cancel()
            # What it writes must be written before the stream may end.
            await asyncio.gather(stop, return_exceptions=True)

    async def _tell_stop(self, relay: Relay, context: Any) -> None:
        await relay.stopped.wait()
        await context.write(agent_link_pb2.BulkResponse(stop=True))

    async def _pump(self, relay: Relay, piece: Any, context: Any) -> None:
        """Bring every piece to the reader; when it is slow, read no more, and the agent waits."""
        end: errors.Error | None = errors.AgentOffline("the agent closed the log without saying why")
        try:
            while piece is not EOF and not relay.stopped.is_set():
                if piece.data:
                    await self._hand(relay, piece)
                if piece.HasField("end"):
                    code = code_of(piece.end.code)
                    end = errors.CommandFailed(piece.end.error[:1000], code=code) if code else None
                    return
                piece = await context.read()
        finally:
            if not relay.stopped.is_set():
                await self._hand(relay, end)

    async def _hand(self, relay: Relay, piece: Any) -> None:
        """Put a piece before the reader, unless it leaves first."""
        put = asyncio.ensure_future(relay.pieces.put(piece))
        stopped = asyncio.ensure_future(relay.stopped.wait())
        try:
            await asyncio.wait((put, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            put.cancel()
            stopped.cancel()


def witness_of(text: str, organization: str, agent: str) -> note.Key | None:
    """The agent's key as a witness, None without one. Raises InvalidArgument for one that is not its own."""
    if not text:
        return None
    try:
        key = note.parse_key(text)
    except note.InvalidNote as failure:
        raise errors.InvalidArgument(f"hello.witness_key: {failure}") from failure
    if key.algorithm != note.COSIGNATURE or key.name != f"{organization}/{agent}":
        raise errors.InvalidArgument(f"hello.witness_key must be a cosignature key named {organization}/{agent}")
    return key


def code_of(number: int) -> Code:
    """The code that an agent says; one that nobody knows is UNKNOWN."""
    return Code(number) if number in set(Code) else Code.UNKNOWN


def end_of(result: agent_link_pb2.Result) -> End:
    """What an agent says became of a command. Raises InvalidArgument for what is no end."""
    if result.state not in AGENT_STATES:
        raise errors.InvalidArgument(f"{result.state} is not the state of a command that has ended")
    state, code = State(result.state), code_of(result.code)
    if state is State.SUCCEEDED:
        code = Code.OK
    elif code is Code.OK:
        code = Code.UNKNOWN
    return End(
        state,
        code,
        text(result.error, 4096),
        text(result.evidence, 256),
        text(result.container_id, 128),
        time_of(result, "agent_time"),
        time_of(result, "duration"),
    )


def receipt_of(command: str, index: int) -> agent_link_pb2.ConnectResponse:
    """The frame that lets the agent's journal forget a command."""
    return agent_link_pb2.ConnectResponse(result_receipt=agent_link_pb2.ResultReceipt(command=command, index=index))
