"""Calls that are sent again: the same `request_id` by the same actor gives the first reply, and does nothing more.

Only calls that succeeded are kept: one that failed did nothing, and is tried anew. Lifecycle calls are kept as their
commands (`orders.py`); a key is used for one call of either kind.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from lading_server import errors, fingerprints, names
from lading_server.call import Call, Change, Repeated
from lading_server.interceptors.methods import Method
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.store import commands, requests

log = logging.getLogger(__name__)

KEEP_MICROSECONDS = 7 * 24 * 3600 * 1_000_000
FORGET_SECONDS = 3600.0


class Once:
    """A call that may be sent again, with the same content then."""

    def __init__(self, ledger: Ledger, call: Call, method: Method, request: Any) -> None:
        self._ledger, self._call, self._method = ledger, call, method
        self._request_id: str = request.request_id
        self._fields = fingerprints.fields_of(request, without=("request_id",))
        self._repeated = False
        self._said: tuple[Any, dict[str, Any]] | None = None
        call.claim = self._claim

    async def serve(self, serving: Awaitable[Any]) -> Change[Any]:
        """What is to be committed of the call, which may have been answered before."""

        def forgotten(_transaction: Transaction) -> Any:
            raise errors.Aborted("the first call of this request_id was forgotten just now: use a new one")

        try:
            reply = await serving
        except Repeated:
            return Change(forgotten)  # the first answer is found when it is committed
        if not isinstance(reply, Change):
            return Change(lambda _transaction: reply)
        then = reply.then
        return reply if then is None else replace(reply, then=lambda: None if self._repeated else then())

    async def _claim(self) -> None:
        if await self._ledger.commit((), self._find) is not None:
            raise Repeated

    def apply(self, transaction: Transaction, change: Change[Any], serialize: Callable[[Any], bytes]) -> bytes:
        """The first reply if there was one; else do it, and keep the reply. The event of the call commits with it."""
        call, method = self._call, self._method
        if self._said is None:
            self._said = call.diff, call.details
        # A batch that is done again may have seen another call under this key the first time.
        call.diff, call.details = self._said[0], dict(self._said[1])
        known = self._find(transaction)
        self._repeated = known is not None
        if known is not None:
            call.diff, call.details["data"] = None, {"repeats": known.operation}
            if change.again is None:
                return bytes(known.reply)
            return serialize(change.again(method.reply.FromString(known.reply)))
        reply = change.apply(transaction)
        kept = reply if method.redact_reply is None else method.redact_reply(reply)
        values = {
            "organization": call.organization,
            "actor": call.actor.id,
            "request_id": self._request_id,
            "method": method.path,
            "fingerprints": fingerprints.digest(self._fields),
            "reply": serialize(kept),
            "operation": call.operation,
            "recorded_at": transaction.recorded_at,
        }
        requests.insert(transaction.connection, values)
        return serialize(reply)

    def _find(self, transaction: Transaction) -> requests.Row | None:
        """The first call under this key. Raises AlreadyExists when that one was another."""
        call = self._call
        key = (call.organization, call.actor.id, self._request_id)
        command = commands.get_by_request(transaction.connection, *key)
        if command is not None:
            name = names.command_name(command.id)
            raise errors.already_used(self._request_id, f"command {command.id}", ["method"], command=name)
        known = requests.get(transaction.connection, *key)
        if known is None:
            return None
        if known.method != self._method.path:
            differing = ["method"]
        else:
            differing = fingerprints.differences(known.fingerprints, self._fields)
        if differing:
            raise errors.already_used(
                self._request_id, f"operation {known.operation}", differing, first=known.operation
            )
        return known


def once_of(ledger: Ledger, call: Call, method: Method, request: Any) -> Once | None:
    """The call as one that may be sent again; None when it carries no key, changes nothing, or its method keeps its
    own."""
    if not method.keyed or not request.request_id or getattr(request, "validate_only", False):
        return None
    return Once(ledger, call, method, request)


def apply_change(transaction: Transaction, change: Change[Any], serialize: Callable[[Any], bytes]) -> bytes:
    """Do what a call without a key is to do; its reply."""
    return serialize(change.apply(transaction))


async def forget(ledger: Ledger) -> None:
    """For ever: forget calls that nobody sends again after so long."""

    def apply(transaction: Transaction) -> int:
        return requests.forget(transaction.connection, transaction.recorded_at - KEEP_MICROSECONDS)

    while True:
        try:
            await ledger.commit((), apply)
        except errors.Error as failure:
            log.warning("old request ids cannot be forgotten now: %s", failure)
        await asyncio.sleep(FORGET_SECONDS)
