"""Agents, for people and services."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from lading.v1 import agents_pb2, agents_pb2_grpc
from lading_server import call as calls
from lading_server import errors, names, paging
from lading_server.call import Change
from lading_server.clock import Clock, now
from lading_server.ledger.transaction import Transaction
from lading_server.services.resources import agent_of
from lading_server.sessions import Sessions
from lading_server.store import agents, commands, tiles
from lading_server.store.reader import Reader
from lading_server.store.wakeups import Topic

WATCH_SECONDS = 2.0
PAGE = 500


class Agents(agents_pb2_grpc.AgentsServicer):
    """See protos/lading/v1/agents.proto."""

    def __init__(
        self, reader: Reader, sessions: Sessions, clock: Clock = now, *, tell: Callable[[Topic], None]
    ) -> None:
        self._reader, self._sessions, self._clock, self._tell = reader, sessions, clock, tell

    async def ListAgents(self, request: agents_pb2.ListAgentsRequest, context: Any) -> Any:
        size = paging.size(request.page_size)
        key: Any = paging.key("agents", request.page_token, str)
        found, after = await self._list(key[0] if key else "", size, dict(request.labels))
        return agents_pb2.ListAgentsResponse(
            agents=found, next_page_token=paging.token("agents", after) if after else ""
        )

    async def _list(self, after: str, size: int, labels: dict[str, str]) -> tuple[list[agents_pb2.Agent], str]:
        """Agents after a name, and the name to go on after (empty at the end)."""
        organization = calls.current().organization
        containers = await self._reader.read(agents.count_containers, organization)
        in_flight = await self._reader.read(commands.count_in_flight, organization)
        found: list[agents_pb2.Agent] = []
        while True:
            rows = await self._reader.read(agents.list_by_name, organization, after, PAGE)
            for row in rows:
                agent = self._message(row, containers.get(row.name, (0, 0)), in_flight.get(row.name, 0))
                if labels.items() <= dict(agent.labels).items():
                    if len(found) == size:
                        return found, after
                    found.append(agent)
                after = row.name
            if len(rows) < PAGE:
                return found, ""

    def _message(self, row: agents.Row, containers: tuple[int, int], in_flight: int) -> agents_pb2.Agent:
        session = self._sessions.get(row.organization, row.name)
        return agent_of(row, self._clock(), session, containers=containers, in_flight=in_flight)

    async def GetAgent(self, request: agents_pb2.GetAgentRequest, context: Any) -> Any:
        organization, name = calls.current().organization, names.agent_of(request.name)
        row = await self._reader.read(agents.get, organization, name)
        if row is None:
            raise errors.NotFound(f"there is no agent {name} in your organization: see `lading agents ls`")
        containers = await self._reader.read(agents.count_containers, organization)
        in_flight = await self._reader.read(commands.count_in_flight, organization)
        message = self._message(row, containers.get(name, (0, 0)), in_flight.get(name, 0))
        message.witness_key = await self._reader.read(tiles.witness_key_of, organization, name)
        return message

    async def WatchAgents(
        self, request: agents_pb2.WatchAgentsRequest, context: Any
    ) -> AsyncIterator[agents_pb2.Agent]:
        organization = calls.current().organization
        calls.current().endless = True
        await context.send_initial_metadata(())  # it may be silent for long: grpc must not ask again by itself
        changed = self._sessions.watch(organization)
        try:
            shown: dict[str, agents_pb2.Agent] = {}
            while True:
                changed.clear()
                after = ""
                while True:
                    page, after = await self._list(after, PAGE, {})
                    for agent in page:
                        if shown.get(agent.name) != agent:
                            shown[agent.name] = agent
                            yield agent
                    if not after:
                        break
                try:
                    async with asyncio.timeout(WATCH_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            self._sessions.unwatch(organization, changed)

    async def DrainAgent(self, request: agents_pb2.DrainAgentRequest, context: Any) -> Any:
        return self._mark(names.agent_of(request.name), "drained", not request.resume)

    async def BanAgent(self, request: agents_pb2.BanAgentRequest, context: Any) -> Any:
        return self._mark(names.agent_of(request.name), "banned", not request.lift)

    def _mark(self, name: str, field: str, value: bool) -> Change[agents_pb2.Agent]:
        call = calls.current()

        def apply(transaction: Transaction) -> agents_pb2.Agent:
            row = agents.get(transaction.connection, call.organization, name)
            if row is None:
                raise errors.NotFound(f"there is no agent {name} in your organization: see `lading agents ls`")
            was = bool(getattr(row, field))
            call.diff = [{"op": "replace", "path": f"/{field}", "value": value, "was": was}] if was != value else []
            agents.mark(transaction.connection, call.organization, name, **{field: value})
            if field == "banned" and not value and row.quarantined:
                agents.forgive(transaction.connection, call.organization, name)
                call.diff = [*call.diff, {"op": "replace", "path": "/quarantined", "value": False, "was": True}]
            marked = agents.get(transaction.connection, call.organization, name)
            assert marked is not None
            return self._message(marked, (0, 0), 0)

        def end_session() -> None:
            session = self._sessions.get(call.organization, name)
            if session is not None:
                session.end(errors.PermissionDenied(f"agent {name} is banned"))
            self._tell(Topic.AGENTS)

        return Change(apply, then=end_session if field == "banned" and value else None)
