"""The runtime `docker`: the Docker Engine API of Docker and Podman."""

import asyncio
import contextlib
import json
import logging
import math
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from lading.v1.commands_pb2 import ContainerSpec, ExecSpec
from lading.v1.containers_pb2 import Container
from lading_agent.errors import RuntimeFailure, Unchanged, Unreadable
from lading_agent.runtimes import LogPiece, LogQuery, Program, RuntimeEvent, Trace, docker_program
from lading_agent.runtimes.docker_log import (
    Bookmark,
    LogEntry,
    count_before,
    count_to_tail,
    framed_entries,
    mark_tail,
    pieces_of,
    raw_entries,
    read_position,
)
from lading_agent.runtimes.engine import Engine, json_lines
from lading_agent.runtimes.podman_log import bytes_to_tail, raw_pieces, read_raw_position

log = logging.getLogger(__name__)

INSPECTIONS_AT_ONCE = 8
SILENCE = 0.3
# An engine that hangs must not keep the agent from its server.
TITLE_WITHIN = 2.0
# Podman's words for what Docker calls otherwise.
STATES = {"configured": "created", "initialized": "created", "stopped": "exited", "stopping": "running"}
ACTIONS = {"died": "die", "remove": "destroy"}
# Events that change nothing in the inventory.
SILENT = ("exec_", "attach", "detach", "top", "resize", "copy", "archive-path", "extract-to-dir", "export")
# What an event says beside its action; the labels, which are there too, may hold anything.
ATTRIBUTES = ("exitCode", "signal", "image", "oldName")
EVENTS = "events"
# The container was removed, another one has its name, or its log was rotated: then there is nothing more to read.
GONE = (StatusCode.NOT_FOUND, StatusCode.FAILED_PRECONDITION, StatusCode.OUT_OF_RANGE)
HAS_TAG_OR_DIGEST = re.compile(r"(:[^/]+|@[^/]+)$")


class DockerRuntime:
    """Containers of one engine; see `Runtime`."""

    def __init__(self, url: str) -> None:
        self._engine = Engine(url)
        # Ids of containers, and EVENTS.
        self._complaints: set[str] = set()

    async def open(self) -> None:
        await self._engine.open()

    async def title(self) -> str:
        try:
            async with asyncio.timeout(TITLE_WITHIN):
                # Its /version runs three programs, and takes seconds on a busy machine.
                if podman := await self._engine.podman_version():
                    return f"podman {podman}"
                version = await self._engine.ask("/version")
            parts = version.get("Components") or [{"Name": "Engine", "Version": version.get("Version", "")}]
            return f"docker {parts[0]['Version']}"
        except (AttributeError, LookupError, RuntimeFailure, TimeoutError, TypeError):
            return "docker"

    async def close(self) -> None:
        await self._engine.close()

    async def containers(self) -> list[Container]:
        # The engine's list knows neither times nor exit codes: every container is inspected, some at a time.
        slots = asyncio.Semaphore(INSPECTIONS_AT_ONCE)

        async def inspect(id: str) -> Container | RuntimeFailure | None:
            async with slots:
                try:
                    return read_container(await self._inspect(id))
                except RuntimeFailure as error:
                    if error.code == StatusCode.NOT_FOUND:
                        return None
                    if error.code != StatusCode.INTERNAL:
                        raise
                    self._complain(id, f"container {id} is left out of the inventory", error)
                    return error

        try:
            ids = [str(each["Id"]) for each in await self._engine.ask("/containers/json", all="1")]
        except (KeyError, TypeError) as error:
            raise Unreadable(f"the engine's list of containers cannot be read: {error!r}") from None
        self._complaints.intersection_update([*ids, EVENTS])
        found = await asyncio.gather(*map(inspect, ids))
        containers = [each for each in found if isinstance(each, Container)]
        refused = [each for each in found if isinstance(each, RuntimeFailure) and not isinstance(each, Unreadable)]
        if refused and not containers:
            # Not one container is bad, it seems, but the engine.
            raise refused[0]
        return containers

    def _complain(self, of: str, words: str, error: Exception) -> None:
        """Once of each thing, while it is there."""
        if of not in self._complaints:
            self._complaints.add(of)
            log.error("%s: %r", words, error)

    async def get(self, name: str) -> Container:
        container = read_container(await self._inspect(name))
        if container.name != name:
            # The engine also finds containers by the beginning of their id.
            raise RuntimeFailure(f"No such container: {name}", StatusCode.NOT_FOUND)
        return container

    async def create(self, name: str, spec: ContainerSpec) -> str:
        body: dict[str, Any] = {
            "Image": spec.image,
            "Env": [f"{key}={value}" for key, value in spec.env.items()],
            "Labels": dict(spec.labels),
            "HostConfig": {"RestartPolicy": {"Name": spec.restart or "no"}},
        }
        if spec.command:
            body["Cmd"] = list(spec.command)
        if spec.network:
            body["HostConfig"]["NetworkMode"] = spec.network
        try:
            made = await self._engine.act("POST", "/containers/create", {"name": name}, body)
            return str(made["Id"])
        except RuntimeFailure as error:
            if error.code == StatusCode.FAILED_PRECONDITION or "already in use" in str(error):
                raise RuntimeFailure(str(error), StatusCode.ALREADY_EXISTS) from None
            raise

    async def start(self, id: str) -> None:
        await self._change(id, "start", refusal="is already running")

    async def stop(self, id: str, grace: float) -> None:
        if self._engine.is_podman and read_container(await self._inspect(id)).state == "created":
            # It would do nothing, and say that it did.
            raise RuntimeFailure("the container is not running", Unchanged.code)
        await self._change(id, "stop", refusal="is not running", t=str(math.ceil(grace)))

    async def restart(self, id: str, grace: float) -> None:
        await self._change(id, "restart", t=str(math.ceil(grace)))

    async def kill(self, id: str, signal: str) -> None:
        await self._change(id, "kill", signal=signal)

    async def pause(self, id: str) -> None:
        await self._change(id, "pause")

    async def unpause(self, id: str) -> None:
        await self._change(id, "unpause")

    async def remove(self, id: str, force: bool) -> None:
        await self._engine.act("DELETE", f"/containers/{id}", {"force": "1"} if force else {})

    async def pull(self, image: str) -> None:
        reference = image if HAS_TAG_OR_DIGEST.search(image) else f"{image}:latest"
        # The engine answers 200 at once and says in the stream how it went.
        stream = self._engine.stream("/images/create", {"fromImage": reference}, method="POST")
        async with aclosing(stream) as chunks, aclosing(json_lines(chunks)) as lines:
            async for line in lines:
                if words := line.get("error"):
                    missing = "not found" in words or "does not exist" in words
                    raise RuntimeFailure(str(words), StatusCode.NOT_FOUND if missing else StatusCode.UNKNOWN)

    async def logs(self, name: str, query: LogQuery) -> AsyncGenerator[LogPiece, None]:
        found = await self._inspect(name)
        if read_container(found).name != name:
            raise RuntimeFailure(f"No such container: {name}", StatusCode.NOT_FOUND)
        id, tty = found["Id"], bool(found["Config"].get("Tty"))
        skip, newest_ns, since_ns = 0, None, query.since_ns
        if tty and self._engine.is_podman:
            async with aclosing(self._raw_log(id, query)) as raw:
                async for piece in raw:
                    yield piece
            return
        if query.after:
            since_ns, skip, newest_ns = read_position(query.after, id)
        elif query.tail:
            since_ns, skip = await self._find_tail(id, tty, query)
        bookmark = Bookmark(id, since_ns)
        async with (
            aclosing(self._entries(id, tty, since_ns, follow=query.follow)) as entries,
            aclosing(pieces_of(entries, bookmark, skip, newest_ns, query.timestamps)) as pieces,
        ):
            async for piece in pieces:
                yield piece
        if query.follow and not self._engine.is_podman:
            # Docker may end what it has somebody follow before the last that the container wrote is in the log.
            rest = replace(query, follow=False, after=str(bookmark))
            try:
                async with aclosing(self.logs(name, rest)) as pieces:
                    async for piece in pieces:
                        yield piece
            except RuntimeFailure as error:
                if error.code not in GONE:  # else whoever reads it would take what it has for all of it
                    raise

    async def _find_tail(self, id: str, tty: bool, query: LogQuery) -> tuple[int, int]:
        """Since when to read to get the last lines, and how many entries come before them."""
        if self._engine.is_podman:
            # Its own tail puts lines that it wrote in pieces together in the wrong order.
            return query.since_ns, await count_to_tail(self._entries(id, tty, query.since_ns), query.tail)
        since_ns, tail = await mark_tail(self._entries(id, tty, query.since_ns, tail=query.tail))
        if not tail:
            return query.since_ns, 0
        since_ns = max(since_ns, query.since_ns)
        return since_ns, await count_before(tail, self._entries(id, tty, since_ns))

    async def _raw_log(self, id: str, query: LogQuery) -> AsyncGenerator[LogPiece, None]:
        """Of a terminal in Podman, which gives the time of each piece that a program wrote, also amid a line, where
        nothing tells it from the log itself. Positions count bytes instead."""
        asked = {"stdout": "1", "stderr": "1"} | ({"timestamps": "1"} if query.timestamps else {})
        since_ns, skip = query.since_ns, 0
        if query.after:
            since_ns, skip = read_raw_position(query.after, id, stamps=query.timestamps)
        if since_ns:
            asked["since"] = _seconds(since_ns)
        path = f"/containers/{id}/logs"
        if query.tail and not query.after:
            async with aclosing(self._engine.stream(path, asked)) as chunks:
                skip = await bytes_to_tail(chunks, query.tail)
        if query.follow:
            asked["follow"] = "1"
        async with (
            aclosing(self._engine.stream(path, asked)) as chunks,
            aclosing(raw_pieces(chunks, id, since_ns, skip, stamps=query.timestamps)) as pieces,
        ):
            async for piece in pieces:
                yield piece

    async def _entries(
        self, id: str, tty: bool, since_ns: int, follow: bool = False, tail: int = 0
    ) -> AsyncGenerator[list[LogEntry], None]:
        asked = {"stdout": "1", "stderr": "1", "timestamps": "1", "tail": str(tail) if tail else "all"}
        if follow:
            asked["follow"] = "1"
        if since_ns:
            asked["since"] = _seconds(since_ns)
        split = raw_entries if tty else framed_entries
        async with (
            aclosing(self._engine.stream(f"/containers/{id}/logs", asked)) as chunks,
            aclosing(split(chunks)) as batches,
        ):
            async for batch in batches:
                yield batch

    async def prepare_program(self, id: str, spec: ExecSpec, command: str) -> str:
        return await docker_program.prepare(self._engine, id, spec)

    async def start_program(self, id: str, handle: str, spec: ExecSpec) -> Program:
        return await docker_program.start(self._engine, handle, spec)

    async def trace_program(self, handle: str) -> Trace:
        return await docker_program.trace(self._engine, handle)

    async def events(self, since_ns: int) -> AsyncGenerator[RuntimeEvent, None]:
        async with aclosing(self._events(since_ns, {})) as events:
            async for event in events:
                yield event

    async def history(self, name: str, since_ns: int) -> list[RuntimeEvent]:
        # Not by `until`: Podman then leaves events out. What it remembers comes at once, then there is silence.
        found: list[RuntimeEvent] = []
        async with aclosing(self._events(since_ns, {"container": [name]})) as events:
            with contextlib.suppress(TimeoutError, StopAsyncIteration):
                while True:
                    async with asyncio.timeout(SILENCE):  # `wait_for` loses a cancellation in Python 3.11
                        found.append(await anext(events))
        return found

    async def _events(self, since_ns: int, filters: dict[str, list[str]]) -> AsyncGenerator[RuntimeEvent, None]:
        asked = {"since": _seconds(since_ns), "filters": json.dumps({"type": ["container"], **filters})}
        async with aclosing(self._engine.stream("/events", asked)) as chunks, aclosing(json_lines(chunks)) as lines:
            async for line in lines:
                try:
                    found = read_events(line)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    self._complain(EVENTS, "events that cannot be read are left out", error)
                    continue
                for event in found:
                    yield event

    async def _inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = await self._engine.ask(f"/containers/{quote(name, safe='')}/json")
        return found

    async def _change(self, id: str, verb: str, refusal: str = "is in that state already", **query: str) -> None:
        try:
            await self._engine.act("POST", f"/containers/{id}/{verb}", query)
        except Unchanged:
            raise RuntimeFailure(f"the container {refusal}", Unchanged.code) from None


def read_container(found: dict[str, Any]) -> Container:
    """An inspection as the contract says it; raises Unreadable."""
    try:
        return _read(found)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise Unreadable(f"what the engine says of this container cannot be read: {error!r}") from None


def _read(found: dict[str, Any]) -> Container:
    state, config = found["State"], found["Config"]
    container = Container(
        name=found["Name"].removeprefix("/"),
        id=found["Id"],
        image=config.get("Image") or "",
        image_digest=_digest(found.get("Image") or ""),
        state=STATES.get(state["Status"], state["Status"]),
        exit_code=state.get("ExitCode") or 0,
        restart_count=found.get("RestartCount") or 0,
        labels=config.get("Labels") or {},
    )
    health = (state.get("Health") or {}).get("Status") or ""
    container.health = "" if health == "none" else health
    _set_time(container.created_at, found.get("Created"))
    _set_time(container.started_at, state.get("StartedAt"))
    _set_time(container.finished_at, state.get("FinishedAt"))
    container.as_of.GetCurrentTime()
    return container


def read_events(line: dict[str, Any]) -> list[RuntimeEvent]:
    """The events of one line: a renaming is one for each name, noise is none."""
    action = str(line.get("Action") or line.get("status") or "").partition(":")[0]
    action = ACTIONS.get(action, action)
    if not action or action.startswith(SILENT):
        return []
    marks = (line.get("Actor") or {}).get("Attributes") or {}
    at_ns = int(line.get("timeNano") or line.get("time", 0) * 1_000_000_000)
    names = [marks.get("name", ""), marks.get("oldName", "")]
    id = str((line.get("Actor") or {}).get("ID") or line.get("id") or "")
    said = tuple((key, str(marks[key])) for key in ATTRIBUTES if marks.get(key))
    return [RuntimeEvent(name.removeprefix("/"), action, at_ns, id, said) for name in names if name]


def _digest(image: str) -> str:
    return f"sha256:{image}" if re.fullmatch("[0-9a-f]{64}", image) else image


def _set_time(field: Timestamp, text: str | None) -> None:
    """The year 1 is how engines write never."""
    if text and not text.startswith("0001-"):
        field.FromJsonString(text)


def _seconds(at_ns: int) -> str:
    return f"{at_ns // 1_000_000_000}.{at_ns % 1_000_000_000:09d}"
