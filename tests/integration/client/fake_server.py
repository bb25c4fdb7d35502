"""A hand-written server for the client's tests: real gRPC, answers that a test can arrange."""

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

from lading.v1 import (
    access_pb2,
    access_pb2_grpc,
    agents_pb2,
    agents_pb2_grpc,
    audit_log_pb2,
    audit_log_pb2_grpc,
    commands_pb2,
    commands_pb2_grpc,
    containers_pb2,
    containers_pb2_grpc,
)

VERBS = {
    "StartContainer": (commands_pb2.VERB_START, "running"),
    "StopContainer": (commands_pb2.VERB_STOP, "exited"),
    "RestartContainer": (commands_pb2.VERB_RESTART, "running"),
    "KillContainer": (commands_pb2.VERB_KILL, "exited"),
    "PauseContainer": (commands_pb2.VERB_PAUSE, "paused"),
    "UnpauseContainer": (commands_pb2.VERB_UNPAUSE, "running"),
    "RemoveContainer": (commands_pb2.VERB_REMOVE, ""),
    "CreateContainer": (commands_pb2.VERB_CREATE, "created"),
    "PullImage": (commands_pb2.VERB_PULL, ""),
}


@dataclass
class Fleet:
    """What the fake server knows, and what it was asked."""

    containers: dict[str, containers_pb2.Container] = field(default_factory=dict)
    agents: list[agents_pb2.Agent] = field(default_factory=list)
    commands: dict[str, commands_pb2.Command] = field(default_factory=dict)
    events: list[audit_log_pb2.Event] = field(default_factory=list)
    logs: list[containers_pb2.StreamContainerLogsResponse] = field(default_factory=list)
    calls: list[tuple[str, Any, dict[str, str]]] = field(default_factory=list)
    failures: dict[str, list[Callable[[grpc.ServicerContext], NoReturn]]] = field(default_factory=dict)
    begun: threading.Event = field(default_factory=threading.Event)
    hang: threading.Event | None = None

    def add(self, name: str, state: str = "running", **more: Any) -> None:
        full = "agents/{}/containers/{}".format(*name.split("/"))
        self.containers[full] = containers_pb2.Container(name=full, state=state, current=True, **more)

    def fail(self, method: str, code: int, message: str, *details: Any, times: int = 1) -> None:
        """Answer the next calls of a method with this status."""

        def abort(context: grpc.ServicerContext) -> NoReturn:
            refuse(context, code, message, *details)

        self.failures.setdefault(method, []).extend([abort] * times)

    def asked(self, method: str) -> list[Any]:
        return [request for name, request, _ in self.calls if name == method]


@dataclass(frozen=True)
class Ending(grpc.Status):
    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def refuse(context: grpc.ServicerContext, code: int, message: str, *details: Any) -> NoReturn:
    """End the call as Lading's server does: with google.rpc.Status, and the id of the operation."""
    status = status_pb2.Status(code=code, message=message, details=[pack(one) for one in details])
    metadata = (("grpc-status-details-bin", status.SerializeToString()), ("lading-operation", "op-1"))
    name = next(one for one in grpc.StatusCode if one.value[0] == code)
    context.abort_with_status(Ending(name, message, metadata))
    raise AssertionError


def pack(detail: Any) -> AnyMessage:
    box = AnyMessage()
    box.Pack(detail)
    return box


def error_info(reason: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain="lading", metadata=metadata)


def bad_request(field: str, description: str) -> error_details_pb2.BadRequest:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    return error_details_pb2.BadRequest(field_violations=[violation])


def retry_info(seconds: int) -> error_details_pb2.RetryInfo:
    return error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds))


class Handlers:
    """Every method by its name."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def take(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        metadata = {str(key): str(value) for key, value in context.invocation_metadata()}
        self.fleet.calls.append((method, request, metadata))
        context.set_trailing_metadata((("lading-operation", "op-1"),))
        if self.fleet.failures.get(method):
            self.fleet.failures[method].pop(0)(context)

    def lifecycle(self, method: str, request: Any, context: grpc.ServicerContext) -> commands_pb2.Command:
        verb, state = VERBS[method]
        name = f"commands/{uuid.uuid4()}"
        target = getattr(request, "name", "")
        agent = request.agent if method == "PullImage" else "/".join(target.split("/")[:2])
        command = commands_pb2.Command(
            name=name, agent=agent, container=target, verb=verb, reason=request.reason, request_id=request.request_id
        )
        command.state = commands_pb2.COMMAND_STATE_PENDING
        self.fleet.commands[name] = command
        if self.fleet.hang:
            self.fleet.begun.set()
            self.fleet.hang.wait(30)
        self.take(method, request, context)
        if request.detach:
            return command
        if method not in ("CreateContainer", "PullImage"):
            container = self.fleet.containers.get(target)
            if container is None:
                self.abort(context, code_pb2.NOT_FOUND, f"no such container: {target}", name)
            if container.state == state and method != "RestartContainer":
                self.abort(context, code_pb2.FAILED_PRECONDITION, f"container is {state} already", name)
            container.state = state
        command.state = commands_pb2.COMMAND_STATE_SUCCEEDED
        return command

    def abort(self, context: grpc.ServicerContext, code: int, message: str, command: str) -> NoReturn:
        refuse(context, code, message, error_info("REFUSED_BY_RUNTIME", command=command))

    def ListContainers(self, request: Any, context: Any) -> containers_pb2.ListContainersResponse:
        found = [
            container
            for name, container in sorted(self.fleet.containers.items())
            if (not request.container or name.endswith(f"/{request.container}"))
            and (not request.agent or name.startswith(f"{request.agent}/"))
            and (not request.states or container.state in request.states)
            and all(container.labels.get(key) == value for key, value in request.labels.items())
        ]
        at = int(request.page_token or 0)
        more = str(at + 2) if at + 2 < len(found) else ""
        return containers_pb2.ListContainersResponse(containers=found[at : at + 2], next_page_token=more)

    def GetContainer(self, request: Any, context: Any) -> containers_pb2.Container:
        if request.name not in self.fleet.containers:
            self.abort(context, code_pb2.NOT_FOUND, "no such container", "")
        return self.fleet.containers[request.name]

    def StreamContainerLogs(self, request: Any, context: Any) -> Iterator[Any]:
        yield from self.fleet.logs

    def ListAgents(self, request: Any, context: Any) -> agents_pb2.ListAgentsResponse:
        return agents_pb2.ListAgentsResponse(agents=self.fleet.agents)

    def DrainAgent(self, request: Any, context: Any) -> agents_pb2.Agent:
        return agents_pb2.Agent(name=request.name, drained=not request.resume)

    def GetCommand(self, request: Any, context: Any) -> commands_pb2.Command:
        return self.fleet.commands[request.name]

    def ResolveCommand(self, request: Any, context: Any) -> commands_pb2.Command:
        command = self.fleet.commands[request.name]
        command.state, command.evidence = request.state, "operator"
        return command

    def ListCommands(self, request: Any, context: Any) -> commands_pb2.ListCommandsResponse:
        return commands_pb2.ListCommandsResponse(commands=list(self.fleet.commands.values()))

    def WatchCommand(self, request: Any, context: Any) -> Iterator[commands_pb2.Command]:
        command = self.fleet.commands[request.name]
        yield command
        if self.fleet.hang:
            self.fleet.begun.set()
            self.fleet.hang.wait(30)

    def ListEvents(self, request: Any, context: Any) -> audit_log_pb2.ListEventsResponse:
        events = list(reversed(self.fleet.events))
        at = int(request.page_token or 0)
        size = request.page_size or 100
        more = str(at + size) if at + size < len(events) else ""
        return audit_log_pb2.ListEventsResponse(events=events[at : at + size], next_page_token=more)

    def GetEvent(self, request: Any, context: Any) -> audit_log_pb2.Event:
        found = next((event for event in self.fleet.events if event.id == request.id), None)
        if found is None:
            self.abort(context, code_pb2.NOT_FOUND, "no such event", "")
        return found

    def TailEvents(self, request: Any, context: Any) -> Iterator[audit_log_pb2.TailEventsResponse]:
        at = request.from_index if request.HasField("from_index") else 0
        for event in self.fleet.events[at : at + 2]:
            yield audit_log_pb2.TailEventsResponse(events=[event], next_index=event.index + 1)
        context.abort(grpc.StatusCode.UNAVAILABLE, "the server goes away")

    def SummarizeEvents(self, request: Any, context: Any) -> audit_log_pb2.SummarizeEventsResponse:
        values = [
            audit_log_pb2.FacetValue(value="SUCCESS", total=3),
            audit_log_pb2.FacetValue(value="FAILURE", total=1),
        ]
        return audit_log_pb2.SummarizeEventsResponse(
            total=4,
            failed=1,
            buckets=[audit_log_pb2.Bucket(total=total) for total in (0, 1, 3)],
            facets=[audit_log_pb2.Facet(field=audit_log_pb2.FIELD_OUTCOME, values=values)],
        )

    def RecordEvents(self, request: Any, context: Any) -> audit_log_pb2.RecordEventsResponse:
        return audit_log_pb2.RecordEventsResponse(indexes=range(7, 7 + len(request.events)))

    def ExportEvents(self, request: Any, context: Any) -> Iterator[audit_log_pb2.ExportEventsResponse]:
        for event in self.fleet.events:
            yield audit_log_pb2.ExportEventsResponse(events=[event])
        if self.fleet.failures.get("ExportEnd"):
            self.fleet.failures["ExportEnd"].pop(0)(context)

    def WhoAmI(self, request: Any, context: Any) -> access_pb2.WhoAmIResponse:
        actor = audit_log_pb2.Actor(type=audit_log_pb2.ACTOR_TYPE_USER, id="ada", email="ada@acme.example")
        return access_pb2.WhoAmIResponse(actor=actor, organization="acme", roles=[access_pb2.ROLE_ADMIN])

    def IssueToken(self, request: Any, context: Any) -> access_pb2.IssueTokenResponse:
        token = access_pb2.Token(id="t-1", subject=request.subject, type=request.type)
        return access_pb2.IssueTokenResponse(token=token, secret="secret.of.token")

    def AssignRole(self, request: Any, context: Any) -> access_pb2.RoleBinding:
        return access_pb2.RoleBinding(subject=request.subject, role=request.role)


def servicer(kind: type, handlers: Handlers) -> Any:
    """An instance of a generated servicer whose methods are those of `handlers`; the others stay UNIMPLEMENTED."""

    def bind(name: str) -> Callable[..., Any]:
        if name in VERBS:
            return lambda self, request, context: handlers.lifecycle(name, request, context)
        answer = getattr(handlers, name)
        streaming = name.startswith(("Stream", "Watch", "Tail", "Export"))

        def unary(self: Any, request: Any, context: Any) -> Any:
            handlers.take(name, request, context)
            return answer(request, context)

        def stream(self: Any, request: Any, context: Any) -> Any:
            handlers.take(name, request, context)
            yield from answer(request, context)

        return stream if streaming else unary

    known = [name for name in vars(kind) if name in VERBS or hasattr(handlers, name)]
    return type(f"Fake{kind.__name__}", (kind,), {name: bind(name) for name in known})()


def serve(fleet: Fleet, credentials: grpc.ServerCredentials | None = None) -> tuple[grpc.Server, str]:
    """A server on a free port of loopback, and its address."""
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    handlers = Handlers(fleet)
    containers_pb2_grpc.add_ContainersServicer_to_server(
        servicer(containers_pb2_grpc.ContainersServicer, handlers), server
    )
    commands_pb2_grpc.add_CommandsServicer_to_server(servicer(commands_pb2_grpc.CommandsServicer, handlers), server)
    agents_pb2_grpc.add_AgentsServicer_to_server(servicer(agents_pb2_grpc.AgentsServicer, handlers), server)
    audit_log_pb2_grpc.add_AuditLogServicer_to_server(servicer(audit_log_pb2_grpc.AuditLogServicer, handlers), server)
    access_pb2_grpc.add_AccessServicer_to_server(servicer(access_pb2_grpc.AccessServicer, handlers), server)
    if credentials:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"
