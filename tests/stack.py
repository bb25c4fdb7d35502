"""The whole of Lading as people run it: real processes of the `lading` command, on this machine."""

import atexit
import contextlib
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TypeVar

import grpc

from lading.v1 import access_pb2, access_pb2_grpc, agents_pb2, agents_pb2_grpc, audit_log_pb2
from tests.process import PATIENCE_SECONDS, Process, free_port, kill_those_with

LADING = pathlib.Path(sys.executable).with_name("lading")
ORGANIZATION = "acme"
ADMIN = "ada"

Answer = TypeVar("Answer")


class Stack:
    """Starts servers, agents and viewers in `folder`, and ends them all when it is left.

    `database` is the server's `--database`; None leaves the embedded default.
    """

    def __init__(self, folder: pathlib.Path, database: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.database = database
        self.processes: list[Process] = []
        self.address = ""
        self.admin_token = ""
        self._channels: list[grpc.Channel] = []

    def __enter__(self) -> "Stack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            channel.close()
        for process in reversed(self.processes):
            with contextlib.suppress(TimeoutError):
                process.terminate()
        # An agent stops no container; and whoever was killed could stop nothing.
        kill_those_with("HOME", str(self.folder))

    # -- server

    def start_server(self, *options: str) -> Process:
        """A server that serves. The first start makes the database; later ones listen where the first one did."""
        if not self.admin_token:
            self.admin_token = self._initialize()
        port_file = self.folder / "server.port"
        port_file.unlink(missing_ok=True)
        listen = self.address or f"127.0.0.1:{free_port()}"
        server = self._start(
            "server", "server", "run", *self._where(), "--listen", listen, "--port-file", str(port_file), *options
        )
        server.wait_until(lambda: port_file.exists() and port_file.read_text().strip(), "the server serves")
        self.address = port_file.read_text().strip()
        return server

    def lading(
        self, *arguments: str, token: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run the `lading` command to its end, as the admin unless a token is given; never raises for its exit code."""
        return subprocess.run(
            [LADING, *arguments],
            env=self._environment({"LADING_SERVER": self.address, "LADING_TOKEN": token or self.admin_token}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def channel(self) -> grpc.Channel:
        """A new channel to the server."""
        channel = grpc.insecure_channel(self.address)
        self._channels.append(channel)
        return channel

    def credentials(self, token: str | None = None) -> tuple[tuple[str, str]]:
        """Call metadata of the admin, or of who has `token`."""
        return (("authorization", f"Bearer {token or self.admin_token}"),)

    def issue_token(
        self,
        subject: str,
        kind: audit_log_pb2.ActorType.ValueType = audit_log_pb2.ACTOR_TYPE_SERVICE,
        roles: tuple[access_pb2.Role.ValueType, ...] = (),
    ) -> str:
        """A new token for `subject`, to whom `roles` are assigned."""
        access = access_pb2_grpc.AccessStub(self.channel())
        who = self.credentials()
        request = access_pb2.IssueTokenRequest(type=kind, subject=subject, request_id=str(uuid.uuid4()))
        answer = answered(lambda: access.IssueToken(request, metadata=who, timeout=20, wait_for_ready=True))
        for role in roles:
            binding = access_pb2.AssignRoleRequest(subject=subject, role=role, request_id=str(uuid.uuid4()))
            answered(functools.partial(access.AssignRole, binding, metadata=who, timeout=20))
        return answer.secret

    # -- agents

    def start_agent(
        self,
        name: str = "dock-1",
        *options: str,
        processes: Mapping[str, list[str]] | None = None,
        docker_host: str | None = None,
        containers_min: int | None = None,
        wait: bool = True,
    ) -> Process:
        """An agent that is online and has reported its containers, unless nobody is to `wait` for that.

        It drives an engine when `docker_host` is its URL, else `processes`: commands by the container's name.
        It has reported when the server knows `containers_min` containers; None means as many as there are processes.
        """
        token_file = self.folder / f"{name}.token"
        if not token_file.exists():
            token_file.touch(0o600)
            token_file.write_text(self.issue_token(name, audit_log_pb2.ACTOR_TYPE_AGENT))
        declared = self.folder / f"{name}.toml"
        if docker_host is None:
            declared.write_text(declare(processes or {}))
            runtime = ["--runtime", "process", "--processes", str(declared)]
        else:
            runtime = ["--runtime", "docker", "--docker-host", docker_host]
        agent = self._start(
            name,
            *("agent", "run", "--server", self.address, "--token-file", str(token_file)),
            *("--data", str(self.folder / f"{name}-data"), *runtime, *options),
        )
        if not wait:
            return agent
        wanted = len(processes or {}) if containers_min is None else containers_min
        agent.wait_until(lambda: self.is_online(name, wanted), f"agent {name} is online")
        return agent

    def is_online(self, agent: str, containers_min: int = 0) -> bool:
        """Whether the server says the agent is online and has so many containers."""
        stub = agents_pb2_grpc.AgentsStub(self._shared_channel)
        request = agents_pb2.GetAgentRequest(name=f"agents/{agent}")
        try:
            answer = stub.GetAgent(request, metadata=self.credentials(), timeout=20)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                return False
            raise
        return answer.state == agents_pb2.AGENT_STATE_ONLINE and answer.containers_total >= containers_min

    # -- viewer

    def start_viewer(self, *options: str) -> str:
        """A viewer that answers; its URL."""
        listen = f"127.0.0.1:{free_port()}"
        data = str(self.folder / "viewer")
        viewer = self._start(
            "viewer", "viewer", "run", "--server", self.address, "--listen", listen, "--data", data, *options
        )

        def answers() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{listen}/_stcore/health", timeout=5):
                return True
            return False

        viewer.wait_until(answers, "the viewer answers", 60)
        return f"http://{listen}"

    def print_logs(self) -> None:
        """The end of every log, for the report of a test that failed."""
        for process in {process.name: process for process in self.processes}.values():
            print(f"--- {process.name}\n{process.tail()}")

    # -- parts

    @property
    def _shared_channel(self) -> grpc.Channel:
        return self._channels[0] if self._channels else self.channel()

    def _initialize(self) -> str:
        if self.database:
            return initialize(self._where(), self._environment({}))
        token, born = newborn()
        shutil.copytree(born, self.folder / "server")
        return token

    def _where(self) -> list[str]:
        database = ["--database", self.database] if self.database else []
        return ["--data", str(self.folder / "server"), *database]

    def _start(self, name: str, *arguments: str) -> Process:
        process = Process(name, [LADING, *arguments], self.folder / f"{name}.log", self._environment({}))
        self.processes.append(process)
        return process

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        # Nothing of the person who runs the tests: no context of theirs, no token.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LADING_")}
        return {**inherited, "HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder), **more}


def answered(call: Callable[[], Answer]) -> Answer:
    """Call until the server answers: on a busy machine its database may not answer it in time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def initialize(where: list[str], environment: dict[str, str]) -> str:
    """Run `lading server init`; the admin's token."""
    command = [str(LADING), "server", "init", *where, "--org", ORGANIZATION, "--admin", ADMIN]
    command += ["--email", f"{ADMIN}@acme.example"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"lading server init ended with {done.returncode}:\n{done.stderr}")
    return done.stdout.strip()


@functools.cache
def newborn() -> tuple[str, pathlib.Path]:
    """The admin's token, and a data directory with the embedded database, made once: copy it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lading-newborn-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LADING_")}
    return initialize(["--data", str(folder / "server")], environment), folder / "server"


def declare(processes: Mapping[str, list[str]]) -> str:
    """The file of the process runtime that declares these commands, by name, as containers that exist."""
    return "".join(
        f"[process.{name}]\ncommand = {json.dumps(command)}\nautocreate = true\nexec = true\n"
        for name, command in processes.items()
    )
