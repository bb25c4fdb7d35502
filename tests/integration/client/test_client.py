import pathlib
import socket
import subprocess
import threading
from itertools import islice

import grpc
import pytest
from google.rpc import code_pb2

from lading.v1 import access_pb2, audit_log_pb2, containers_pb2
from lading_client import AsyncClient, Client, errors
from lading_client.exec_session import AsyncExecSession
from lading_client.labels import CODES
from tests.integration.client.fake_server import Fleet, bad_request, error_info, retry_info, serve


def test_ten_lines_start_stop_record_and_list(fleet: Fleet, address: str) -> None:
    fleet.add("dock-1/web", "exited")
    with Client(address, token="t", source="test", correlation_id="corr-1") as lading:
        command = lading.start("dock-1/web", reason="release")
        assert command.container == "agents/dock-1/containers/web"
        lading.stop("dock-1/web", grace=3)
        assert [container.state for container in lading.list_containers()] == ["exited"]
        assert lading.record("task.update", ["task:42"], diff=[{"op": "add", "path": "/a", "value": 1}]) == 7
    (start,) = fleet.asked("StartContainer")
    assert start.reason == "release"
    (stop,) = fleet.asked("StopContainer")
    assert stop.grace.seconds == 3
    (recorded,) = fleet.asked("RecordEvents")
    assert recorded.events[0].diff[0]["path"] == "/a"


def test_each_call_carries_token_correlation_id_and_user_agent(fleet: Fleet, address: str) -> None:
    with Client(address, token="secret", source="cli", correlation_id="corr-1") as lading:
        lading.access.WhoAmI(access_pb2.WhoAmIRequest(), metadata=(("traceparent", "00-1-2-03"),))
    ((_, _, metadata),) = fleet.calls
    assert metadata["authorization"] == "Bearer secret"
    assert metadata["x-request-id"] == "corr-1"
    assert metadata["traceparent"] == "00-1-2-03"
    assert metadata["user-agent"].startswith("lading-cli/")


async def test_asyncio_does_the_same(fleet: Fleet, address: str) -> None:
    for name in ("dock-1/a", "dock-1/b", "dock-2/c"):
        fleet.add(name, "exited")
    async with AsyncClient(address, token="t") as lading:
        await lading.start("dock-1/a")
        states = [container.state async for container in lading.list_containers()]
        assert states == ["running", "exited", "exited"]
        assert await lading.record("project.create", [("project", "p")]) == 7
        with pytest.raises(errors.NotFound) as raised:
            await lading.stop("dock-9/none")
    assert raised.value.command.startswith("commands/")


async def test_asyncio_exec_fails_as_all_calls_do() -> None:
    async def converse(session: AsyncExecSession) -> None:
        async with session:
            await session.write(b"to nobody")
            async for _ in session:
                pass

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        async with AsyncClient(f"127.0.0.1:{silent.getsockname()[1]}") as lading:
            with pytest.raises(errors.Unavailable):
                await converse(lading.exec("dock-1/web", ["ls"]))


async def test_asyncio_tail_resumes_too(fleet: Fleet, address: str) -> None:
    fleet.events = [audit_log_pb2.Event(id=str(index), index=index) for index in range(5)]
    seen = []
    async with AsyncClient(address) as lading:
        async for event in lading.tail(from_index=0):
            seen.append(event.index)
            if len(seen) == 5:
                break
    assert seen == [0, 1, 2, 3, 4]


def test_lists_read_all_pages(fleet: Fleet, address: str) -> None:
    for number in range(5):
        fleet.add(f"dock-1/c{number}")
    with Client(address) as lading:
        assert len(list(lading.list_containers())) == 5
    assert len(fleet.asked("ListContainers")) == 3


@pytest.mark.parametrize("number", range(1, len(CODES)))
def test_each_code_becomes_its_error(fleet: Fleet, address: str, number: int) -> None:
    fleet.fail("StartContainer", number, "the server's words", times=4)
    with Client(address) as lading, pytest.raises(errors.LadingError) as raised:
        lading.start("dock-1/web")
    assert raised.value.code == CODES[number]
    assert type(raised.value) is errors.BY_CODE.get(CODES[number], errors.LadingError)
    assert str(raised.value) == "the server's words"
    assert raised.value.operation == "op-1"


def test_details_of_the_status_are_read(fleet: Fleet, address: str) -> None:
    details = (error_info("BUSY", agent="dock-1", command="commands/1"), bad_request("name", "too long"), retry_info(3))
    fleet.fail("StartContainer", code_pb2.RESOURCE_EXHAUSTED, "busy", *details)
    with Client(address) as lading, pytest.raises(errors.ResourceExhausted) as raised:
        lading.start("dock-1/web")
    error = raised.value
    assert (error.reason, error.metadata["agent"], error.command) == ("BUSY", "dock-1", "commands/1")
    assert error.retry_after == 3
    assert error.fields == (("name", "too long"),)


@pytest.mark.parametrize("code", [code_pb2.UNAVAILABLE, code_pb2.CANCELLED])
def test_reads_and_changes_are_asked_again_and_a_change_is_the_same_call(fleet: Fleet, address: str, code: int) -> None:
    fleet.add("dock-1/web", "exited")
    fleet.fail("WhoAmI", code, "going away", times=2)
    fleet.fail("StartContainer", code, "going away", times=2)
    with Client(address) as lading:
        assert lading.access.WhoAmI(access_pb2.WhoAmIRequest()).organization == "acme"
        lading.start("dock-1/web")
        request = containers_pb2.RestartContainerRequest(name="agents/dock-1/containers/web")
        for _ in range(2):
            lading.containers.RestartContainer(request)
    assert len(fleet.asked("WhoAmI")) == 3
    first, second, third = (start.request_id for start in fleet.asked("StartContainer"))
    assert first == second == third != ""
    one, other = (restart.request_id for restart in fleet.asked("RestartContainer"))
    assert one != other, "the same request object later is another call"


def test_a_call_ends_at_its_time_limit(fleet: Fleet, address: str) -> None:
    fleet.hang = threading.Event()
    with Client(address, timeout=0.2) as lading, pytest.raises(errors.DeadlineExceeded):
        lading.start("dock-1/web")


def test_a_tail_goes_on_after_a_lost_connection_without_gap_or_repeat(fleet: Fleet, address: str) -> None:
    fleet.events = [audit_log_pb2.Event(id=str(index), index=index) for index in range(7)]
    with Client(address) as lading:
        events = list(islice(lading.tail(from_index=1), 6))
    assert [event.index for event in events] == [1, 2, 3, 4, 5, 6]
    assert [request.from_index for request in fleet.asked("TailEvents")] == [1, 3, 5]


def test_a_followed_log_without_output_goes_on_where_its_server_stops(fleet: Fleet, address: str) -> None:
    fleet.logs = [containers_pb2.StreamContainerLogsResponse(data=b"up\n", position="1")]
    fleet.fail("StreamContainerLogs", code_pb2.UNAVAILABLE, "the server is stopping", error_info("STOPPING"), times=4)
    lost: list[str] = []
    with Client(address) as lading:
        pieces = list(lading.logs("dock-1/web", follow=True, lost=lambda failure: lost.append(failure.reason)))
    assert [piece.data for piece in pieces] == [b"up\n"]
    assert lost == ["STOPPING"]


def test_a_tail_that_never_began_fails(fleet: Fleet, address: str) -> None:
    fleet.fail("TailEvents", code_pb2.PERMISSION_DENIED, "no")
    with Client(address) as lading, pytest.raises(errors.PermissionDenied):
        next(lading.tail())


def test_nobody_listening_is_unavailable() -> None:
    with Client("127.0.0.1:1") as lading, pytest.raises(errors.Unavailable):
        lading.start("dock-1/web")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return key, cert


def test_tls_with_a_given_ca(fleet: Fleet, certificate: tuple[pathlib.Path, pathlib.Path]) -> None:
    key, cert = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    server, address = serve(fleet, credentials)
    try:
        with Client(address, token="t", ca=cert) as lading:
            assert lading.access.WhoAmI(access_pb2.WhoAmIRequest()).organization == "acme"
        with Client(address, token="t", tls=True) as lading, pytest.raises(errors.Unavailable) as raised:
            lading.access.WhoAmI(access_pb2.WhoAmIRequest())
    finally:
        server.stop(None).wait()
    assert "--ca" in str(raised.value) or "CA" in str(raised.value)
    assert fleet.calls[0][2]["authorization"] == "Bearer t"
