"""What a demo plays on: a data directory, a server, two agents, a viewer, and a token for everyone who acts."""

from __future__ import annotations

import pathlib
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from lading.v1 import access_pb2, agents_pb2, audit_log_pb2
from lading_client import names
from lading_client.client import Client
from lading_client.demo import engine
from lading_client.demo.children import ChildFailed, Children, run

ORG = "demo"
ADMIN, OPERATOR, AUDITOR, VIEWER = (f"{role}@demo.example" for role in ("admin", "operator", "auditor", "viewer"))
DEPLOY_BOT, TASK_SERVICE = "deploy-bot", "task-service"
ROLES = {
    OPERATOR: ("operator",),
    AUDITOR: ("auditor",),
    VIEWER: ("viewer",),
    DEPLOY_BOT: ("operator", "recorder"),
    TASK_SERVICE: ("recorder",),
}
# Which agent runs which process.
HOSTS = {"web": "dock-1", "api": "dock-1", "worker": "dock-2", "mailer": "dock-2"}
AGENTS = tuple(dict.fromkeys(HOSTS.values()))
READY_WITHIN = 60.0  # seconds; a first start writes byte code and migrates
LIFETIME = 86400  # seconds

# A process that says that it lives, and ends at once when it is asked to.
PROGRAM = "trap 'echo {name}: bye; exit 0' TERM; echo {name}: up; while :; do sleep 1 & wait $!; done"


@dataclass
class Stage:
    """`mark` is in the command line of every process of the process runtime that this demo started.

    `suffix` follows the names of its containers where an engine has others of these names.
    """

    data: pathlib.Path
    children: Children
    mark: str = field(default_factory=lambda: f"lading-demo-{secrets.token_hex(6)}")
    suffix: str = ""
    engine: engine.Engine | None = None
    engine_note: str = ""
    server: str = ""
    viewer: str = ""
    code: str = ""
    clients: dict[str, Client] = field(default_factory=dict)

    def container(self, process: str) -> str:
        """Name of the container that runs a process."""
        return process + self.suffix

    def target(self, process: str) -> str:
        """`agent/container` of the same."""
        return f"{HOSTS[process]}/{self.container(process)}"

    def on_engine(self, process: str) -> bool:
        """Whether it runs as a container of the engine.

        Only the first agent drives it: two on one engine would both report each of its containers.
        """
        return self.engine is not None and HOSTS[process] == AGENTS[0]

    def token_file(self, subject: str) -> pathlib.Path:
        return self.data / "tokens" / subject.partition("@")[0]

    def client(self, subject: str) -> Client:
        """A client that acts as this subject."""
        if subject not in self.clients:
            token = self.token_file(subject).read_text()
            source = "demo" if "@" in subject else subject
            self.clients[subject] = Client(self.server, token=token, source=source)
        return self.clients[subject]

    def close(self) -> None:
        for client in self.clients.values():
            client.close()


@contextmanager
def build(data: pathlib.Path) -> Iterator[Stage]:
    """Server and agents up and connected, the viewer on its way; all is stopped at the end.

    ChildFailed when something does not come up.
    """
    for folder in (data, data / "tokens", data / "logs"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        stage = Stage(data, stack.enter_context(Children(data / "logs")))
        stack.callback(stage.close)
        _start_server(stage)
        _make_tokens(stage)
        _choose_engine(stage)
        _start_viewer(stage)
        _start_agents(stage)
        _await_agents(stage)
        _choose_names(stage)
        yield stage


def _start_server(stage: Stage) -> None:
    home = stage.data / "server"
    if (home / "lading.db").exists():
        # Kept by --data from an earlier run.
        token = run(["server", "token", "--data", str(home), "--org", ORG, "--subject", ADMIN, "--email", ADMIN])
    else:
        token = run(["server", "init", "--data", str(home), "--org", ORG, "--admin", ADMIN, "--email", ADMIN])
    write_secret(stage.token_file(ADMIN), token.strip())
    port_file = stage.data / "server.address"
    port_file.unlink(missing_ok=True)
    child = stage.children.start(
        "server", ["server", "run", "--data", str(home), "--listen", "127.0.0.1:0", "--port-file", str(port_file)]
    )
    stage.server = stage.children.wait_for_file(child, port_file, READY_WITHIN)


def _make_tokens(stage: Stage) -> None:
    """Tokens and roles for everyone, through the API, so that the log begins with them."""
    access = stage.client(ADMIN).access
    for subject, roles in ROLES.items():
        person = "@" in subject
        kind = audit_log_pb2.ACTOR_TYPE_USER if person else audit_log_pb2.ACTOR_TYPE_SERVICE
        _issue(stage, subject, kind, email=subject if person else "")
        for role in roles:
            value = access_pb2.Role.Value(f"ROLE_{role.upper()}")
            access.AssignRole(access_pb2.AssignRoleRequest(subject=subject, role=value, reason="demo set-up"))
    for agent in AGENTS:
        _issue(stage, agent, audit_log_pb2.ACTOR_TYPE_AGENT)


def _issue(stage: Stage, subject: str, kind: audit_log_pb2.ActorType.ValueType, email: str = "") -> None:
    request = access_pb2.IssueTokenRequest(type=kind, subject=subject, email=email, reason="demo set-up")
    request.lifetime.FromSeconds(LIFETIME)
    write_secret(stage.token_file(subject), stage.client(ADMIN).access.IssueToken(request).secret)


def _choose_engine(stage: Stage) -> None:
    found = engine.find()
    if found is None:
        stage.engine_note = "No container engine answers here: both agents run plain processes."
        return
    if not engine.BUSYBOX.exists():
        stage.engine_note = f"{engine.BUSYBOX} is missing (Debian: busybox-static): both agents run plain processes."
        return
    try:
        found.prepare()
    except (engine.EngineFailed, OSError) as error:
        stage.engine_note = f"{found.url} runs no containers of ours: both agents run plain processes. {error}"
        return
    stage.engine = found
    stage.engine_note = f"dock-1 runs containers of the engine at {found.url}, dock-2 plain processes."


def _start_agents(stage: Stage) -> None:
    declared = stage.data / "processes.toml"
    declared.write_text("".join(_declaration(name, stage.mark) for name in HOSTS))
    for agent in AGENTS:
        runtime = ["--runtime", "process", "--processes", str(declared)]
        if stage.engine and agent == AGENTS[0]:
            runtime = ["--runtime", "docker", "--docker-host", stage.engine.url]
        identity = ["--token-file", str(stage.token_file(agent)), "--data", str(stage.data / agent)]
        tags = ["--label", "env=demo", "--label", f"host={agent}"]
        stage.children.start(agent, ["agent", "run", "--server", stage.server, *identity, *tags, *runtime])


def _declaration(name: str, mark: str) -> str:
    program = PROGRAM.format(name=name).replace("\\", "\\\\").replace('"', '\\"')
    words = f'["/bin/sh", "-c", "{program}", "{mark}"]'
    return f'[process.{name}]\ncommand = {words}\nlabels = {{ app = "{name}" }}\nexec = true\n\n'


def _await_agents(stage: Stage) -> None:
    waiting = set(AGENTS)
    watch = stage.client(ADMIN).agents.WatchAgents(agents_pb2.WatchAgentsRequest(), timeout=READY_WITHIN)
    for agent in watch:
        if agent.state == agents_pb2.AGENT_STATE_ONLINE:
            waiting.discard(agent.name.removeprefix("agents/"))
        if not waiting:
            watch.cancel()
            return
        stage.children.check()
    raise ChildFailed(f"{', '.join(sorted(waiting))} did not connect.")


def _start_viewer(stage: Stage) -> None:
    stage.code = secrets.token_urlsafe(16)
    code_file = stage.data / "sign-in"
    write_secret(code_file, f"{stage.code}\n{stage.token_file(AUDITOR).read_text()}")
    port_file = stage.data / "viewer.address"
    port_file.unlink(missing_ok=True)
    listen = ["--server", stage.server, "--listen", "127.0.0.1:0", "--data", str(stage.data / "viewer")]
    files = ["--one-time-code-file", str(code_file), "--port-file", str(port_file)]
    stage.children.start("viewer", ["viewer", "run", *listen, *files])


def _choose_names(stage: Stage) -> None:
    taken = {names.short(container.name) for container in stage.client(ADMIN).list_containers()}
    if stage.engine:
        # The agent may not have reported them yet.
        taken |= {f"{AGENTS[0]}/{name}" for name in stage.engine.names()}
    if taken.intersection(stage.target(process) for process in HOSTS):
        stage.suffix = f"-{stage.mark[-4:]}"


def await_viewer(stage: Stage) -> None:
    """Until it answers. ChildFailed when it does not come up."""
    child = next(child for child in stage.children.running if child.name == "viewer")
    stage.viewer = stage.children.wait_for_file(child, stage.data / "viewer.address", READY_WITHIN)


def write_secret(path: pathlib.Path, text: str) -> None:
    """Only for the owner's eyes."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
