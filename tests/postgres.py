"""A PostgreSQL cluster of the tests' own, gone at the end; durable, as in production, unless told otherwise."""

import contextlib
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator

import psycopg

from tests.process import children, free_port, state, wait_until

START_SECONDS = 30


def programs() -> pathlib.Path | None:
    """The folder of the newest installed PostgreSQL server's programs, or None."""
    if found := shutil.which("initdb"):
        return pathlib.Path(found).parent
    installed = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return installed[-1].parent if installed else None


class Cluster:
    """One server with its data in `folder`. Every call waits until it has taken effect."""

    def __init__(self, folder: pathlib.Path, bin_folder: pathlib.Path, durable: bool) -> None:
        self.folder = folder
        self.port = free_port()
        self._durable = durable
        self._bin = bin_folder
        self._data = folder / "data"
        self._numbers = itertools.count(1)
        self._server: subprocess.Popen[bytes] | None = None
        # PostgreSQL refuses to run as root. (Not by Popen's `user`: that would fork, which a process with gRPC in it
        # does not always survive.)
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
            shutil.chown(folder, "postgres", "postgres")

    def create(self) -> None:
        arguments = ["--username=lading", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        command = [*self._as_user, str(self._bin / "initdb"), "-D", str(self._data), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr}")

    def start(self) -> None:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "fsync": "on" if self._durable else "off",
            "synchronous_commit": "on",
            "max_connections": 200,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with open(self.folder / "log", "ab") as log:
            command = [*self._as_user, str(self._bin / "postgres"), "-D", str(self._data), *options]
            self._server = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        wait_until(self._answers, "PostgreSQL answers", START_SECONDS)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT is the fast shutdown, SIGQUIT the immediate one, which leaves recovery to the next start."""
        if self._server is not None:
            self.resume()
            self._server.send_signal(how)
            self._server.wait(START_SECONDS)
            self._server = None

    def kill(self) -> None:
        """SIGKILL to the server and each of its processes at once, as in a crash."""
        if self._server is not None:
            pids = self._signal_all(signal.SIGKILL)
            self._server.wait(START_SECONDS)
            self._server = None
            wait_until(lambda: all(state(pid) in "ZX" for pid in pids), "PostgreSQL's processes are gone")

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def fresh_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"lading_{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql://lading@127.0.0.1:{self.port}/{database}"

    def _signal_all(self, number: signal.Signals) -> list[int]:
        if self._server is None:
            return []
        # The server first, so that it starts no more processes meanwhile.
        server = self._server.pid
        if number is not signal.SIGCONT:
            os.kill(server, signal.SIGSTOP)
            wait_until(lambda: state(server) == "T", "PostgreSQL is stopped")
        pids = [*children(server), server]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    def _answers(self) -> bool:
        if self._server is None or self._server.poll() is not None:
            code = self._server and self._server.returncode
            raise RuntimeError(f"PostgreSQL ended with {code}:\n{(self.folder / 'log').read_text()[-4000:]}")
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextlib.contextmanager
def cluster(durable: bool = True) -> Iterator[Cluster]:
    """A running cluster in a temporary folder; RuntimeError when PostgreSQL is not installed."""
    bin_folder = programs()
    if bin_folder is None:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lading-postgres-"))
    server = Cluster(folder, bin_folder, durable)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)
