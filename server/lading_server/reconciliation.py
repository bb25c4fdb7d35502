"""What an agent's journal settles at the begin of a session, and what it is sent again."""

from dataclasses import dataclass

from lading_server.commands import SESSION_VERBS, State
from lading_server.ends import OPERATOR, End, record_end, record_evidence, record_start
from lading_server.errors import Code
from lading_server.ledger.transaction import Proof, Sight, Transaction
from lading_server.store import commands
from lading_server.store.commands import Row


@dataclass(frozen=True, slots=True)
class Sending:
    """A command on its way to an agent, with the proof that its intent is in the log."""

    row: Row
    proof: Proof


def prove_again(transaction: Transaction, row: Row, sight: Sight) -> Sending:
    """A command that waited, with the proof of its intent in the tree as it is now."""
    return Sending(row, transaction.prove_again(row.organization, row.event_index, sight))


def reconcile(
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
    ends = {command: end for command, end in held.items() if end is not None}
    for command in commands.list_settled_by(transaction.connection, organization, agent, ends, OPERATOR):
        record_evidence(transaction, organization, agent, command, ends[command])
    for row in commands.list_unsettled(transaction.connection, organization, agent):
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
            elif row.id in held:
                record_evidence(transaction, organization, agent, row.id, end)
            continue
        in_hand += row.verb not in SESSION_VERBS
        commands.renew(transaction.connection, row.id, epoch)
        record_start(transaction, organization, agent, row.id, epoch, None)
    return resend, settled, in_hand + len(resend)
