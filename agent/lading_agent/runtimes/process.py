"""The runtime `process`: plain supervised processes, for hosts without an engine.

A container is an instance of a declared process: `create` with `spec.image` naming the process makes one. Processes go
on while the agent is away; it takes them up again by number and start time.
"""

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import shutil
import signal
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator
from functools import partial

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from lading.v1.commands_pb2 import ContainerSpec, ExecSpec
from lading.v1.containers_pb2 import LOG_SOURCE_UNSPECIFIED, Container
from lading_agent.errors import RuntimeFailure
from lading_agent.runtimes import LogPiece, LogQuery, Program, RuntimeEvent, Trace, process_log, process_program
from lading_agent.runtimes.declaration import RESTARTS, read_declarations
from lading_agent.runtimes.instance import EXIT_UNKNOWN, Instance, Record, catch_ignored_signals

log = logging.getLogger(__name__)

REMEMBERED_EVENTS = 1024
TOMBSTONE_SECONDS = 7 * 24 * 3600
LOOK_AGAIN_AFTER = 0.1
TRIM_EVERY = 5.0


class ProcessRuntime:
    """Processes of one host, with their records and logs in `folder`; see `Runtime`."""

    def __init__(self, folder: pathlib.Path, declared: pathlib.Path | None = None) -> None:
        self._declarations = read_declarations(declared)
        self._folder = folder / "instances"
        # A removed instance's folder stays here, empty: its time tells when that was.
        self._removed = folder / "removed"
        self._by_name: dict[str, Instance] = {}
        self._by_id: dict[str, Instance] = {}
        self._events: deque[RuntimeEvent] = deque(maxlen=REMEMBERED_EVENTS)
        self._listeners: set[asyncio.Queue[RuntimeEvent]] = set()
        self._trimming: asyncio.Task[None] | None = None

    async def open(self) -> None:
        catch_ignored_signals()
        for folder in (self._folder, self._removed):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in self._removed.iterdir():
            if time.time() - old.stat().st_mtime > TOMBSTONE_SECONDS:
                shutil.rmtree(old)
        for folder in sorted(self._folder.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                # Without a record, its creation was never answered: the name is free.
                text = (folder / "record.json").read_text()
                try:
                    record = Record(**json.loads(text))
                    make_container(record)
                except (ValueError, TypeError) as error:
                    log.error(
                        "%s is no record (%s): container %s is gone, as after a crash of the host",
                        folder / "record.json",
                        error,
                        folder.name,
                    )
                    continue
                instance = self._instance(record)
                self._add(instance)
                instance.adopt()
        for declaration in self._declarations.values():
            if declaration.autocreate and declaration.name not in self._by_name:
                await self.create(declaration.name, ContainerSpec(image=declaration.name))
        self._trimming = asyncio.create_task(self._trim_logs())

    async def _trim_logs(self) -> None:
        """For ever: keep the logs from filling the disk."""
        while True:
            await asyncio.sleep(TRIM_EVERY)
            for instance in list(self._by_name.values()):
                await asyncio.to_thread(process_log.trim, instance.log)

    async def close(self) -> None:
        if self._trimming is not None:
            self._trimming.cancel()
        for instance in self._by_name.values():
            instance.release()

    async def title(self) -> str:
        return "process"

    async def containers(self) -> list[Container]:
        return [make_container(instance.record) for _, instance in sorted(self._by_name.items())]

    async def get(self, name: str) -> Container:
        return make_container(self._named(name).record)

    async def create(self, name: str, spec: ContainerSpec) -> str:
        declaration = self._declarations.get(spec.image)
        if declaration is None:
            declared = ", ".join(sorted(self._declarations)) or "none"
            words = f"no process {spec.image!r} is declared on this host; there are: {declared}"
            raise RuntimeFailure(words, StatusCode.NOT_FOUND)
        if name in self._by_name:
            raise RuntimeFailure(f"the name {name} is in use", StatusCode.ALREADY_EXISTS)
        if spec.command:
            # The file is the list of what may run here; a command from elsewhere would bypass it.
            raise RuntimeFailure("the process runtime runs commands as declared, no others", StatusCode.UNIMPLEMENTED)
        if spec.network not in ("", "host"):
            raise RuntimeFailure("the process runtime has the host's network only", StatusCode.UNIMPLEMENTED)
        if spec.restart and spec.restart not in RESTARTS:
            raise RuntimeFailure(f"restart must be one of {', '.join(RESTARTS)}", StatusCode.INVALID_ARGUMENT)
        record = Record(
            id=uuid.uuid4().hex,
            name=name,
            process=declaration.name,
            digest=declaration.digest,
            labels={**declaration.labels, **spec.labels},
            env=dict(spec.env),
            restart=spec.restart or declaration.restart,
            created_ns=time.time_ns(),
        )
        instance = self._instance(record)
        instance.make()
        self._add(instance)
        self._tell(name, "create")
        return record.id

    async def start(self, id: str) -> None:
        self._find(id).start()

    async def stop(self, id: str, grace: float) -> None:
        await self._find(id).stop(grace)

    async def restart(self, id: str, grace: float) -> None:
        instance = self._find(id)
        if instance.running:
            await instance.stop(grace)
        instance.start()
        self._tell(instance.record.name, "restart")

    async def kill(self, id: str, signal: str) -> None:
        await self._find(id).kill(read_signal(signal))

    async def pause(self, id: str) -> None:
        self._find(id).pause()

    async def unpause(self, id: str) -> None:
        self._find(id).unpause()

    async def remove(self, id: str, force: bool) -> None:
        instance = self._find(id)
        name = instance.record.name
        if instance.running or instance.record.state == "restarting":
            if not force:
                words = f"container {name} is {instance.record.state}: stop it first, or remove it with force"
                raise RuntimeFailure(words, StatusCode.FAILED_PRECONDITION)
            await instance.stop(0)
        tombstone = self._removed / name
        shutil.rmtree(tombstone, ignore_errors=True)
        os.utime(instance.folder)
        # From this line on it is gone.
        instance.folder.rename(tombstone)
        del self._by_name[name], self._by_id[id]
        self._tell(name, "destroy")
        for file in tombstone.iterdir():
            file.unlink()

    async def pull(self, image: str) -> None:
        raise RuntimeFailure("the process runtime has no images to pull", StatusCode.UNIMPLEMENTED)

    async def logs(self, name: str, query: LogQuery) -> AsyncGenerator[LogPiece, None]:
        if query.since_ns or query.timestamps:
            words = "processes write their logs themselves, without times: ask without since and timestamps"
            raise RuntimeFailure(words, StatusCode.UNIMPLEMENTED)
        instance = self._named(name)
        if not (instance.log.exists() or query.follow or query.after):
            return
        id = instance.record.id
        with instance.open_log() as file:
            offset = await asyncio.to_thread(process_log.find_start, file.fileno(), id, query)
            while True:
                # Before reading: what it wrote until its end is then read, too.
                over = not query.follow or not (instance.running or instance.record.state == "restarting")
                if data := process_log.read(file.fileno(), offset):
                    offset += len(data)
                    yield LogPiece(LOG_SOURCE_UNSPECIFIED, data, process_log.position_of(id, offset))
                elif over:
                    return
                else:
                    await asyncio.sleep(LOOK_AGAIN_AFTER)

    async def prepare_program(self, id: str, spec: ExecSpec, command: str) -> str:
        instance = self._find(id)
        if not instance.running:
            raise RuntimeFailure(f"container {instance.record.name} is not running", StatusCode.FAILED_PRECONDITION)
        if instance.declaration is None or not instance.declaration.exec:
            words = f"no other program may run beside {instance.record.process}: it is not declared with exec = true"
            raise RuntimeFailure(words, StatusCode.PERMISSION_DENIED)
        if spec.user:
            raise RuntimeFailure("the process runtime runs everything as its own user", StatusCode.UNIMPLEMENTED)
        return command

    async def start_program(self, id: str, handle: str, spec: ExecSpec) -> Program:
        instance = self._find(id)
        assert instance.declaration is not None, "prepare_program() has seen to it"
        declaration = instance.declaration
        return process_program.start(spec, handle, declaration.cwd, instance.environment(declaration))

    async def trace_program(self, handle: str) -> Trace:
        return process_program.trace(handle)

    async def events(self, since_ns: int) -> AsyncGenerator[RuntimeEvent, None]:
        queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue()
        for event in self._events:
            if event.at_ns >= since_ns:
                queue.put_nowait(event)
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def history(self, name: str, since_ns: int) -> list[RuntimeEvent]:
        events = [event for event in self._events if event.container == name and event.at_ns >= since_ns]
        with contextlib.suppress(FileNotFoundError):
            removed_ns = (self._removed / name).stat().st_mtime_ns
            if removed_ns >= since_ns:
                events.append(RuntimeEvent(name, "destroy", removed_ns))
        return events

    def _instance(self, record: Record) -> Instance:
        declaration = self._declarations.get(record.process)
        return Instance(self._folder / record.name, record, declaration, partial(self._tell, record.name))

    def _add(self, instance: Instance) -> None:
        self._by_name[instance.record.name] = self._by_id[instance.record.id] = instance

    def _named(self, name: str) -> Instance:
        instance = self._by_name.get(name)
        if instance is None:
            raise RuntimeFailure(f"no such container: {name}", StatusCode.NOT_FOUND)
        return instance

    def _find(self, id: str) -> Instance:
        instance = self._by_id.get(id)
        if instance is None:
            raise RuntimeFailure(f"no such container: {id}", StatusCode.NOT_FOUND)
        return instance

    def _tell(self, name: str, action: str) -> None:
        instance = self._by_name.get(name)
        said: tuple[tuple[str, str], ...] = ()
        if action == "die" and instance is not None and instance.record.exit_code != EXIT_UNKNOWN:
            said = (("exitCode", str(instance.record.exit_code)),)
        event = RuntimeEvent(name, action, time.time_ns(), attributes=said)
        self._events.append(event)
        for queue in self._listeners:
            queue.put_nowait(event)


def make_container(record: Record) -> Container:
    container = Container(
        name=record.name,
        id=record.id,
        image=record.process,
        image_digest=record.digest,
        state=record.state,
        exit_code=record.exit_code,
        restart_count=record.restart_count,
        labels=record.labels,
    )
    _set_time(container.created_at, record.created_ns)
    _set_time(container.started_at, record.started_ns)
    _set_time(container.finished_at, record.finished_ns)
    container.as_of.GetCurrentTime()
    return container


def read_signal(text: str) -> signal.Signals:
    """`SIGTERM`, `term` or `15`; raises RuntimeFailure with INVALID_ARGUMENT."""
    try:
        return signal.Signals(int(text)) if text.isdigit() else signal.Signals["SIG" + text.upper().removeprefix("SIG")]
    except (ValueError, KeyError):
        raise RuntimeFailure(f"there is no signal {text!r}", StatusCode.INVALID_ARGUMENT) from None


def _set_time(field: Timestamp, at_ns: int) -> None:
    if at_ns:
        field.FromNanoseconds(at_ns)
