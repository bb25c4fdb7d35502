"""Containers: lifecycle calls become commands, lists come from what the agents report."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from lading.v1 import agent_link_pb2, commands_pb2, containers_pb2, containers_pb2_grpc
from lading_server import call as calls
from lading_server import errors, fingerprints, names, paging
from lading_server.clock import Clock, now
from lading_server.commands import State
from lading_server.dispatch import Dispatcher
from lading_server.errors import Code
from lading_server.orders import Order
from lading_server.services.execs import Execs
from lading_server.services.openings import Openings, piece_of
from lading_server.services.resources import command_of, container_of, microseconds, within
from lading_server.store import agents, containers
from lading_server.store.reader import Reader

DELIVER_SECONDS = 60
DELIVER_SECONDS_MAX = 30 * 86_400
EXECUTE_SECONDS = 600
EXECUTE_SECONDS_MAX = 86_400
ANSWER_EARLY_SECONDS = 0.3
"""So long before the caller's deadline it is told that the command goes on, and how it is called."""

WITHOUT = ("name", "agent", "request_id", "detach")
"""Fields that are not held against those of the first call of a `request_id`."""

VERBS = {
    "Create": commands_pb2.VERB_CREATE,
    "Start": commands_pb2.VERB_START,
    "Stop": commands_pb2.VERB_STOP,
    "Restart": commands_pb2.VERB_RESTART,
    "Kill": commands_pb2.VERB_KILL,
    "Pause": commands_pb2.VERB_PAUSE,
    "Unpause": commands_pb2.VERB_UNPAUSE,
    "Remove": commands_pb2.VERB_REMOVE,
}


class Containers(containers_pb2_grpc.ContainersServicer):
    """See protos/lading/v1/containers.proto."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        reader: Reader,
        openings: Openings,
        clock: Clock = now,
        *,
        record_exec_bytes: int = 0,
    ) -> None:
        self._dispatcher, self._reader, self._openings, self._clock = dispatcher, reader, openings, clock
        self._execs = Execs(dispatcher, openings, record_exec_bytes)

    async def ListContainers(self, request: containers_pb2.ListContainersRequest, context: Any) -> Any:
        size = paging.size(request.page_size)
        after: Any = paging.key("containers", request.page_token, str, str) or ("", "")
        rows = await self._reader.read(
            containers.list_by_name,
            calls.current().organization,
            after=after,
            limit=size + 1,
            agent=names.agent_of(request.agent),
            name=request.container,
            states=list(request.states),
            labels=dict(request.labels),
        )
        page = rows[:size]
        at = self._clock()
        return containers_pb2.ListContainersResponse(
            containers=[container_of(row, at) for row in page],
            next_page_token=paging.token("containers", page[-1].agent, page[-1].name) if len(rows) > size else "",
        )

    async def GetContainer(self, request: containers_pb2.GetContainerRequest, context: Any) -> Any:
        agent, name = names.container_of(request.name)
        return container_of(await self._find(agent, name), self._clock())

    async def _find(self, agent: str, name: str) -> containers.Row:
        organization = calls.current().organization
        row = await self._reader.read(containers.get, organization, agent, name)
        if row is None:
            if await self._reader.read(agents.get, organization, agent) is None:
                raise errors.NotFound(f"there is no agent {agent} in your organization: see `lading agents ls`")
            raise errors.NotFound(f"agent {agent} reports no container {name}: see `lading ps --agent {agent} -a`")
        return row

    async def CreateContainer(self, request: containers_pb2.CreateContainerRequest, context: Any) -> Any:
        return await self._change("Create", request, context, commands_pb2.Arguments(spec=request.spec))

    async def StartContainer(self, request: containers_pb2.StartContainerRequest, context: Any) -> Any:
        return await self._change("Start", request, context, commands_pb2.Arguments())

    async def StopContainer(self, request: containers_pb2.StopContainerRequest, context: Any) -> Any:
        return await self._change("Stop", request, context, grace_of(request))

    async def RestartContainer(self, request: containers_pb2.RestartContainerRequest, context: Any) -> Any:
        return await self._change("Restart", request, context, grace_of(request))

    async def KillContainer(self, request: containers_pb2.KillContainerRequest, context: Any) -> Any:
        return await self._change("Kill", request, context, commands_pb2.Arguments(signal=request.signal))

    async def PauseContainer(self, request: containers_pb2.PauseContainerRequest, context: Any) -> Any:
        return await self._change("Pause", request, context, commands_pb2.Arguments())

    async def UnpauseContainer(self, request: containers_pb2.UnpauseContainerRequest, context: Any) -> Any:
        return await self._change("Unpause", request, context, commands_pb2.Arguments())

    async def RemoveContainer(self, request: containers_pb2.RemoveContainerRequest, context: Any) -> Any:
        return await self._change("Remove", request, context, commands_pb2.Arguments(force=request.force))

    async def PullImage(self, request: containers_pb2.PullImageRequest, context: Any) -> Any:
        order = order_of(
            request,
            names.agent_of(request.agent),
            "",
            commands_pb2.VERB_PULL,
            "image.pull",
            commands_pb2.Arguments(image=request.image),
        )
        return await self._run(order, context)

    async def _change(self, verb: str, request: Any, context: Any, arguments: commands_pb2.Arguments) -> Any:
        agent, container = names.container_of(request.name)
        order = order_of(request, agent, container, VERBS[verb], f"container.{verb.lower()}", arguments)
        return await self._run(order, context)

    async def _run(self, order: Order, context: Any) -> commands_pb2.Command:
        """Record the command, wait for its end within the caller's deadline, and answer with what is true then."""
        call = calls.current()
        row = await self._dispatcher.create(call, order)
        if order.detach:
            return command_of(row)
        left = context.time_remaining()
        seconds = None if left is None else max(left - ANSWER_EARLY_SECONDS, left / 2)
        name = names.command_name(row.id)
        try:
            row = await self._dispatcher.wait(call.organization, row.id, seconds)
        except errors.Error as failure:  # of the read: it is done, whatever its caller is told to try again
            raise errors.StoreUnavailable(
                f"{name} is recorded and goes on; how it stands cannot be read now", metadata={"command": name}
            ) from failure
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"{name} did not end in time; it goes on: `lading commands wait {name.removeprefix('commands/')}`",
                metadata={"command": name},
            ) from None
        if row.state != State.SUCCEEDED:
            code = Code(row.code) if row.code else Code.UNKNOWN
            raise errors.CommandFailed(row.error or State(row.state).name, code=code, metadata={"command": name})
        return command_of(row)

    async def StreamContainerLogs(
        self, request: containers_pb2.StreamContainerLogsRequest, context: Any
    ) -> AsyncIterator[containers_pb2.StreamContainerLogsResponse]:
        call = calls.current()
        agent, name = names.container_of(request.name)
        await self._find(agent, name)
        call.endless = request.follow
        if call.endless:
            await context.send_initial_metadata(())  # it may be silent for long: grpc must not ask again by itself
        ask = agent_link_pb2.OpenBulk(
            session=call.operation,
            container=name,
            follow=request.follow,
            tail=request.tail,
            since=request.since if request.HasField("since") else None,
            timestamps=request.timestamps,
            after=request.after,
        )
        async with self._openings.log(call, agent, ask) as relay:
            while (piece := await relay.take()) is not None:
                yield containers_pb2.StreamContainerLogsResponse(**piece_of(piece))

    async def ExecContainer(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[containers_pb2.ExecContainerResponse]:
        async with contextlib.aclosing(self._execs.serve(context)) as answers:
            async for answer in answers:
                yield answer


def grace_of(request: Any) -> commands_pb2.Arguments:
    """The arguments of a stop; refuses a grace that no engine takes."""
    if not request.HasField("grace"):
        return commands_pb2.Arguments()
    if not 0 <= microseconds(request.grace) <= 3600 * 1_000_000:
        raise errors.InvalidArgument("grace: must be 0 to 3600 s", violations={"grace": "must be 0 to 3600 s"})
    return commands_pb2.Arguments(grace=request.grace)


def order_of(
    request: Any, agent: str, container: str, verb: int, action: str, arguments: commands_pb2.Arguments
) -> Order:
    """What a lifecycle request asks for. Raises InvalidArgument."""
    shown = arguments
    if arguments.spec.env:
        shown = commands_pb2.Arguments()
        shown.CopyFrom(arguments)
        for key in arguments.spec.env:
            shown.spec.env[key] = "[redacted]"
    return Order(
        agent=agent,
        container=container,
        verb=verb,
        action=action,
        arguments=arguments.SerializeToString(deterministic=True),
        arguments_shown=shown.SerializeToString(deterministic=True),
        precondition=request.precondition.SerializeToString(deterministic=True),
        deliver_within=within(request, "deliver_within", DELIVER_SECONDS, DELIVER_SECONDS_MAX),
        execute_within=within(request, "execute_within", EXECUTE_SECONDS, EXECUTE_SECONDS_MAX),
        reason=request.reason,
        request_id=request.request_id,
        detach=request.detach,
        fields=fingerprints.fields_of(request, without=WITHOUT) if request.request_id else {},
    )
