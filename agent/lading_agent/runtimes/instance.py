"""One supervised process: its record on disk and its life in the kernel. It outlives the agent."""

import asyncio
import contextlib
import functools
import json
import logging
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO

from grpc import StatusCode

from lading_agent.errors import RuntimeFailure
from lading_agent.runtimes.declaration import Declaration

log = logging.getLogger(__name__)

# Its end was not seen, as containerd says it.
EXIT_UNKNOWN = 255
MARK = "LADING_CONTAINER"
# Of the agent's own environment a process gets no more than this: the rest may hold the agent's token.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
RESTART_AFTER = 0.1
RESTART_AFTER_MAX = 60.0
GOOD_AFTER_NS = 10_000_000_000


@dataclass(frozen=True)
class Record:
    """What is kept of an instance. Times in nanoseconds since 1970; `pid_born` and `boot` tell a process from a later
    one with its number."""

    id: str
    name: str
    process: str
    digest: str
    labels: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    restart: str = "no"
    state: str = "created"
    created_ns: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    exit_code: int = 0
    restart_count: int = 0
    # It should run: only a stop or a kill ends this.
    wanted: bool = False
    spawning: bool = False
    pid: int = 0
    pid_born: int = 0
    boot: str = ""


class Instance:
    """`tell` hears what happens to it, in the words of Docker's events."""

    def __init__(
        self, folder: pathlib.Path, record: Record, declaration: Declaration | None, tell: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.record = record
        self.ended = asyncio.Event()
        self.ended.set()
        self.declaration = declaration
        self._tell = tell
        self._watched = -1
        self._again: asyncio.TimerHandle | None = None
        self._fast_failures = 0

    @property
    def log(self) -> pathlib.Path:
        return self.folder / "log"

    def open_log(self) -> BinaryIO:
        """For reading; made if it is not there yet."""
        self.log.touch(0o600)
        return open(self.log, "rb")

    @property
    def running(self) -> bool:
        return self.record.state in ("running", "paused")

    def make(self) -> None:
        """Its folder and its first record; raises RuntimeFailure when the disk refuses."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise self._refusal(error) from None
        self.save()

    def save(self, **changes: Any) -> None:
        """Change the record, before what it says is done. A crash of the host may lose it, and then the process too.
        Raises RuntimeFailure when the disk refuses, and then nothing has changed."""
        record = replace(self.record, **changes)
        try:
            self._write(record)
        except OSError as error:
            raise self._refusal(error) from None
        self.record = record

    def note(self, **changes: Any) -> None:
        """Change the record after it was done, which it is though the disk refuses: then the next change brings it
        there, or a later life of the agent asks the kernel."""
        self.record = replace(self.record, **changes)
        try:
            self._write(self.record)
        except OSError as error:
            log.error("container %s: cannot write its record: %s", self.record.name, error.strerror)

    def _write(self, record: Record) -> None:
        draft = self.folder / "record.new"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(record), file)
        draft.replace(self.folder / "record.json")

    def _refusal(self, error: OSError) -> RuntimeFailure:
        words = f"cannot write the record of {self.record.name} in {self.folder}: {error.strerror}; nothing was done"
        return RuntimeFailure(words, StatusCode.RESOURCE_EXHAUSTED)

    def start(self) -> None:
        """Spawn it; raises RuntimeFailure when it runs, is not declared any more, or cannot be executed."""
        if self.running:
            raise RuntimeFailure(f"container {self.record.name} is already running", StatusCode.FAILED_PRECONDITION)
        self._give_up_restart()
        self._spawn()
        self._fast_failures = 0

    async def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds; done when the process has ended."""
        if self._again is not None:
            self.save(state="exited", wanted=False)
            self._give_up_restart()
            self._tell("stop")
            return
        if not self.running:
            raise RuntimeFailure(f"container {self.record.name} is not running", StatusCode.FAILED_PRECONDITION)
        self.save(wanted=False)
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(grace):
                await self.ended.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self.ended.wait()
        self._tell("stop")

    async def kill(self, number: signal.Signals) -> None:
        """Send it; after SIGKILL, done when the process has ended."""
        if not self.running:
            raise RuntimeFailure(f"container {self.record.name} is not running", StatusCode.FAILED_PRECONDITION)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.save(wanted=False)
        self._signal(number)
        self._tell("kill")
        if number == signal.SIGKILL:
            await self.ended.wait()

    def pause(self) -> None:
        if self.record.state != "running":
            words = f"container {self.record.name} is {self.record.state}, not running"
            raise RuntimeFailure(words, StatusCode.FAILED_PRECONDITION)
        self._signal(signal.SIGSTOP)
        self.note(state="paused")
        self._tell("pause")

    def unpause(self) -> None:
        if self.record.state != "paused":
            raise RuntimeFailure(f"container {self.record.name} is not paused", StatusCode.FAILED_PRECONDITION)
        self._signal(signal.SIGCONT)
        self.note(state="running")
        self._tell("unpause")

    def adopt(self) -> None:
        """Take up again what an earlier life of the agent left."""
        if self.record.spawning:
            # That life ended between spawning it and writing down its number: its mark tells.
            pid = find_marked(self.record.id)
            alive = {"state": "running", "started_ns": time.time_ns(), "pid": pid, "pid_born": born(pid) or 0}
            self.note(spawning=False, **(alive if pid else {}))
        if self.record.state == "restarting":
            self._restart_later()
        elif self.running:
            self._watch()

    def release(self) -> None:
        """Watch it no more; it goes on."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
            self._watched = -1

    def environment(self, declaration: Declaration) -> dict[str, str]:
        """What its programs find, but for its mark, by which the process itself is found."""
        inherited = {key: os.environ[key] for key in INHERITED if key in os.environ}
        return {**inherited, **declaration.env, **self.record.env}

    def _spawn(self) -> None:
        declaration = self.declaration
        if declaration is None:
            words = f"no process {self.record.process!r} is declared any more: add it to the file of processes"
            raise RuntimeFailure(words, StatusCode.FAILED_PRECONDITION)
        env = {**self.environment(declaration), MARK: self.record.id}
        before = self.record
        self.save(spawning=True, wanted=True, boot=boot_id())
        try:
            with open(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
                process = subprocess.Popen(
                    declaration.command,
                    cwd=declaration.cwd or None,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            self.note(spawning=False, wanted=False, state="exited" if before.started_ns else "created")
            words = f"cannot run {declaration.command[0]!r}: {error.strerror}"
            raise RuntimeFailure(words, StatusCode.FAILED_PRECONDITION) from None
        # It is waited for here, by its number: Popen must not complain that it is left alone.
        process.returncode = 0
        pid = process.pid
        alive = {"state": "running", "started_ns": time.time_ns(), "exit_code": 0}
        self.note(spawning=False, pid=pid, pid_born=born(pid) or 0, **alive)
        self._watch()
        self._tell("start")

    def _watch(self) -> None:
        """Learn of its end from the kernel, be it a child of this process or not."""
        self.ended.clear()
        pid = self.record.pid
        with contextlib.suppress(ProcessLookupError):
            self._watched = os.pidfd_open(pid)
        if self._watched >= 0 and self.record.boot == boot_id() and born(pid) == self.record.pid_born:
            asyncio.get_running_loop().add_reader(self._watched, lambda: self._end(reap(pid)))
        else:
            self._end(EXIT_UNKNOWN)

    def _end(self, code: int) -> None:
        self.release()
        ran_ns = time.time_ns() - self.record.started_ns
        again = self.record.wanted and (
            self.record.restart in ("always", "unless-stopped") or (self.record.restart == "on-failure" and code != 0)
        )
        self._fast_failures = 0 if ran_ns > GOOD_AFTER_NS else self._fast_failures + 1
        state = "restarting" if again else "exited"
        self.note(state=state, exit_code=code, finished_ns=time.time_ns(), pid=0, wanted=again)
        self.ended.set()
        self._tell("die")
        if again:
            self._restart_later()

    def _restart_later(self) -> None:
        seconds = min(RESTART_AFTER_MAX, RESTART_AFTER * 2 ** min(self._fast_failures, 16))
        self._again = asyncio.get_running_loop().call_later(seconds, self._restart)

    def _restart(self) -> None:
        self._again = None
        try:
            self.save(restart_count=self.record.restart_count + 1)
            self._spawn()
        except RuntimeFailure as error:
            log.error("container %s is not restarted: %s", self.record.name, error)
            if error.code == StatusCode.RESOURCE_EXHAUSTED:
                # There may be room again.
                self._fast_failures += 1
                self._restart_later()
                return
            self.note(state="exited", wanted=False)
            self._tell("die")

    def _give_up_restart(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _signal(self, number: signal.Signals) -> None:
        """To its whole group; while the record has a number, that is its own. Without one it has ended, and 0 would be
        the agent's own group."""
        if self.record.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.record.pid, number)


def catch_ignored_signals() -> None:
    """Whoever started the agent may have it ignore signals: `nohup` SIGHUP, a shell SIGINT and SIGQUIT of what it puts
    into the background. Programs would inherit that, and not what is caught; caught and dropped, they still do nothing
    to the agent. Python's own (SIGPIPE, SIGXFSZ) Popen restores."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


def reap(pid: int) -> int:
    """The exit code of a process that has ended, 128 + n for signal n, as shells say it; 255 when it was no child."""
    try:
        # Its zombie still holds the number: what it left in its group can be ended without hitting another's.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return EXIT_UNKNOWN
    return code if code >= 0 else 128 - code


def born(pid: int) -> int | None:
    """When it started, in clock ticks since boot (proc(5), field 22); None when it is gone."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


@functools.cache
def boot_id() -> str:
    """Changes with each boot of the host."""
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def find_marked(id: str) -> int:
    """The session leader that carries the mark of this instance, or 0."""
    mark = f"{MARK}={id}".encode()
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(folder.name)
            if mark in (folder / "environ").read_bytes().split(b"\0") and os.getsid(pid) == pid:
                return pid
    return 0
