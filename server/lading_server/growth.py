"""Shows agents how the log has grown, without a command: for them to check and to cosign."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Proof, Transaction
from lading_server.sessions import Session


async def show_growth(
    ledger: Ledger,
    sessions: Sequence[Session],
    frame: Callable[[None, Proof], Any],
    spawn: Callable[[Coroutine[Any, Any, None]], object],
) -> None:
    """Show these agents, all of one organization, the tree as it is now: one unit of the ledger for all. It must run to
    its end, for a proof that is not shown keeps all that come after it waiting for their turn. The sessions are marked
    as `growing` until it is sent. `frame` makes the message of a proof, `spawn` lets something run beside."""
    organization = sessions[0].organization

    def look(transaction: Transaction) -> list[tuple[Session, Proof]]:
        size = transaction.size(organization)
        seeing = [session for session in sessions if session.sight.size < size]
        return [(each, transaction.prove_again(organization, -1, each.sight)) for each in seeing]

    async def show(session: Session, proof: Proof) -> None:
        grown = proof.checkpoint and proof.size > proof.extends
        try:
            await session.show(frame(None, proof) if grown else None, proof.turn)
        finally:
            session.growing = False

    def show_late(found: list[tuple[Session, Proof]]) -> None:
        for session, proof in found:
            spawn(show(session, proof))

    shown: set[Session] = set()
    try:
        found = await ledger.commit((organization,), look, late=show_late)
        shown = {session for session, _ in found}
        await asyncio.gather(*(show(session, proof) for session, proof in found))
    finally:
        for session in sessions:
            session.growing = session.growing and session in shown  # one that does not read is still at it
