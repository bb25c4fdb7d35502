"""Whatever is sent: the right status code, a message that says what to do, an event, and nobody else disturbed."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import jwt
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError

from lading.v1 import access_pb2, agents_pb2, audit_log_pb2, commands_pb2, containers_pb2
from lading_server import tokens
from lading_server.event import Outcome
from lading_server.interceptors import flood
from lading_server.settings import Settings
from tests.integration.server.fake_agent import connected
from tests.integration.server.raw_http2 import Connection
from tests.integration.server.running import Metadata, Running, bearer, detail, running, sign

WEB = "agents/dock-1/containers/web"
UUID = "01990000-0000-7000-8000-000000000001"


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Running]:
    async with running(settings) as made:
        yield made


@pytest.fixture
async def server_anywhere(any_settings: Settings) -> AsyncIterator[Running]:
    async with running(any_settings) as made:
        yield made


async def refused(call: Any) -> AioRpcError:
    with pytest.raises(AioRpcError) as failure:
        await call
    assert "Traceback" not in (failure.value.details() or "")
    return failure.value


def operation_of(failure: AioRpcError) -> str:
    trailing: dict[str, Any] = dict(failure.trailing_metadata() or ())
    operation: str = trailing["lading-operation"]
    return operation


# -- who calls


def forged(settings: Settings, **changes: Any) -> dict[str, Any]:
    at = int(time.time())
    good = {"iss": "lading", "aud": "lading", "sub": "ada", "org": "acme", "iat": at, "exp": at + 60, "jti": "t1"}
    return good | changes


def unsigned(settings: Settings) -> str:
    parts = ({"alg": "none", "typ": "JWT"}, forged(settings))
    return ".".join(base64.urlsafe_b64encode(json.dumps(one).encode()).decode().rstrip("=") for one in parts) + "."


def signed_by(settings: Settings, **changes: Any) -> str:
    return jwt.encode(forged(settings, **changes), tokens.load_key(settings.data), algorithm="EdDSA")


CREDENTIALS: dict[str, Any] = {
    "none": lambda settings: (),
    "not a token": lambda settings: bearer("nonsense"),
    "another scheme": lambda settings: (("authorization", "Basic YWRhOmFkYQ=="),),
    "two of them": lambda settings: bearer(sign(settings)) * 2,
    "alg none": lambda settings: bearer(unsigned(settings)),
    "HS256": lambda settings: bearer(jwt.encode(forged(settings), "x" * 32, algorithm="HS256")),
    "changed": lambda settings: bearer(sign(settings)[:-6] + "AAAAAA"),
    "expired": lambda settings: bearer(signed_by(settings, exp=int(time.time()) - 60)),
    "for another audience": lambda settings: bearer(signed_by(settings, aud="other")),
    "of another issuer": lambda settings: bearer(signed_by(settings, iss="https://evil.example")),
    "of an unknown organization": lambda settings: bearer(sign(settings, organization="umbrella")),
    "text that UTF-8 cannot say": lambda settings: bearer(signed_by(settings, email="\ud800")),
}


@pytest.mark.parametrize("credentials", CREDENTIALS.values(), ids=CREDENTIALS)
async def test_call_without_a_valid_token_is_refused_and_recorded(server: Running, credentials: Any) -> None:
    metadata: Metadata = credentials(server.settings)
    failure = await refused(server.stubs.agents.ListAgents(agents_pb2.ListAgentsRequest(), metadata=metadata))
    assert failure.code() is StatusCode.UNAUTHENTICATED
    (event,) = server.events("system", operation=operation_of(failure))
    assert (event.actor, event.action, event.outcome) == ("", "agent.list", Outcome.DENIED)
    assert event.error == failure.details()
    for _, value in metadata:
        assert value.rpartition(" ")[2] not in str(event), "a refused token may still be a secret"


async def test_caller_without_the_role_is_told_which_permission_is_missing(server: Running) -> None:
    eve = bearer(sign(server.settings, "eve"))
    start = containers_pb2.StartContainerRequest(name=WEB)
    failure = await refused(server.stubs.containers.StartContainer(start, metadata=eve))
    assert failure.code() is StatusCode.PERMISSION_DENIED
    assert "container.operate" in str(failure.details())
    (event,) = server.events(operation=operation_of(failure))
    assert (event.actor, event.target, event.outcome) == ("eve", "dock-1/web", Outcome.DENIED)


async def test_thousand_unauthenticated_calls_at_once_are_all_counted_and_disturb_nobody(server: Running) -> None:
    count = 1000
    channels = [server.channel() for _ in range(8)]
    path = "/lading.v1.Agents/ListAgents"
    burst = [channels[number % 8].unary_unary(path)(b"", timeout=30) for number in range(count)]
    codes = asyncio.gather(*(call.code() for call in burst))
    served, began = 0, time.monotonic()
    while not codes.done():
        await server.stubs.access.WhoAmI(access_pb2.WhoAmIRequest(), metadata=server.me, timeout=20)
        served += 1
    assert served > 0
    assert set(await codes) == {StatusCode.UNAUTHENTICATED}
    refusals = server.events("system", action="agent.list")
    assert sum(event.count for event in refusals) == count
    took = time.monotonic() - began
    assert len(refusals) < flood.BURST + 100 + took * (flood.PER_SECOND + 1 / flood.WINDOW_SECONDS)
    assert len(server.events(action="access.whoami")) == served


async def test_refused_calls_are_counted_also_when_their_callers_leave_and_the_server_stops(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flood, "WINDOW_SECONDS", 1.0)
    monkeypatch.setattr(flood, "PER_SECOND", 0.0)
    left, close = asyncio.Event(), flood.Flood._close

    async def close_then(*args: Any) -> None:
        await left.wait()
        await close(*args)

    monkeypatch.setattr(flood.Flood, "_close", close_then)
    channel = server.channel()
    path = "/lading.v1.Agents/ListAgents"
    burst = [channel.unary_unary(path)(b"", timeout=30) for _ in range(flood.BURST)]
    assert {await call.code() for call in burst} == {StatusCode.UNAUTHENTICATED}
    more = [channel.unary_unary(path)(b"", timeout=30) for _ in range(20)]
    waiting = server.server._audit._flood._open
    async with asyncio.timeout(30):
        while sum(len(events) for events, _ in waiting.values()) < 20:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    for call in more:
        call.cancel()
    left.set()  # the window ends a second later: the server stops meanwhile
    await server.stop(0)
    counted = [event.count for event in server.events("system", action="agent.list")]
    assert counted == [1] * flood.BURST + [20]


async def test_secret_in_the_metadata_is_recorded_nowhere(server: Running) -> None:
    secrets = (("x-api-key", "hunter2-a"), ("cookie", "session=hunter2-b"), ("x-blob-bin", b"hunter2-c"))
    await server.stubs.access.WhoAmI(access_pb2.WhoAmIRequest(), metadata=(*server.me, *secrets))
    await refused(server.stubs.access.WhoAmI(access_pb2.WhoAmIRequest(), metadata=secrets))
    recorded = str(server.events()) + str(server.events("system"))
    assert "hunter2" not in recorded
    assert server.me[0][1].removeprefix("Bearer ") not in recorded


async def test_what_a_caller_says_of_itself_is_kept_apart_and_cut_short(server: Running) -> None:
    metadata = (
        *server.me,
        ("x-request-id", "r" * 10_000),
        ("x-forwarded-for", "10.6.6.6"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    )
    await server.stubs.access.WhoAmI(access_pb2.WhoAmIRequest(), metadata=metadata)
    (event,) = server.events(action="access.whoami")
    assert event.request_id == "r" * 128
    assert event.details["claimed_address"] == "10.6.6.6"
    assert event.details["peer"].startswith("ipv4:127.0.0.1:")
    assert event.details["trace_id"] == "0af7651916cd43dd8448eb211c80319c"


# -- what is asked

NAMES = {
    "empty": "",
    "slashes": "agents/a/b/containers/c",
    "upwards": "agents/../containers/../../etc/passwd",
    "NUL": "agents/dock-1/containers/we\0b",
    "10,000 characters": "agents/dock-1/containers/" + "x" * 10_000,
    "SQL": "agents/dock-1/containers/web'; DROP TABLE events; --",
    "line break": "agents/dock-1/containers/web\n",
    "colours": "agents/dock-1/containers/\x1b[31mweb",
    "another collection": "commands/" + UUID,
    "letters of another script": "agents/dock-1/containers/wеb",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
async def test_improper_name_is_refused_by_its_field_and_recorded(server_anywhere: Running, name: str) -> None:
    server = server_anywhere
    request = containers_pb2.StopContainerRequest(name=name, reason="why not")
    failure = await refused(server.stubs.containers.StopContainer(request, metadata=server.me))
    assert failure.code() is StatusCode.INVALID_ARGUMENT
    (violation,) = detail(failure, error_details_pb2.BadRequest).field_violations
    assert violation.field == "name"
    assert len(failure.details() or "") < 500
    (event,) = server.events(operation=operation_of(failure))
    assert (event.code, event.outcome) == (StatusCode.INVALID_ARGUMENT.value[0], Outcome.FAILURE)
    assert len(event.target) <= 512
    assert server.rows("SELECT count(*) FROM commands") == [(0,)]


def paged(server: Running) -> dict[str, tuple[Any, Any]]:
    stubs = server.stubs
    return {
        "ListContainers": (stubs.containers.ListContainers, containers_pb2.ListContainersRequest),
        "ListCommands": (stubs.commands.ListCommands, commands_pb2.ListCommandsRequest),
        "ListAgents": (stubs.agents.ListAgents, agents_pb2.ListAgentsRequest),
        "ListEvents": (stubs.audit_log.ListEvents, audit_log_pb2.ListEventsRequest),
        "ListRoleBindings": (stubs.access.ListRoleBindings, access_pb2.ListRoleBindingsRequest),
        "ListTokens": (stubs.access.ListTokens, access_pb2.ListTokensRequest),
    }


def token(*key: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


FORGED = [
    "x",
    "%%%",
    "'; DROP TABLE events; --",
    token(),
    token("containers"),
    token("containers", "a"),
    token("containers", 1, 2),
    token("containers", "\0", "\0"),
    token("commands", 10**30, "a"),
    token("commands", -1, "a"),
    token("agents", None),
    token("agents", {}),
    token("agents", True),
    token("events", "newest"),
    base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    base64.urlsafe_b64encode(b"[" * 900).decode(),
]


async def test_page_sizes_and_page_tokens_of_any_shape_are_answered(server_anywhere: Running) -> None:
    server = server_anywhere
    for name, (method, request) in paged(server).items():
        failure = await refused(method(request(page_size=-1), metadata=server.me))
        assert failure.code() is StatusCode.INVALID_ARGUMENT, name
        assert "page_size" in str(failure.details())
        await method(request(page_size=2**31 - 1), metadata=server.me)
        for page_token in FORGED:
            failure = await refused(method(request(page_token=page_token), metadata=server.me))
            assert failure.code() is StatusCode.INVALID_ARGUMENT, (name, page_token)
        failure = await refused(method(request(page_token="x" * 2000), metadata=server.me))
        assert failure.code() is StatusCode.INVALID_ARGUMENT


async def test_page_token_of_another_list_is_refused(server: Running) -> None:
    async with connected(server) as agent:
        await agent.report(*(f"web-{number}" for number in range(3)))
        listed = await server.stubs.containers.ListContainers(
            containers_pb2.ListContainersRequest(page_size=1), metadata=server.me
        )
        assert listed.next_page_token
        other = commands_pb2.ListCommandsRequest(page_token=listed.next_page_token)
        failure = await refused(server.stubs.commands.ListCommands(other, metadata=server.me))
        assert failure.code() is StatusCode.INVALID_ARGUMENT
        globex = bearer(sign(server.settings, organization="globex"))
        request = containers_pb2.ListContainersRequest(page_token=listed.next_page_token)
        assert not (await server.stubs.containers.ListContainers(request, metadata=globex)).containers


async def test_list_is_the_same_whatever_its_page_size(server: Running) -> None:
    async with connected(server) as agent:
        names = [f"web-{number:03}" for number in range(23)]
        await agent.report(*names)
        for size in (1, 7, 23, 500):
            found: list[str] = []
            page_token = ""
            while True:
                request = containers_pb2.ListContainersRequest(page_size=size, page_token=page_token)
                page = await server.stubs.containers.ListContainers(request, metadata=server.me)
                found += [one.name.rpartition("/")[2] for one in page.containers]
                page_token = page.next_page_token
                if not page_token:
                    break
            assert found == names


OUT_OF_RANGE = {
    "state that is none": ("commands", "ListCommands", commands_pb2.ListCommandsRequest(states=[100_000])),  # type: ignore[list-item]
    "state below zero": ("commands", "ListCommands", commands_pb2.ListCommandsRequest(states=[-1])),  # type: ignore[list-item]
    "role that is none": ("access", "AssignRole", access_pb2.AssignRoleRequest(subject="eve", role=99)),  # type: ignore[arg-type]
    "kind that is none": ("access", "IssueToken", access_pb2.IssueTokenRequest(subject="eve", type=99)),  # type: ignore[arg-type]
    "grace of centuries": (
        "containers",
        "StopContainer",
        containers_pb2.StopContainerRequest(name=WEB, grace=Duration(seconds=2**40)),
    ),
    "negative grace": (
        "containers",
        "StopContainer",
        containers_pb2.StopContainerRequest(name=WEB, grace=Duration(seconds=-1)),
    ),
    "time that is none": (
        "containers",
        "StartContainer",
        containers_pb2.StartContainerRequest(name=WEB, deliver_within=Duration(seconds=2**62)),
    ),
    "no time at all": (
        "containers",
        "StartContainer",
        containers_pb2.StartContainerRequest(name=WEB, execute_within=Duration()),
    ),
    "a year to execute": (
        "containers",
        "StartContainer",
        containers_pb2.StartContainerRequest(name=WEB, execute_within=Duration(seconds=365 * 86_400)),
    ),
    "reason of 10,000 characters": (
        "containers",
        "StartContainer",
        containers_pb2.StartContainerRequest(name=WEB, reason="x" * 10_000),
    ),
    "signal that is none": (
        "containers",
        "KillContainer",
        containers_pb2.KillContainerRequest(name=WEB, signal="; rm -rf /"),
    ),
    "event in the year 300,000": (
        "audit_log",
        "RecordEvents",
        audit_log_pb2.RecordEventsRequest(
            events=[audit_log_pb2.NewEvent(id=UUID, action="a.b", occurred_at=Timestamp(seconds=2**43))]
        ),
    ),
    "number that is none": (
        "audit_log",
        "RecordEvents",
        audit_log_pb2.RecordEventsRequest(
            events=[
                audit_log_pb2.NewEvent(
                    id=UUID, action="a.b", details=Struct(fields={"x": Value(number_value=float("nan"))})
                )
            ]
        ),
    ),
    "large request with a time that is none": (
        "audit_log",
        "RecordEvents",
        audit_log_pb2.RecordEventsRequest(
            events=[
                audit_log_pb2.NewEvent(
                    id=UUID,
                    action="a.b",
                    occurred_at=Timestamp(seconds=2**62),
                    details=Struct(fields={"x": Value(string_value="x" * 20_000)}),
                )
            ]
        ),
    ),
    "log since the end of time": (
        "audit_log",
        "ListEvents",
        audit_log_pb2.ListEventsRequest(filter=audit_log_pb2.EventFilter(since=Timestamp(seconds=2**60))),
    ),
}


@pytest.mark.parametrize(("service", "method", "request_"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
async def test_value_out_of_its_range_is_refused(
    server_anywhere: Running, service: str, method: str, request_: Any
) -> None:
    server = server_anywhere
    failure = await refused(getattr(getattr(server.stubs, service), method)(request_, metadata=server.me))
    assert failure.code() is StatusCode.INVALID_ARGUMENT
    assert failure.details()
    (event,) = server.events(operation=operation_of(failure))
    assert event.code == StatusCode.INVALID_ARGUMENT.value[0]


async def test_what_does_not_exist_is_not_found(server: Running) -> None:
    async with connected(server):
        stubs, me = server.stubs, server.me
        command = f"commands/{UUID}"
        calls = [
            stubs.containers.GetContainer(
                containers_pb2.GetContainerRequest(name="agents/dock-1/containers/none"), metadata=me
            ),
            stubs.containers.GetContainer(
                containers_pb2.GetContainerRequest(name="agents/none/containers/web"), metadata=me
            ),
            stubs.agents.GetAgent(agents_pb2.GetAgentRequest(name="agents/none"), metadata=me),
            stubs.agents.DrainAgent(agents_pb2.DrainAgentRequest(name="agents/none"), metadata=me),
            stubs.agents.BanAgent(agents_pb2.BanAgentRequest(name="agents/none"), metadata=me),
            stubs.commands.GetCommand(commands_pb2.GetCommandRequest(name=command), metadata=me),
            stubs.commands.CancelCommand(commands_pb2.CancelCommandRequest(name=command), metadata=me),
            stubs.audit_log.GetEvent(audit_log_pb2.GetEventRequest(id=UUID), metadata=me),
        ]
        for call in calls:
            failure = await refused(call)
            assert failure.code() is StatusCode.NOT_FOUND
            assert len(server.events(operation=operation_of(failure))) == 1
        watch = stubs.commands.WatchCommand(commands_pb2.WatchCommandRequest(name=command), metadata=me)
        assert await watch.code() is StatusCode.NOT_FOUND


async def test_ids_of_another_organization_are_not_found(server: Running) -> None:
    async with connected(server) as agent:
        start = containers_pb2.StartContainerRequest(name=WEB, detach=True)
        command = (await server.stubs.containers.StartContainer(start, metadata=server.me)).name
        await agent.dispatched()
        event = server.events()[-1].id
        globex = bearer(sign(server.settings, organization="globex"))
        stubs = server.stubs
        for call in (
            stubs.commands.GetCommand(commands_pb2.GetCommandRequest(name=command), metadata=globex),
            stubs.commands.CancelCommand(commands_pb2.CancelCommandRequest(name=command), metadata=globex),
            stubs.audit_log.GetEvent(audit_log_pb2.GetEventRequest(id=event), metadata=globex),
        ):
            assert (await refused(call)).code() is StatusCode.NOT_FOUND
        commands = await stubs.commands.ListCommands(commands_pb2.ListCommandsRequest(), metadata=globex)
        assert not commands.commands
        listed = await stubs.audit_log.ListEvents(audit_log_pb2.ListEventsRequest(page_size=500), metadata=globex)
        assert {one.organization for one in listed.events} == {"globex"}


async def test_message_over_the_limit_is_refused_and_the_connection_goes_on(server: Running) -> None:
    channel = grpc.aio.insecure_channel(server.address, options=(("grpc.max_send_message_length", -1),))
    async with channel:
        call = channel.unary_unary("/lading.v1.Containers/GetContainer")
        failure = await refused(call(b"\x0a\x80\x80\x80\x04" + b"x" * 8 * 1024 * 1024, metadata=server.me))
        assert failure.code() is StatusCode.RESOURCE_EXHAUSTED
        assert "send less at a time" in str(failure.details())
        failure = await refused(call(b"\xff\xff", metadata=server.me))
        assert failure.code() is StatusCode.INVALID_ARGUMENT
        failure = await refused(channel.unary_unary("/lading.v1.Containers/Explode")(b"", metadata=server.me))
        assert failure.code() is StatusCode.UNIMPLEMENTED
        assert "version" in str(failure.details())
    assert [event.code for event in server.events(actor="ada")][-3:] == [8, 3, 12]


async def test_health_and_reflection_need_no_token_and_are_recorded(server: Running) -> None:
    channel = server.channel()
    assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"
    reflection = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")()
    await reflection.write(b"\x3a\x00")
    listed: Any = await reflection.read()
    assert b"lading.v1.Containers" in listed
    await reflection.done_writing()
    assert await reflection.code() is StatusCode.OK
    recorded = [event.action for event in server.events("system") if event.actor == ""]
    assert recorded == ["health.check", "reflection.read", "reflection.read"]


async def test_path_that_is_no_text_stops_nothing(server: Running) -> None:
    """With grpcio 1.84 and 1.85 it stops the whole server: this test keeps us from taking them."""
    async with Connection(int(server.address.rpartition(":")[2])) as connection:
        stream = await connection.begin(b"/lading.v1.Access/\xff\xfe")
        await connection.half_close(stream)
        assert (await connection.status(stream))[0] != StatusCode.OK.value[0]
    await server.stubs.access.WhoAmI(access_pb2.WhoAmIRequest(), metadata=server.me)
