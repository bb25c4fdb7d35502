"""A Docker engine of the tests' own: a real dockerd with its own data, so that nothing of this machine's is touched."""

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
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

IMAGE = "lading-test:1"
BUSYBOX = pathlib.Path("/bin/busybox")
READY_WITHIN = 60.0


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
    """A dockerd that runs: `url` is what DOCKER_HOST wants, `image` the name of an image that has busybox."""

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
        with open(self.folder / "dockerd.log", "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        give_up_at = time.monotonic() + READY_WITHIN
        while True:
            try:
                self.request("GET", "/_ping")
                return
            except (OSError, http.client.HTTPException):
                if not self.running or time.monotonic() > give_up_at:
                    words = (self.folder / "dockerd.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"dockerd did not start:\n{words}") from None
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


def reason_without_engine() -> str | None:
    """Why no engine can be started here, or None when it can."""
    if os.geteuid() != 0:
        return "the engine tests start dockerd, which needs root: run as root"
    missing = [name for name in ("dockerd", "containerd", "runc") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install docker.io"
    if not BUSYBOX.exists():
        return f"{BUSYBOX} not found: apt-get install busybox-static"
    return None


@contextlib.contextmanager
def engine_daemon() -> Iterator[Engine]:
    """A running engine; skips the test where there can be none, and fails instead where CI=true."""
    reason = reason_without_engine()
    if reason:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # A short path: the socket's name may have 107 bytes.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lading-engine-", dir="/tmp"))
    url = f"unix://{folder}/docker.sock"
    command = ["dockerd", "-H", url, "--pidfile", f"{folder}/docker.pid", "--data-root", f"{folder}/data"]
    command += ["--exec-root", f"{folder}/exec", "--bridge=none", "--iptables=false", "--ip-forward=false"]
    command += ["--log-level=warn", "--config-file", f"{folder}/daemon.json"]
    (folder / "daemon.json").write_text("{}")
    engine = Engine(url, IMAGE, folder, command)
    try:
        engine.start()
        repository, _, tag = IMAGE.partition(":")
        engine.request("POST", f"/images/create?fromSrc=-&repo={repository}&tag={tag}", image_archive())
        yield engine
    finally:
        _end_containers(engine)
        engine.stop()
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
    """Kill what runs, also when dockerd itself was killed: its containers would outlive it."""
    with contextlib.suppress(OSError, http.client.HTTPException, RuntimeError):
        if not engine.running:
            engine.start()
        for container in json.loads(engine.request("GET", "/containers/json?all=1")):
            with contextlib.suppress(RuntimeError):
                engine.request("DELETE", f"/containers/{container['Id']}?force=1&v=1")


def _remove(folder: pathlib.Path) -> None:
    """Unmount what is mounted below (deepest first), then delete the folder."""
    mounts = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((each for each in mounts if each.startswith(f"{folder}/")), key=len, reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)
