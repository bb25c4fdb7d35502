"""One command of every verb on a real engine: what it acts on, how it is asked for, and what the engine says it did."""

import asyncio
import json
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from lading.v1 import commands_pb2, containers_pb2, containers_pb2_grpc
from tests.engine import Engine

VERBS = ("create", "start", "stop", "restart", "kill", "pause", "unpause", "remove", "pull", "exec")
# The engine's event that is the verb's effect, where it is called otherwise.
EFFECTS = {"remove": "destroy", "exec": "exec_start"}
RUNNING = {"stop", "restart", "kill", "pause", "unpause", "exec"}
TIMEOUT_SECONDS = 90.0
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)


@dataclass(frozen=True)
class Answer:
    """What a caller was told: the code, and the command that it is about, where the answer names one."""

    code: grpc.StatusCode
    command: str = ""


@dataclass
class Asked:
    """One command and all that its caller was told, call by call: it calls again, with the same request id, while an
    answer names no command."""

    verb: str
    answers: list[Answer] = field(default_factory=list)
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def command(self) -> str:
        """Its id, once an answer said so."""
        return next((answer.command for answer in self.answers if answer.command), "")


class Scene:
    """Containers of one engine, one for each verb, each in the state from which the verb has an effect."""

    def __init__(self, engine: Engine, registry: str) -> None:
        self.engine = engine
        self.token = uuid.uuid4().hex[:8]
        self.image = f"{registry}/{self.token}:1"
        self.began_ns = 0

    def container(self, verb: str) -> str:
        return f"{verb}-{self.token}" if verb != "pull" else ""

    def prepare(self) -> None:
        """Make the containers, by the engine's own API."""
        body = json.dumps(
            {"Image": self.engine.image, "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": "none"}}
        ).encode()
        for verb in VERBS:
            name = self.container(verb)
            if verb in ("create", "pull"):
                continue
            self.engine.request("POST", f"/containers/create?name={name}", body, kind="application/json")
            if verb in RUNNING:
                self.engine.request("POST", f"/containers/{name}/start")
            if verb == "unpause":
                self.engine.request("POST", f"/containers/{name}/pause")
        self.began_ns = time.time_ns()

    def clear(self) -> None:
        """Remove them."""
        wanted = urllib.parse.quote(json.dumps({"name": [self.token]}))
        for found in json.loads(self.engine.request("GET", f"/containers/json?all=1&filters={wanted}")):
            self.engine.request("DELETE", f"/containers/{found['Id']}?force=1")

    def effects(self) -> dict[str, list[int]]:
        """By verb, when it had its effect since `prepare`, in microseconds since 1970: by the engine's own events."""
        query = f"since={_seconds(self.began_ns)}&until={_seconds(time.time_ns())}"
        found: dict[str, list[int]] = {verb: [] for verb in VERBS}
        for line in self.engine.request("GET", f"/events?{query}").splitlines():
            event = json.loads(line)
            actor = event.get("Actor") or {}
            name = (actor.get("Attributes") or {}).get("name", "")
            action = event["Action"].partition(":")[0]
            for verb in VERBS:
                mine = actor.get("ID") == self.image if verb == "pull" else name == self.container(verb)
                if mine and action == EFFECTS.get(verb, verb):
                    found[verb].append(event["timeNano"] // 1000)
        return found

    async def ask(self, channel: grpc.aio.Channel, metadata: Any, agent: str, asked: Asked) -> None:
        """Have it done, and note the answers."""
        async with asyncio.timeout(2 * TIMEOUT_SECONDS):
            while not asked.command:
                asked.answers.append(await self._call(channel, metadata, agent, asked))
                if not asked.command:
                    assert asked.answers[-1].code in LOST, asked
                    await asyncio.sleep(0.2)

    async def _call(self, channel: grpc.aio.Channel, metadata: Any, agent: str, asked: Asked) -> Answer:
        stub: Any = containers_pb2_grpc.ContainersStub(channel)
        name = f"agents/{agent}/containers/{self.container(asked.verb)}"
        how: dict[str, Any] = {"request_id": asked.request_id, "reason": "fault suite"}
        options = {"metadata": metadata, "timeout": TIMEOUT_SECONDS, "wait_for_ready": True}
        try:
            if asked.verb == "exec":
                return await self._exec(stub, name, how, options)
            if asked.verb == "pull":
                request: Any = containers_pb2.PullImageRequest(agent=f"agents/{agent}", image=self.image, **how)
                return Answer(grpc.StatusCode.OK, (await stub.PullImage(request, **options)).name)
            if asked.verb == "create":
                how["spec"] = commands_pb2.ContainerSpec(image=self.engine.image, command=["true"], network="none")
            if asked.verb in ("stop", "restart"):
                how["grace"] = Duration()
            title = f"{asked.verb.capitalize()}Container"
            request = getattr(containers_pb2, f"{title}Request")(name=name, **how)
            return Answer(grpc.StatusCode.OK, (await getattr(stub, title)(request, **options)).name)
        except grpc.aio.AioRpcError as error:
            return Answer(error.code(), command_in(error))

    async def _exec(self, stub: Any, name: str, how: dict[str, Any], options: dict[str, Any]) -> Answer:
        """As a caller with nothing to send: its command is named by the first answer."""
        spec = commands_pb2.ExecSpec(command=["true"])
        start = containers_pb2.ExecStart(name=name, spec=spec, **how)
        command = ""
        call = stub.ExecContainer(**options)
        try:
            await call.write(containers_pb2.ExecContainerRequest(start=start))
            while (answer := await call.read()) is not grpc.aio.EOF:
                command = answer.command or command
            return Answer(await call.code(), command)
        except grpc.aio.AioRpcError as error:
            return Answer(error.code(), command_in(error) or command)
        except asyncio.InvalidStateError:  # it ended before the first message left
            return Answer(await call.code(), command)


def command_in(error: grpc.aio.AioRpcError) -> str:
    """The command that an error names, or nothing."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                info = ErrorInfo()
                if detail.Unpack(info):
                    return str(info.metadata.get("command", ""))
    return ""


def _seconds(at_ns: int) -> str:
    return f"{at_ns // 1_000_000_000}.{at_ns % 1_000_000_000:09d}"
