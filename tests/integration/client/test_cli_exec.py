"""`lading exec` and `lading logs` as people run them: real processes, a real terminal, and connections that break."""

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import random
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator

import pytest

from tests.process import wait_until
from tests.stack import LADING, Stack

LINES = 20_000
WRITER = f"seq -f 'line %.0f {'x' * 100}' {LINES}; exec sleep 1000"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("exec")) as stack:
        stack.start_server("--record-exec-bytes", "100")
        stack.start_agent(processes={"web": ["sleep", "1000"], "writer": ["sh", "-c", WRITER], "idle": ["sleep", "9"]})
        for container in ("web", "writer"):
            assert stack.lading("start", f"dock-1/{container}").returncode == 0
        yield stack


def environment(stack: Stack, server: str = "") -> dict[str, str]:
    own = {"LADING_SERVER": server or stack.address, "LADING_TOKEN": stack.admin_token, "HOME": str(stack.folder)}
    return {"PATH": os.environ["PATH"], "TERM": "xterm", **own}


def run(stack: Stack, *arguments: str, data: bytes = b"", server: str = "") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [LADING, *arguments], input=data, capture_output=True, env=environment(stack, server), timeout=60
    )


def test_exit_code_and_outputs_are_the_programs(stack: Stack) -> None:
    done = run(stack, "exec", "dock-1/web", "--reason", "INC-1", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    (event,) = events(stack, "reason:INC-1 -status:PENDING")
    assert event["details"]["exec"]["output_head"] == "out\nerr\n"
    assert event["details"]["exec"]["exit_code"] == 7
    shown = run(stack, "audit", "show", str(event["id"])).stdout.decode()
    assert "command line  sh -c 'echo out; echo err >&2; exit 7'\n" in shown


def events(stack: Stack, query: str) -> list[dict[str, dict[str, dict[str, object]]]]:
    done = run(stack, "audit", "ls", f"action:container.exec {query}", "-o", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, dict[str, dict[str, object]]]] = json.loads(done.stdout)
    return found


def test_without_dashes_all_behind_the_target_is_the_programs(stack: Stack) -> None:
    done = run(stack, "exec", "-e", "MODE=fast", "web", "sh", "-c", "echo $MODE -t")
    assert (done.returncode, done.stdout) == (0, b"fast -t\n")


def test_standard_input_of_any_size_is_piped_through(stack: Stack) -> None:
    data = random.Random(1).randbytes(3_000_000)
    done = run(stack, "exec", "-i", "dock-1/web", "--", "cat", data=data)
    assert (done.returncode, done.stdout == data) == (0, True)


def test_what_cannot_be_run_ends_like_in_a_shell(stack: Stack) -> None:
    done = run(stack, "exec", "dock-1/web", "--", "/nowhere/program")
    assert done.returncode == 127
    assert b"/nowhere/program" in done.stderr
    assert run(stack, "exec", "dock-1/idle", "--", "true").returncode == 9, "it does not run"
    assert run(stack, "exec", "-it", "dock-1/web", "--", "sh").returncode == 2, "no terminal"
    assert run(stack, "exec", "dock-1/web").returncode == 2


def test_program_whose_time_is_over_has_ended_and_nothing_is_waited_for(stack: Stack) -> None:
    done = run(stack, "exec", "--within", "5s", "dock-1/web", "--", "sleep", "100")
    assert done.returncode == 129
    assert b"not done within 5 s; it was hung up, and ended with 129" in done.stderr
    assert b"may still finish" not in done.stderr


class Terminal:
    """`lading` on a terminal of its own."""

    def __init__(self, stack: Stack, *arguments: str) -> None:
        self._main, slave = pty.openpty()
        self.resize(30, 90)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [LADING, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(stack),
            start_new_session=True,
        )
        self.output = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self._main, text)

    def until(self, text: bytes) -> None:
        deadline = time.monotonic() + 60
        while text not in self.output:
            ready, _, _ = select.select([self._main], [], [], max(0, deadline - time.monotonic()))
            assert ready, self.output
            self.output += os.read(self._main, 65536)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self._main)


@pytest.fixture
def shell(stack: Stack) -> Iterator[Terminal]:
    terminal = Terminal(stack, "exec", "-it", "dock-1/web", "--", "sh")
    yield terminal
    terminal.close()


def test_terminal_is_the_programs_with_its_sizes_and_ctrl_c(shell: Terminal) -> None:
    shell.type(b"stty size; echo begin\r")
    shell.until(b"30 90")
    shell.resize(44, 111)
    shell.process.send_signal(signal.SIGWINCH)
    shell.type(b"while [ \"$(stty size)\" != '44 111' ]; do sleep 0.05; done; echo resi''zed\r")
    shell.until(b"resized")
    shell.type(b"sh -c \"echo sleep''ing; exec sleep 1000\"\r")
    shell.until(b"sleeping")
    assert termios.tcgetattr(shell.slave) != shell.before, "raw"
    shell.type(b"\x03")
    shell.type(b"echo go''es on\r")
    shell.until(b"goes on")
    shell.type(b"exit 5\r")
    assert shell.process.wait(20) == 5
    assert termios.tcgetattr(shell.slave) == shell.before, "as it was"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminal_is_as_it_was_also_when_it_is_told_to_end(shell: Terminal, number: signal.Signals) -> None:
    shell.type(b"echo be''gun\r")
    shell.until(b"begun")
    assert termios.tcgetattr(shell.slave) != shell.before, "raw"
    shell.process.send_signal(number)
    assert shell.process.wait(20) == 128 + number
    assert termios.tcgetattr(shell.slave) == shell.before, "as it was"


def test_program_is_hung_up_when_the_terminal_goes_away(stack: Stack, shell: Terminal) -> None:
    shell.type(b"echo hang''ing; sleep 1000\r")
    shell.until(b"hanging")
    shell.process.kill()

    def settled() -> bool:
        found = run(stack, "commands", "ls", "-o", "json")
        return bool(json.loads(found.stdout)[0]["state"] == "COMMAND_STATE_CANCELLED")

    wait_until(settled, "the session is over")


class Breaking:
    """A proxy of the server whose connections break after a random number of bytes, with and without a word."""

    def __init__(self, address: str, seed: int) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._chance = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.breaks = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(caller,), daemon=True).start()

    def _carry(self, caller: socket.socket) -> None:
        with caller, socket.create_connection(self._target) as server:
            left = self._chance.randint(150_000, 600_000)
            while True:
                ready, _, _ = select.select([caller, server], [], [])
                for source in ready:
                    try:
                        data = source.recv(8192)
                    except ConnectionError:
                        return
                    if not data:
                        return
                    if source is server:
                        left -= len(data)
                    if left < 0:
                        self.breaks += 1
                        if self.breaks == 1:
                            # What is on its way arrives: a log of which nothing came is not gone on with.
                            with contextlib.suppress(OSError):
                                caller.shutdown(socket.SHUT_WR)
                                while caller.recv(8192):
                                    pass
                            return
                        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return
                    with contextlib.suppress(OSError):
                        (caller if source is server else server).sendall(data)


def expected() -> bytes:
    return "".join(f"line {number} {'x' * 100}\n" for number in range(1, LINES + 1)).encode()


@pytest.mark.parametrize("seed", [1, 2])
def test_log_over_a_line_that_breaks_again_and_again_is_the_log(stack: Stack, seed: int) -> None:
    breaking = Breaking(stack.address, seed)
    done = run(stack, "logs", "dock-1/writer", server=breaking.address)
    breaking.close()
    assert (done.returncode, breaking.breaks > 2) == (0, True), done.stderr
    assert done.stdout == expected()
    assert b"going on" in done.stderr


def test_follow_goes_on_over_restarts_of_the_server_and_of_the_agent(tmp_path: pathlib.Path) -> None:
    script = 'i=0; while true; do i=$((i+1)); echo "line $i"; sleep 0.01; done'
    with Stack(tmp_path) as stack, open(tmp_path / "log", "wb") as output:
        server = stack.start_server()
        agent = stack.start_agent(processes={"web": ["sh", "-c", script]})
        assert stack.lading("start", "dock-1/web").returncode == 0
        follower = subprocess.Popen([LADING, "logs", "-f", "dock-1/web"], stdout=output, env=environment(stack))
        try:

            def lines() -> list[str]:
                return (tmp_path / "log").read_text().splitlines()

            wait_until(lambda: len(lines()) > 20, "it is followed")
            server.kill()
            stack.start_server()
            seen = len(lines())
            wait_until(lambda: len(lines()) > seen + 20, "it goes on with the new server", 40)
            agent.kill()
            stack.start_agent(processes={"web": ["sh", "-c", script]})
            seen = len(lines())
            wait_until(lambda: len(lines()) > seen + 20, "it goes on with the new agent", 40)
            found = lines()[:-1]
            assert found == [f"line {number}" for number in range(1, len(found) + 1)]
        finally:
            follower.kill()
            follower.wait()
