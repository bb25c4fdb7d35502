"""The part of AuditLog that erases what entries only commit to."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from lading.v1 import audit_log_pb2 as pb
from lading_server import call as calls
from lading_server import clock, errors
from lading_server.call import Call, Change
from lading_server.event import Event, Outcome, Stage
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.services.messages import filter_of
from lading_server.store import erasures
from lading_server.store.reader import Reader

CHUNK = 1_000
"""Events that one transaction erases; each one has an event of its own."""
ERASED_MAX = 100_000
SHOWN_MAX = 32
"""Events that are named as targets."""


class Erasure:
    """What an admin may have erased."""

    _reader: Reader
    _ledger: Ledger

    async def EraseEventDetails(self, request: pb.EraseEventDetailsRequest, context: Any) -> Any:
        """The last chunk commits with the event of the call; those before it leave events that name it as parent."""
        call = calls.current()
        await call.claim()
        if bool(request.ids) == request.HasField("filter"):
            raise errors.InvalidArgument(
                "ids: say which events, either by ids or by a filter", violations={"ids": "either these or a filter"}
            )
        if request.ids:
            indexes = await self._of_ids(call, list(dict.fromkeys(request.ids)))
        else:
            indexes = await self._of_filter(call, request.filter)
        erased = 0
        while len(indexes) > CHUNK:
            chunk, indexes = indexes[:CHUNK], indexes[CHUNK:]
            erased += await self._ledger.commit((call.organization,), partial(erase_part, call, chunk))

        def apply(transaction: Transaction) -> pb.EraseEventDetailsResponse:
            count = erase(call, indexes, transaction)
            erasures.rewrite_counts(transaction.connection)
            call.details["data"] = {"erased": count}
            return pb.EraseEventDetailsResponse(erased=erased + count)

        return Change(apply)

    async def _of_ids(self, call: Call, ids: Sequence[str]) -> list[int]:
        found = await self._reader.read(erasures.indexes_of, call.organization, ids)
        if missing := [id for id in ids if id not in found]:
            raise errors.NotFound(f"there is no event {missing[0]} in your organization")
        call.targets = tuple(("event", id) for id in ids[:SHOWN_MAX])
        return list(found.values())

    async def _of_filter(self, call: Call, message: pb.EventFilter) -> list[int]:
        wanted = filter_of(message)
        indexes: list[int] = []
        before: int | None = None
        while True:
            left = ERASED_MAX - len(indexes)
            found, before = await self._reader.read(erasures.matching, call.organization, wanted, left, before)
            indexes += found
            if before is None or len(indexes) == ERASED_MAX:
                return indexes


def erase(call: Call, indexes: Sequence[int], transaction: Transaction) -> int:
    """As a unit of the ledger: erase these events as the caller; how many were not erased before."""
    return erasures.erase(
        transaction.connection,
        call.organization,
        indexes,
        at=transaction.recorded_at,
        actor=call.actor.id,
        reason=call.reason,
    )


def erase_part(call: Call, indexes: Sequence[int], transaction: Transaction) -> int:
    """As `erase`, with an event of its own."""
    count = erase(call, indexes, transaction)
    transaction.append(
        Event(
            id=clock.new_id(),
            organization=call.organization,
            operation=clock.new_id(),
            parent=call.operation,
            stage=Stage.COMPLETED,
            occurred_at=transaction.recorded_at,
            actor=call.actor,
            action="audit.erase",
            outcome=Outcome.SUCCESS,
            changes=True,
            reason=call.reason,
            request_id=call.request_id,
            source=call.user_agent,
            details={"data": {"erased": count}},
        )
    )
    return count
