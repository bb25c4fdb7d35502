"""A Docker-compatible engine on this machine: whether there is one, and a tiny image that needs no registry."""

from __future__ import annotations

import http.client
import io
import json
import os
import pathlib
import socket
import tarfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BUSYBOX = pathlib.Path("/bin/busybox")
IMAGE = "lading-demo:1"
APPLETS = ("sh", "sleep", "date", "echo")
TIMEOUT = 10.0  # seconds


class EngineFailed(Exception):
    """The engine refused."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self.path)


@dataclass(frozen=True)
class Engine:
    """An engine that answers at `url` (`unix:///…` or `tcp://…`)."""

    url: str

    def connect(self) -> http.client.HTTPConnection:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme == "unix":
            return UnixConnection(parts.path)
        return http.client.HTTPConnection(parts.hostname or "", parts.port or 2375, timeout=TIMEOUT)

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = "application/x-tar") -> bytes:
        """The answer's body. EngineFailed with the engine's words; OSError when it cannot be reached."""
        connection = self.connect()
        try:
            connection.request(method, path, body, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            content = answer.read()
        except http.client.HTTPException as error:
            raise EngineFailed(f"{self.url} does not speak as an engine: {error}") from None
        finally:
            connection.close()
        if answer.status >= 400:
            raise EngineFailed(f"{method} {path}: {answer.status} {content.decode(errors='replace').strip()}")
        return content

    def prepare(self) -> None:
        """Have IMAGE there, and know that a container of it runs; leaves nothing when it does not."""
        self.import_image()
        try:
            self.try_out()
        except EngineFailed:
            self.remove_image()
            raise

    def import_image(self) -> None:
        """Make IMAGE from busybox."""
        # The tag goes with the repository: Podman does not read the parameter `tag`.
        query = urllib.parse.urlencode({"fromSrc": "-", "repo": IMAGE})
        # The stream tells of failures in its last line, with status 200.
        last = self.ask("POST", f"/images/create?{query}", busybox_tar()).splitlines()[-1]
        if b'"error"' in last:
            raise EngineFailed(last.decode(errors="replace"))

    def try_out(self) -> None:
        """Run a container of IMAGE for a moment: some engines answer, but may not start any (in a sandbox, say)."""
        wanted = {"Image": IMAGE, "Cmd": ["/bin/sleep", "60"], "HostConfig": {"NetworkMode": "none"}}
        answer = self.ask("POST", "/containers/create", json.dumps(wanted).encode(), "application/json")
        identifier = json.loads(answer)["Id"]
        try:
            self.ask("POST", f"/containers/{identifier}/start")
        finally:
            self.ask("DELETE", f"/containers/{identifier}?force=1")

    def remove_image(self) -> None:
        self.ask("DELETE", f"/images/{IMAGE}?force=1")

    def names(self) -> set[str]:
        """Names of all its containers."""
        found = json.loads(self.ask("GET", "/containers/json?all=1"))
        return {name.removeprefix("/") for container in found for name in container["Names"]}

    def state(self, container: str) -> dict[str, Any]:
        """State of a container, as the engine itself tells it."""
        found: dict[str, Any] = json.loads(self.ask("GET", f"/containers/{container}/json"))["State"]
        return found


def find() -> Engine | None:
    """The first engine that answers: DOCKER_HOST, Docker's socket, Podman's."""
    for url in _candidates():
        try:
            Engine(url).ask("GET", "/_ping")
        except (OSError, EngineFailed):
            continue
        return Engine(url)
    return None


def _candidates() -> Iterator[str]:
    if host := os.environ.get("DOCKER_HOST"):
        yield host
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    yield "unix:///var/run/docker.sock"
    yield "unix:///run/podman/podman.sock"
    yield f"unix://{runtime}/podman/podman.sock"


def busybox_tar() -> bytes:
    """A file system with busybox and a few names for it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("bin", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        entry = tarfile.TarInfo("bin/busybox")
        entry.mode, entry.size = 0o755, BUSYBOX.stat().st_size
        with BUSYBOX.open("rb") as file:
            tar.addfile(entry, file)
        for applet in APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return buffer.getvalue()
