"""Commands: what became of them, and how to stop one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from lading.v1 import commands_pb2, commands_pb2_grpc
from lading_server import call as calls
from lading_server import errors, names, paging
from lading_server.call import Change
from lading_server.commands import State
from lading_server.dispatch import Dispatcher
from lading_server.ends import record_resolution
from lading_server.ledger.transaction import Transaction
from lading_server.services.resources import command_of
from lading_server.sessions import Sessions
from lading_server.store import commands
from lading_server.store.reader import Reader

POLL_SECONDS = 1.0
RESOLUTIONS = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Commands(commands_pb2_grpc.CommandsServicer):
    """See protos/lading/v1/commands.proto."""

    def __init__(self, dispatcher: Dispatcher, reader: Reader, sessions: Sessions) -> None:
        self._dispatcher, self._reader, self._sessions = dispatcher, reader, sessions

    async def GetCommand(self, request: commands_pb2.GetCommandRequest, context: Any) -> Any:
        return command_of(await self._find(request.name))

    async def _find(self, name: str) -> commands.Row:
        row = await self._reader.read(commands.get, calls.current().organization, names.command_of(name))
        if row is None:
            raise errors.NotFound(
                f"there is no command {names.command_of(name)} in your organization: see `lading commands ls`"
            )
        return row

    async def ListCommands(self, request: commands_pb2.ListCommandsRequest, context: Any) -> Any:
        size = paging.size(request.page_size)
        before: Any = paging.key("commands", request.page_token, int, str)
        agent, container = names.container_of(request.container)
        rows = await self._reader.read(
            commands.list_newest,
            calls.current().organization,
            before=before,
            limit=size + 1,
            agent=agent or names.agent_of(request.agent),
            container=container,
            states=list(request.states),
        )
        page = rows[:size]
        return commands_pb2.ListCommandsResponse(
            commands=[command_of(row) for row in page],
            next_page_token=paging.token("commands", page[-1].created_at, page[-1].id) if len(rows) > size else "",
        )

    async def WatchCommand(
        self, request: commands_pb2.WatchCommandRequest, context: Any
    ) -> AsyncIterator[commands_pb2.Command]:
        organization = calls.current().organization
        changed = self._sessions.watch(organization)
        try:
            state = None
            while True:
                changed.clear()
                row = await self._find(request.name)
                if row.state != state:
                    state = row.state
                    yield command_of(row)
                if row.settled_at is not None:
                    return
                try:
                    async with asyncio.timeout(POLL_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            self._sessions.unwatch(organization, changed)

    async def CancelCommand(self, request: commands_pb2.CancelCommandRequest, context: Any) -> Any:
        call = calls.current()
        await call.claim()
        return command_of(await self._dispatcher.cancel(call, names.command_of(request.name)))

    async def ResolveCommand(self, request: commands_pb2.ResolveCommandRequest, context: Any) -> Any:
        call, state = calls.current(), State(request.state)
        if state not in RESOLUTIONS:
            sentence = "must be SUCCEEDED, FAILED or CANCELLED"
            raise errors.InvalidArgument(f"state: {sentence}", violations={"state": sentence})
        settled: list[commands.Row] = []

        def apply(transaction: Transaction) -> commands_pb2.Command:
            row = record_resolution(transaction, call, names.command_of(request.name), state)
            settled[:] = [row]
            call.agent = row.agent
            call.diff = [{"op": "replace", "path": "/state", "value": state.name, "was": State.UNKNOWN.name}]
            return command_of(row)

        return Change(apply, then=lambda: self._dispatcher.announce(settled[0]))
