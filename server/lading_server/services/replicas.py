"""What the processes of one server do for each other; served on a private address."""

from typing import Any

from grpc.aio import EOF

from lading.v1 import agent_link_pb2, replicas_pb2, replicas_pb2_grpc
from lading_server import call as calls
from lading_server import errors
from lading_server.relay import Relays
from lading_server.services import bulk
from lading_server.sessions import Sessions


class Replicas(replicas_pb2_grpc.ReplicasServicer):
    """See protos/lading/v1/replicas.proto."""

    def __init__(self, sessions: Sessions, relays: Relays) -> None:
        self._sessions, self._relays = sessions, relays

    async def OpenLog(self, request: replicas_pb2.OpenLogRequest, context: Any) -> Any:
        session = self._sessions.get(request.organization, request.agent)
        if session is None or session.failure is not None:
            raise errors.NotFound(f"agent {request.agent} has no session here")
        await session.post(agent_link_pb2.ConnectResponse(open_bulk=request.open))
        return replicas_pb2.OpenLogResponse()

    async def Relay(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        start, first = await context.read(), await context.read()
        if EOF in (start, first) or start.WhichOneof("frame") != "start" or first.WhichOneof("frame") != "up":
            raise errors.InvalidArgument("start, then up, must be the first messages")
        organization, agent = start.start.organization, start.start.agent
        call = calls.current()
        call.targets, call.agent = (("agent", agent),), agent
        relay = self._relays.find(first.up.session, organization, agent)
        if relay is None:
            raise errors.NotFound("the session has no reader here")
        call.details["session"], call.details["reader"] = first.up.session, relay.parent

        async def read() -> Any:
            message = await context.read()
            return message if message is EOF else message.up

        async def write(message: agent_link_pb2.BulkResponse) -> None:
            await context.write(replicas_pb2.RelayResponse(down=message))

        await bulk.fill(relay, first.up, read, write)
