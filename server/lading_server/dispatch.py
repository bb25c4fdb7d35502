"""From intent to end: records commands, hands them to agents, and records what became of them.

Crash order. (1) The intent and the command commit together; a crash before leaves nothing, and the caller was not
answered. (2) The command is marked DISPATCHED, with the session's epoch, before its bytes leave; a crash between leaves
a command that the agent's next Hello shows as never received, and it is sent again. (3) The agent journals, then
acknowledges; (4) its result is recorded, then receipted. Whatever is lost in between is in the agent's journal, and the
next Hello brings it.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from lading_server import errors, names
from lading_server.call import Call
from lading_server.clock import Clock, now
from lading_server.commands import ENDS, State
from lading_server.ends import End, event_of, record_end
from lading_server.errors import Code
from lading_server.event import Stage
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Proof, Sight, Transaction
from lading_server.orders import Order, check_same, record_order
from lading_server.sessions import WINDOW, Session, Sessions
from lading_server.store import agents, commands
from lading_server.store.commands import Row
from lading_server.store.reader import Reader

log = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
POLL_SECONDS = 2.0
"""A settled command that another replica recorded is seen after this long at the latest."""
SWEEP_MAX = 500
RESEND_MICROSECONDS = 10_000_000
"""A command that its agent has not acknowledged after this long may never have been sent."""
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Sending:
    """A command on its way to an agent, with the proof that its intent is in the log."""

    row: Row
    proof: Proof


class Dispatcher:
    """The one place that changes the state of commands.

    `seal` makes the bytes of a command that the agent gets, from its columns; `frame` makes the message that carries
    them with their proof, or the proof of the tree alone when there is no command.
    """

    def __init__(
        self,
        ledger: Ledger,
        reader: Reader,
        sessions: Sessions,
        seal: Callable[[dict[str, Any], bytes], bytes],
        frame: Callable[[Row | None, Proof], Any],
        clock: Clock = now,
    ) -> None:
        self._ledger, self._reader, self._sessions = ledger, reader, sessions
        self._seal, self._frame, self._clock = seal, frame, clock
        self._waiting: dict[str, set[asyncio.Future[Row]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def create(self, call: Call, order: Order) -> Row:
        """Record a command and its intent, and hand it to the agent if that can be done at once.

        The same `request_id` again gives the first command. Raises NotFound, FailedPrecondition, AgentOffline,
        AlreadyExists, and what the ledger raises. A caller that goes away leaves it to its course: what is recorded
        reaches its agent.
        """
        return await asyncio.shield(self._spawn(self._create(call, order)))

    async def _create(self, call: Call, order: Order) -> Row:
        organization = call.organization
        if self._sessions.get(organization, order.agent) is None and not order.detach:
            await self._require_online(call, order)
        session = self._sessions.get(organization, order.agent)
        direct = session is not None and session.open
        if session is not None:
            session.credit -= direct
            session.queued += not direct
        made = False

        def apply(transaction: Transaction) -> tuple[Row, Proof | None]:
            nonlocal made
            made = False
            known = commands.get_by_request(transaction.connection, organization, call.actor.id, order.request_id)
            if known is not None:
                check_same(known, order)
                return known, None
            agent = check_agent(agents.get(transaction.connection, organization, order.agent), order.agent)
            made = True
            # Once a newer session has begun this one is fenced: then the newer one sends it.
            to = None
            if session is not None and direct and session.epoch == agent.epoch:
                to = (agent.epoch, session.sight)
            return record_order(transaction, call, order, self._seal, to)

        def withdraw(late: tuple[Row, Proof | None]) -> None:
            if made:
                self._withdraw(*late, session)

        try:
            row, proof = await self._ledger.commit((organization,), apply, late=withdraw)
        except BaseException:
            if session is not None:
                session.credit += direct
                session.queued -= not direct
            raise
        call.superseded_by = row.event_index
        call.details["command"] = names.command_name(row.id)
        if session is not None:
            session.queued -= not direct
            if proof is not None and not proof.checkpoint:
                self._withdraw(row, proof, session)
                raise errors.LedgerUnavailable("the log cannot be signed now, so nothing was sent: try again")
            if proof is not None:
                self._spawn(session.show(self._frame(row, proof), proof.turn))
                return row
            session.credit += direct
        newest = self._sessions.get(organization, order.agent)
        if row.state == State.PENDING and newest is not None:
            newest.backlog = True
            self.wake(newest)
        return row

    async def _require_online(self, call: Call, order: Order) -> None:
        organization, agent = call.organization, order.agent
        if order.request_id:
            known = await self._reader.read(commands.get_by_request, organization, call.actor.id, order.request_id)
            if known is not None:
                return  # its answer may be known already
        row = check_agent(await self._reader.read(agents.get, organization, agent), agent)
        if not row.connected or row.lease_until <= self._clock():
            seconds = (self._clock() - (row.last_seen_at or 0)) // 1_000_000
            raise errors.AgentOffline(
                f"agent {agent} is not connected, it was last heard {seconds} s ago: "
                "start it, or repeat the call with detach to have it done when it is back",
                metadata={"agent": agent},
            )

    def _withdraw(self, row: Row, proof: Proof | None, session: Session | None) -> None:
        """The intent came to disk after its caller was told that nothing happened: then nothing must."""
        if proof is not None and session is not None:
            if proof.checkpoint:
                self._spawn(session.show(self._frame(None, proof), proof.turn))  # later proofs go on from this tree
            else:
                session.end(errors.Stopping("the log cannot be signed now"))
        if row.state not in ENDS:
            end = End(State.CANCELLED, Code.UNAVAILABLE, "its caller was told UNAVAILABLE", "never sent")
            self._spawn(self._settle(row.organization, row.id, end))

    async def wait(self, organization: str, command: str, seconds: float | None) -> Row:
        """The command once it is settled, or UNKNOWN. Raises TimeoutError after `seconds`."""
        answer: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(command, set()).add(answer)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    row = await self._reader.read(commands.get, organization, command)
                    if row is not None and (row.settled_at is not None or row.state == State.UNKNOWN):
                        return row
                    done, _ = await asyncio.wait((answer,), timeout=POLL_SECONDS)
                    if done:
                        return answer.result()
        finally:
            waiting = self._waiting.get(command, set())
            waiting.discard(answer)
            if not waiting:
                self._waiting.pop(command, None)

    def wake(self, session: Session) -> None:
        """Send what waits in the database for this session's agent, as far as its window goes."""
        if not session.flushing:
            session.flushing = True
            self._spawn(self._flush(session))

    async def _flush(self, session: Session) -> None:
        try:
            while session.backlog and session.credit > 0 and not session.draining and session.failure is None:
                limit = session.credit

                def take(transaction: Transaction, limit: int = limit) -> list[Sending]:
                    found = commands.take_pending(
                        transaction.connection,
                        session.organization,
                        session.agent,
                        session.epoch,
                        limit,
                        transaction.recorded_at,
                    )
                    return [prove_again(transaction, row, session) for row in found]

                session.backlog = False  # who queues another one meanwhile sets it again
                taken = await self._ledger.commit((session.organization,), take)
                session.backlog = session.backlog or len(taken) == limit
                session.credit -= len(taken)
                await self._send(session, taken)
        except errors.Error:
            session.backlog = True  # the next heartbeat wakes it again
        finally:
            session.flushing = False

    async def _send(self, session: Session, taken: list[Sending]) -> None:
        for one in taken:
            if not one.proof.checkpoint:
                # Marked DISPATCHED and never sent: the next session's Hello shows that, and it is sent again.
                session.end(errors.Stopping("the log cannot be signed now"))
                return
            await session.show(self._frame(one.row, one.proof), one.proof.turn)

    async def _send_again(self, session: Session, row: Row) -> None:
        def prove(transaction: Transaction) -> list[Sending]:
            return [prove_again(transaction, row, session)]

        await self._send(session, await self._ledger.commit((session.organization,), prove))

    async def show_growth(self, session: Session) -> None:
        """Show the agent the tree as it is now, for it to check and to cosign."""

        def look(transaction: Transaction) -> Proof:
            return transaction.prove_again(session.organization, -1, session.sight)

        proof = await self._ledger.commit((session.organization,), look)
        grown = proof.checkpoint and proof.size > proof.extends
        await session.show(self._frame(None, proof) if grown else None, proof.turn)

    async def acknowledge(self, session: Session, command: str, agent_time: int | None) -> None:
        """The agent has journalled a command: it is STARTED."""

        def apply(transaction: Transaction) -> None:
            self._acknowledge(transaction, session.organization, session.agent, command, session.epoch, agent_time)

        await self._ledger.commit((session.organization,), apply)

    def _acknowledge(
        self,
        transaction: Transaction,
        organization: str,
        agent: str,
        command: str,
        epoch: int,
        agent_time: int | None,
    ) -> None:
        row = commands.move(
            transaction.connection,
            organization,
            command,
            State.ACKNOWLEDGED,
            epoch=epoch,
            agent=agent,
            acknowledged_at=transaction.recorded_at,
        )
        if row is not None:
            transaction.append(event_of(row, Stage.STARTED, transaction.recorded_at, {"agent_time": agent_time}))

    async def settle(
        self, session: Session, command: str, end: End, also: Callable[[Transaction], None] | None = None
    ) -> int:
        """Record the end of a command as the agent says it; returns the index of its event, -1 if it had one.

        The agent may forget it once this has returned. `also` is done in the same transaction.
        """
        index = await self._settle(session.organization, command, end, session.agent, session.epoch, also)
        if index >= 0:
            session.credit = min(session.credit + 1, WINDOW)
        if session.backlog:
            self.wake(session)
        return index

    async def _settle(
        self,
        organization: str,
        command: str,
        end: End,
        agent: str | None = None,
        epoch: int | None = None,
        also: Callable[[Transaction], None] | None = None,
    ) -> int:
        def apply(transaction: Transaction) -> tuple[Row, int] | None:
            done = record_end(transaction, organization, command, end, agent, epoch)
            if done is not None and also is not None:
                also(transaction)
            return done

        done = await self._ledger.commit((organization,), apply)
        if done is None:
            return -1
        self._resolve(done[0])
        return done[1]

    def reconcile(
        self,
        transaction: Transaction,
        organization: str,
        agent: str,
        epoch: int,
        held: dict[str, End | None],
        same_journal: bool,
        sight: Sight,
    ) -> tuple[list[Sending], list[Row], int]:
        """Settle what the agent's journal tells at the begin of a session. Runs in the unit that raises the epoch.

        `held`: commands in the journal, with their end if they have one. Returns the commands to send again, those that
        were settled, and how many are in the agent's hands.
        """
        resend: list[Sending] = []
        settled: list[Row] = []
        in_hand = 0
        for row in commands.list_unsettled(transaction.connection, organization, agent):
            if row.state == State.PENDING:
                continue
            end = held.get(row.id)
            if end is None and row.id not in held:
                if not same_journal or row.acknowledged_at is not None:
                    end = End(State.UNKNOWN, Code.UNKNOWN, "the agent's journal does not hold it", "journal")
                elif row.state == State.DISPATCHED and row.deliver_by > transaction.recorded_at:
                    again = commands.renew(transaction.connection, row.id, epoch)
                    resend.append(Sending(again, transaction.prove_again(organization, row.event_index, sight)))
                    continue
                else:
                    end = End(State.FAILED, Code.UNAVAILABLE, "it never reached the agent", "journal")
            if end is not None:
                done = record_end(transaction, organization, row.id, end, agent, epoch)
                if done is not None:
                    settled.append(done[0])
                continue
            in_hand += 1
            commands.renew(transaction.connection, row.id, epoch)
            self._acknowledge(transaction, organization, agent, row.id, epoch, None)
        return resend, settled, in_hand + len(resend)

    def resume(self, session: Session, resend: list[Sending], settled: list[Row]) -> None:
        """After `reconcile` is committed: send again, and answer those who wait."""
        for row in settled:
            self._resolve(row)
        # The agent sees the log before anything else of it: the first time, it pins the log's key.
        self._spawn(self._send(session, resend) if resend else self.show_growth(session))
        self.wake(session)

    async def sweep(self) -> None:
        """For ever: see to what nobody else sees to."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self._sweep()
            except errors.Error as failure:
                log.warning("cannot look for overdue commands now: %s", failure)
            except Exception:
                log.exception("cannot look for overdue commands")

    async def _sweep(self) -> None:
        """Expire what was not delivered in time, mark UNKNOWN what a lost lease left in flight, and send what a lost
        answer of the database, or another replica, left unsent."""
        at = self._clock()
        for row in await self._reader.read(commands.list_overdue, at, SWEEP_MAX):
            end = End(State.EXPIRED, Code.DEADLINE_EXCEEDED, "its agent did not come in time", "never sent")
            await self._settle(row.organization, row.id, end)
        for row in await self._reader.read(commands.list_lost, at, SWEEP_MAX):
            lost = End(State.UNKNOWN, Code.UNKNOWN, "the agent's lease was lost while it was in flight", "lease")
            await self._settle(row.organization, row.id, lost, epoch=row.epoch)
        for row in await self._reader.read(commands.list_waiting, at, SWEEP_MAX):
            session = self._sessions.get(row.organization, row.agent)
            if session is not None and not session.flushing:
                session.backlog = True
                self.wake(session)
        for row in await self._reader.read(commands.list_silent, at - RESEND_MICROSECONDS, SWEEP_MAX):
            session = self._sessions.get(row.organization, row.agent)
            if session is not None and session.epoch == row.epoch and row.id not in session.resent:
                session.resent.add(row.id)  # once: an agent that has it knows it by its id, and takes it no second time
                self._spawn(self._send_again(session, row))

    async def cancel(self, call: Call, command: str) -> tuple[Row, Session | None]:
        """Cancel a command that was not dispatched; for one in flight, return the session to ask.

        Raises NotFound, FailedPrecondition.
        """

        def apply(transaction: Transaction) -> tuple[Row, bool]:
            row = commands.get(transaction.connection, call.organization, command)
            if row is None:
                raise errors.NotFound(f"there is no command {command} in your organization")
            if row.settled_at is not None:
                raise errors.FailedPrecondition(f"the command is {State(row.state).name} already")
            if row.state != State.PENDING:
                return row, False
            end = End(State.CANCELLED, Code.CANCELLED, f"cancelled by {call.actor.id}", "never sent")
            done = record_end(transaction, call.organization, command, end)
            assert done is not None
            return done[0], True

        row, done = await self._ledger.commit((call.organization,), apply)
        if done:
            self._resolve(row)
            return row, None
        return row, self._sessions.get(call.organization, row.agent)

    def _resolve(self, row: Row) -> None:
        for answer in self._waiting.pop(row.id, ()):
            if not answer.done():
                answer.set_result(row)
        self._sessions.notify(row.organization)

    def _spawn(self, work: Coroutine[Any, Any, R]) -> "asyncio.Task[R]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None and not isinstance(failure, errors.Error):
            # The stream broke under a frame: the agent's next Hello tells what it has, and that settles it.
            log.info("a frame was not sent: %s", failure or type(failure).__name__)


def prove_again(transaction: Transaction, row: Row, session: Session) -> Sending:
    """A command that waited, with the proof of its intent in the tree as it is now."""
    return Sending(row, transaction.prove_again(row.organization, row.event_index, session.sight))


def check_agent(row: agents.Row | None, agent: str) -> agents.Row:
    """Raise unless the agent exists and takes commands."""
    if row is None:
        raise errors.NotFound(f"there is no agent {agent} in your organization: see `lading agents ls`")
    if row.banned:
        raise errors.FailedPrecondition(f"agent {agent} is banned", metadata={"agent": agent})
    if row.drained:
        raise errors.FailedPrecondition(
            f"agent {agent} is drained and takes no commands: `lading agents resume {agent}`", metadata={"agent": agent}
        )
    return row
