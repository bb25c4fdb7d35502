"""Engines of the tests' own: a real dockerd and a real Podman, each with its own data, apart from the machine's."""

import contextlib
import http.client
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

IMAGE = "lading-test:1"
BUSYBOX = pathlib.Path("/bin/busybox")
READY_WITHIN = 60.0
# The package, and what it must bring.
ENGINES = {
    "docker": ("docker.io", ("dockerd", "containerd", "runc")),
    "podman": ("podman", ("podman", "conmon")),
}
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class EngineConnection(http.client.HTTPConnection):
    """HTTP to the engine over its unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=READY_WITHIN)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


@dataclass
class Engine:
    """An engine that runs, `docker` or `podman`: `url` is what DOCKER_HOST wants, `image` the engine's name of an image
    that has busybox."""

    name: str
    url: str
    image: str
    folder: pathlib.Path
    command: list[str]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def pid(self) -> int:
        assert self.process is not None, "start() first"
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def request(self, method: str, path: str, body: bytes | None = None, kind: str = "application/x-tar") -> bytes:
        """The engine's answer; raises RuntimeError with its words when it is not 2xx or 304."""
        connection = EngineConnection(self.url.removeprefix("unix://"))
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": kind} if body else {})
            response = connection.getresponse()
            answer = response.read()
        if response.status >= 400:
            raise RuntimeError(f"{method} {path}: {response.status} {answer.decode()}")
        return answer

    def start(self) -> None:
        """Start it again after `stop` or a kill: same data, same containers."""
        # A dockerd that was killed leaves its containerd dead, but perhaps not buried: it would wait for it for ever.
        (self.folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)
        # Its own session: a signal to the test run must not reach it before the tests have cleaned up.
        words = self.folder / "log"
        environment = {**os.environ, "PATH": PATH, "CONTAINERS_CONF": str(self.folder / "containers.conf")}
        with open(words, "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        give_up_at = time.monotonic() + READY_WITHIN
        while True:
            try:
                self.request("GET", "/_ping")
                return
            except (OSError, http.client.HTTPException):
                if not self.running or time.monotonic() > give_up_at:
                    tail = words.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{self.name} did not start:\n{tail}") from None
                time.sleep(0.05)

    def wait(self) -> None:
        """Until it has ended, after a kill."""
        if self.process is not None:
            self.process.wait()

    def stop(self) -> None:
        """Stop it and its containers' processes; it does nothing when it is stopped already."""
        if self.process is not None and self.running:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def reason_without_engine(name: str = "docker") -> str | None:
    """Why no engine can be started here, or None when it can."""
    package, programs = ENGINES[name]
    if os.geteuid() != 0:
        return f"the tests of {name} start an engine, which needs root: run as root"
    missing = [program for program in programs if shutil.which(program, path=PATH) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install {package}"
    if not BUSYBOX.exists():
        return f"{BUSYBOX} not found: apt-get install busybox-static"
    return None


def engine_daemon() -> contextlib.AbstractContextManager[Engine]:
    """A Docker engine; skips the test where there can be none, and fails instead where CI=true."""
    return _serving("docker", _dockerd)


def podman_service() -> contextlib.AbstractContextManager[Engine]:
    """Podman's API service; skips the test where there can be none, and fails instead where CI=true."""
    return _serving("podman", _podman)


def _dockerd(folder: pathlib.Path) -> Engine:
    url = f"unix://{folder}/docker.sock"
    command = ["dockerd", "-H", url, "--pidfile", f"{folder}/docker.pid", "--data-root", f"{folder}/data"]
    command += ["--exec-root", f"{folder}/exec", "--bridge=none", "--iptables=false", "--ip-forward=false"]
    command += ["--log-level=warn", "--config-file", f"{folder}/daemon.json"]
    (folder / "daemon.json").write_text("{}")
    return Engine("docker", url, IMAGE, folder, command)


def _podman(folder: pathlib.Path) -> Engine:
    url = f"unix://{folder}/podman.sock"
    command = ["podman", "--root", f"{folder}/data", "--runroot", f"{folder}/run", "--tmpdir", f"{folder}/tmp"]
    command += ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file", "--log-level=warn"]
    command += ["system", "service", "--time=0", url]
    # It would raise the limits of its containers above its own, which not every root may.
    limits = json.dumps([f"{limit}=1024:1024" for limit in ("nofile", "nproc")])
    (folder / "containers.conf").write_text(f"[containers]\ndefault_ulimits = {limits}\n")
    return Engine("podman", url, f"docker.io/library/{IMAGE}", folder, command)


@contextlib.contextmanager
def _serving(name: str, make: Callable[[pathlib.Path], Engine]) -> Iterator[Engine]:
    reason = reason_without_engine(name)
    if reason:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # A short path: the socket's name may have 107 bytes.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lading-engine-", dir="/tmp"))
    engine = make(folder)
    try:
        engine.start()
        # In one word: Podman does not listen to `tag`.
        engine.request("POST", f"/images/create?fromSrc=-&repo={IMAGE}", image_archive())
        yield engine
    finally:
        _end_containers(engine)
        engine.stop()
        _end_watchers(folder)
        _remove(folder)


def image_archive() -> bytes:
    """A tar with busybox and a link to it for each of its programs that tests use."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(BUSYBOX.resolve(), "bin/busybox")
        for program in ("sh", "sleep", "echo", "cat", "date", "seq", "true", "false", "kill", "printf", "yes"):
            link = tarfile.TarInfo(f"bin/{program}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return buffer.getvalue()


def _end_containers(engine: Engine) -> None:
    """Kill what runs, also when the engine itself was killed: its containers would outlive it."""
    with contextlib.suppress(OSError, http.client.HTTPException, RuntimeError):
        if not engine.running:
            engine.start()
        for container in json.loads(engine.request("GET", "/containers/json?all=1")):
            with contextlib.suppress(RuntimeError):
                engine.request("DELETE", f"/containers/{container['Id']}?force=1&v=1")


def _end_watchers(folder: pathlib.Path) -> None:
    """Podman has a process wait for five minutes beside each exec, after its end too."""
    for command in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            words = command.read_bytes()
            if words.partition(b"\0")[0].endswith(b"conmon") and f"{folder}/".encode() in words:
                os.kill(int(command.parent.name), signal.SIGKILL)


def _remove(folder: pathlib.Path) -> None:
    """Unmount what is mounted below (deepest first), then delete the folder."""
    mounts = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((each for each in mounts if each.startswith(f"{folder}/")), key=len, reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)
