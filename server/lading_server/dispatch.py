"""From intent to end: records commands, hands them to agents, and records what became of them.

Crash order. (1) The intent and the command commit together; a crash before leaves nothing, and the caller was not
answered. (2) The command is marked DISPATCHED, with the session's epoch, before its bytes leave; a crash between leaves
a command that the agent's next Hello shows as never received, and it is sent again. (3) The agent journals, then
acknowledges; (4) its result is recorded, then receipted. Whatever is lost in between is in the agent's journal, and the
next Hello brings it.

A command whose COMMIT answered too late, so that its caller was told that nothing happened, is withdrawn: this process
sends it to nobody, and tries until that is recorded. A crash before that leaves the command to its course; where
another process was faster, its agent is asked to cancel it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from lading_server import errors, names
from lading_server.arrears import Arrears
from lading_server.call import Call
from lading_server.clock import Clock, now
from lading_server.commands import ENDS, SESSION_VERBS, State
from lading_server.ends import End, record_cancel, record_end, record_evidence, record_start, record_withdrawal
from lading_server.errors import Code
from lading_server.growth import show_growth
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Proof, Transaction
from lading_server.orders import Order, check_agent, check_same, check_unused, record_order, require_online
from lading_server.reconciliation import Sending, prove_again
from lading_server.sessions import WINDOW, Session, Sessions
from lading_server.store import agents, commands, requests
from lading_server.store.commands import Row
from lading_server.store.reader import Reader
from lading_server.store.wakeups import Topic
from lading_server.waiters import Waiters

log = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
SWEEP_MAX = 500
RESEND_MICROSECONDS = 10_000_000
"""A command that its agent has not acknowledged after this long may never have been sent."""
R = TypeVar("R")


def tell_nobody(_topic: Topic) -> None:
    """For a process that is the only one of its database."""


class Dispatcher:
    """The one place that changes the state of commands.

    `seal` makes the bytes of a command that the agent gets, from its columns; `frame` makes the message that carries
    them with their proof, or the proof of the tree alone when there is no command. `tell` wakes the other processes of
    this database.
    """

    def __init__(
        self,
        ledger: Ledger,
        reader: Reader,
        sessions: Sessions,
        seal: Callable[[dict[str, Any], bytes], bytes],
        frame: Callable[[Row | None, Proof], Any],
        cancel_frame: Callable[[str], Any],
        clock: Clock = now,
        tell: Callable[[Topic], None] = tell_nobody,
    ) -> None:
        self._ledger, self._reader, self._sessions = ledger, reader, sessions
        self._seal, self._frame, self._cancel_frame = seal, frame, cancel_frame
        self._clock, self.tell = clock, tell
        self._waiters = Waiters(reader)
        self._looked = ("", "")
        self._withdrawn: set[str] = set()
        """Commands whose callers were told that nothing happened: not sent, whatever the database says of them."""
        self._withdrawals = Arrears(ledger, "withdrawals", self._record_withdrawals, self._resolve_all)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def create(self, call: Call, order: Order) -> Row:
        """Record a command and its intent, and hand it to the agent if that can be done at once.

        The same `request_id` again gives the first command. Raises NotFound, FailedPrecondition, AgentOffline,
        AlreadyExists, and what the ledger raises. A caller that goes away leaves it to its course: what is recorded
        reaches its agent.
        """
        organization = call.organization
        if self._sessions.get(organization, order.agent) is None and not order.detach:
            await require_online(self._reader, call, order, self._clock())
        session = self._sessions.get(organization, order.agent)
        direct = session is not None and session.open
        if session is not None:
            session.credit -= direct
            session.queued += not direct
        made = elsewhere = False

        def apply(transaction: Transaction) -> tuple[Row, Proof | None]:
            nonlocal made, elsewhere
            made = elsewhere = False
            known = commands.get_by_request(transaction.connection, organization, call.actor.id, order.request_id)
            if known is not None:
                check_same(known, order)
                return known, None
            check_unused(requests.get(transaction.connection, organization, call.actor.id, order.request_id), order)
            agent = check_agent(agents.get(transaction.connection, organization, order.agent), order.agent)
            made = True
            elsewhere = agent.replica != self._ledger.boot_id
            # Once a newer session has begun this one is fenced: then the newer one sends it.
            to = None
            if session is not None and direct and session.epoch == agent.epoch:
                to = (agent.epoch, session.sight)
            return record_order(transaction, call, order, self._seal, to)

        def withdraw(late: tuple[Row, Proof | None]) -> None:
            if made:
                self._withdraw(*late, session)

        def follow(done: "asyncio.Future[tuple[Row, Proof | None]]") -> None:
            if session is not None:
                session.queued -= not direct
            failed = done.cancelled() or done.exception() is not None
            sent = not failed and self._hand_over(*done.result(), session, elsewhere=elsewhere)
            if session is not None and not sent:
                session.credit += direct

        committing: asyncio.Future[tuple[Row, Proof | None]]
        try:
            committing = self._ledger.commit((organization,), apply, late=withdraw)
        except errors.Error:
            if session is not None:
                session.credit += direct
                session.queued -= not direct
            raise
        committing.add_done_callback(follow)
        row, proof = await asyncio.shield(committing)
        call.superseded_by = row.event_index
        call.details["command"] = names.command_name(row.id)
        if proof is not None and not proof.checkpoint:
            raise errors.LedgerUnavailable("the log cannot be signed now, so nothing was sent: try again")
        return row

    def _hand_over(self, row: Row, proof: Proof | None, session: Session | None, *, elsewhere: bool) -> bool:
        """See to it that a command that was just recorded reaches its agent; whether it takes a place of the window."""
        if proof is not None and session is not None:
            if proof.checkpoint:
                self._spawn(session.show(self._frame(row, proof), proof.turn))
            else:
                self._withdraw(row, proof, session)
            return True
        newest = self._sessions.get(row.organization, row.agent)
        if row.state == State.PENDING and newest is not None:
            newest.backlog = True
            self.wake(newest)
        if row.state == State.PENDING and elsewhere:
            self.tell(Topic.COMMANDS)
        return False

    def _withdraw(self, row: Row, proof: Proof | None, session: Session | None) -> None:
        """The intent came to disk after its caller was told that nothing happened: then nothing must."""
        if proof is not None and session is not None:
            if proof.checkpoint:
                self._spawn(session.show(self._frame(None, proof), proof.turn))  # later proofs go on from this tree
            else:
                session.end(errors.Stopping("the log cannot be signed now"))
        if row.state not in ENDS:
            self._withdrawn.add(row.id)
            self._withdrawals.add(row.organization, row)

    def _record_withdrawals(self, transaction: Transaction, rows: Sequence[Row]) -> list[Row]:
        return [done for row in rows if (done := record_withdrawal(transaction, row)) is not None]

    def _resolve_all(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._withdrawn.discard(row.id)
            self._resolve(row)

    async def wait(self, organization: str, command: str, seconds: float | None) -> Row:
        """The command once it is settled, or UNKNOWN. Raises TimeoutError after `seconds`."""
        return await self._waiters.wait(organization, command, seconds)

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
                    return [prove_again(transaction, row, session.sight) for row in found]

                session.backlog = False  # who queues another one meanwhile sets it again
                taken = await self._ledger.commit((session.organization,), take, late=partial(self._send_late, session))
                session.backlog = session.backlog or len(taken) == limit
                session.credit -= len(taken)
                await self._send(session, taken)
        except errors.Error:
            session.backlog = True  # the next heartbeat wakes it again
        finally:
            session.flushing = False

    def _send_late(self, session: Session, taken: list[Sending]) -> None:
        """What a COMMIT took that answered too late: the proofs that follow go on from the trees of these."""
        session.credit -= len(taken)
        self._spawn(self._send(session, taken))

    async def _send(self, session: Session, taken: list[Sending]) -> None:
        for one in taken:
            if one.row.id in self._withdrawn:
                self._withdraw(one.row, one.proof, session)  # as it stands now
                self._refund(session)
                continue
            if not one.proof.checkpoint:
                # Marked DISPATCHED and never sent: the next session's Hello shows that, and it is sent again.
                session.end(errors.Stopping("the log cannot be signed now"))
                return
            await session.show(self._frame(one.row, one.proof), one.proof.turn)

    async def _send_again(self, session: Session, row: Row) -> None:
        def prove(transaction: Transaction) -> list[Sending]:
            return [prove_again(transaction, row, session.sight)]

        def send(again: list[Sending]) -> None:
            self._spawn(self._send(session, again))

        await self._send(session, await self._ledger.commit((session.organization,), prove, late=send))

    async def show_growth(self, *sessions: Session) -> None:
        """Show these agents, all of one organization, the tree as it is now, for them to check and to cosign: one unit
        of the ledger for all. Whoever stops waiting for it stops nothing: a proof that is not shown would keep all that
        come after it waiting for their turn."""
        waiting = [session for session in sessions if not session.growing]
        for session in waiting:
            session.growing = True
        if waiting:
            await asyncio.shield(self._spawn(show_growth(self._ledger, waiting, self._frame, self._spawn)))

    async def acknowledge(self, session: Session, command: str, agent_time: int | None) -> None:
        """The agent has journalled a command: it is STARTED."""

        def apply(transaction: Transaction) -> Row | None:
            return record_start(transaction, session.organization, session.agent, command, session.epoch, agent_time)

        row = await self._ledger.commit((session.organization,), apply)
        if row is not None and row.verb in SESSION_VERBS:
            self._refund(session)

    def _refund(self, session: Session) -> None:
        """A command takes no place of the window any more."""
        session.credit = min(session.credit + 1, WINDOW)
        if session.backlog:
            self.wake(session)

    async def settle(
        self, session: Session, command: str, end: End, also: Callable[[Transaction], None] | None = None
    ) -> int:
        """Record the end of a command as the agent says it; returns the index of the event of that, -1 for no news.

        The agent may forget it once this has returned. `also` is done in the same transaction.
        """
        done = await self._settle(session.organization, command, end, session.agent, session.epoch, also)
        if done is not None and not (done[0].verb in SESSION_VERBS and done[0].acknowledged_at):
            self._refund(session)
        elif session.backlog:
            self.wake(session)
        return -1 if done is None else done[1]

    async def _settle(
        self,
        organization: str,
        command: str,
        end: End,
        agent: str | None = None,
        epoch: int | None = None,
        also: Callable[[Transaction], None] | None = None,
    ) -> tuple[Row, int] | None:
        def apply(transaction: Transaction) -> tuple[Row, int] | None:
            done = record_end(transaction, organization, command, end, agent, epoch)
            if done is not None and also is not None:
                also(transaction)
            if done is None and agent is not None:
                return record_evidence(transaction, organization, agent, command, end, epoch)
            return done

        done = await self._ledger.commit((organization,), apply)
        if done is not None:
            self._resolve(done[0])
        return done

    def resume(self, session: Session, resend: list[Sending], settled: list[Row], growth: Proof | None) -> None:
        """After `reconciliation.reconcile` is committed: send again, and answer those who wait. `growth`: of the tree
        alone, where nothing is sent again."""
        for row in settled:
            self._resolve(row)
        # The agent sees the log before anything else of it: the first time, it pins the log's key.
        if growth is not None:
            self._spawn(session.show(self._frame(None, growth) if growth.checkpoint else None, growth.turn))
        if resend:
            self._spawn(self._send(session, resend))
        self.wake(session)

    async def sweep(self) -> None:
        """For ever: see to what nobody else sees to. Cancelled, it makes a last attempt at what is to be withdrawn."""
        try:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                try:
                    await self._sweep()
                except errors.Error as failure:
                    log.warning("cannot look for overdue commands now: %s", failure)
                except Exception:
                    log.exception("cannot look for overdue commands")
        finally:
            self._withdrawals.give_up()
            await self._withdrawals.drained()

    async def _sweep(self) -> None:
        """Expire what was not delivered in time, mark UNKNOWN what a lost lease left in flight, and send what a lost
        answer of the database, or another replica, left unsent."""
        at = self._clock()
        expired = End(State.EXPIRED, Code.DEADLINE_EXCEEDED, "its agent did not come in time", "never sent")
        async for rows in self._pages(commands.list_overdue, at):
            await self._settle_all(rows, expired)
        unknown = End(State.UNKNOWN, Code.UNKNOWN, "the agent's lease was lost while it was in flight", "lease")
        async for rows in self._pages(commands.list_lost, at):
            await self._settle_all([row for row in rows if not self._holds(row)], unknown)
        await self.look_for_work()
        silent = (self._ledger.boot_id, at - RESEND_MICROSECONDS, SWEEP_MAX)
        for row in await self._reader.read(commands.list_silent, *silent):
            session = self._sessions.get(row.organization, row.agent)
            if session is None or session.epoch != row.epoch or row.id in self._withdrawn:
                continue
            if row.id not in session.resent:
                session.resent.add(row.id)  # once: an agent that has it knows it by its id, and takes it no second time
                self._spawn(self._send_again(session, row))

    def _holds(self, row: Row) -> bool:
        """The clock jumped: the lease of this command's agent, which it was told in seconds, holds."""
        session = self._sessions.get(row.organization, row.agent)
        return session is not None and session.epoch == row.epoch and session.alive

    async def _settle_all(self, rows: Sequence[Row], end: End) -> None:
        """As they stand; one that cannot be settled holds up no other. Raises what the ledger raises in an outage."""
        settling = (self._settle(row.organization, row.id, end, epoch=row.epoch) for row in rows)
        for row, failure in zip(rows, await asyncio.gather(*settling, return_exceptions=True), strict=True):
            if isinstance(failure, errors.LedgerUnavailable | errors.Overloaded):
                raise failure
            if isinstance(failure, BaseException):
                log.error("command %s cannot become %s: %s", row.id, end.state.name, failure)

    async def _pages(self, found_by: Callable[..., Sequence[Row]], *of: Any) -> AsyncIterator[Sequence[Row]]:
        """All that a query of commands finds, so much at a time: what stays in it hides nothing that comes after."""
        after, more = commands.FIRST, True
        while more:
            rows = await self._reader.read(found_by, *of, after, SWEEP_MAX)
            yield rows
            more = len(rows) == SWEEP_MAX
            after = (rows[-1].organization, rows[-1].agent, rows[-1].id) if more else after

    async def look_for_work(self) -> None:
        """Send what waits for the agents of this process: others may have left it. Raises StoreUnavailable."""
        of = (self._ledger.boot_id, self._clock(), self._looked, SWEEP_MAX)
        waiting = await self._reader.read(commands.list_waiting, *of)
        # The next look goes on after these: their windows may be full for long.
        self._looked = (waiting[-1].organization, waiting[-1].agent) if len(waiting) == SWEEP_MAX else ("", "")
        for row in waiting:
            session = self._sessions.get(row.organization, row.agent)
            if session is not None:
                session.backlog = True
                self.wake(session)
        async for rows in self._pages(commands.list_cancels, self._ledger.boot_id):
            for row in rows:
                session = self._sessions.get(row.organization, row.agent)
                if session is not None:
                    self._ask_cancel(session, row)

    async def look_for_ends(self) -> None:
        """Answer those who wait for commands that another process settled. Raises StoreUnavailable."""
        await self._waiters.look()
        self._sessions.notify_all()

    def announce(self, row: Row) -> None:
        """Answer those who wait for the end of a command."""
        self._resolve(row)

    async def cancel(self, call: Call, command: str) -> Row:
        """Cancel a command that was not dispatched. One in flight stays as it stands, and its agent is asked, by
        whichever process has it, now or when it is back.

        Raises NotFound, FailedPrecondition.
        """

        def apply(transaction: Transaction) -> tuple[Row, bool]:
            return record_cancel(transaction, call, command)

        row, done = await self._ledger.commit((call.organization,), apply)
        session = self._sessions.get(call.organization, row.agent)
        if done:
            self._resolve(row)
        elif session is not None:
            self._ask_cancel(session, row)
        else:
            self.tell(Topic.COMMANDS)
        return row

    def _ask_cancel(self, session: Session, row: Row) -> None:
        """Once; and once more when it was acknowledged since, for a cancel that overtakes its command is lost."""
        acknowledged = row.acknowledged_at is not None
        if (acknowledged and session.cancelled.get(row.id)) or (row.id in session.cancelled and not acknowledged):
            return
        session.cancelled[row.id] = acknowledged
        self._spawn(session.send(self._cancel_frame(row.id)))

    def _resolve(self, row: Row) -> None:
        """This process settled a command: whoever waits for it is here, or elsewhere."""
        if not self._waiters.answer(row):
            self.tell(Topic.ENDS)
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
