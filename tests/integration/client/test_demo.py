"""The demo, as people run it."""

import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.engine import Engine
from tests.process import children, kill_those_with
from tests.stack import LADING

LIMIT = 110  # seconds; a machine may be busy with other tests


@pytest.fixture
def environment(tmp_path: pathlib.Path) -> dict[str, str]:
    """Without an engine, and without anything of who runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LADING_")}
    return {**inherited, "DOCKER_HOST": f"unix://{tmp_path}/none.sock", "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}


def smoke(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LADING, "demo", "--smoke"], env=environment, capture_output=True, text=True, timeout=LIMIT)


def test_without_an_engine_it_works_with_processes(environment: dict[str, str], tmp_path: pathlib.Path) -> None:
    done = smoke(environment)
    assert done.returncode == 0, done.stderr
    assert "both agents run plain processes" in done.stderr
    assert "as they should be" in done.stdout
    assert not list(tmp_path.glob("lading-demo-*"))


def test_with_an_engine_it_works_with_containers(environment: dict[str, str], engine: Engine) -> None:
    before = engine.request("GET", "/containers/json?all=1"), engine.request("GET", "/images/json")
    done = smoke({**environment, "DOCKER_HOST": engine.url})
    assert done.returncode == 0, done.stderr
    assert "dock-1 runs containers of the engine" in done.stderr
    assert (engine.request("GET", "/containers/json?all=1"), engine.request("GET", "/images/json")) == before


Demo = tuple["subprocess.Popen[str]", list[str]]


@pytest.fixture
def demo(environment: dict[str, str], tmp_path: pathlib.Path) -> Iterator[Demo]:
    """A demo that is ready, and the lines it has printed."""
    with open(tmp_path / "stderr", "w") as stderr:
        process = subprocess.Popen(
            [LADING, "demo", "--data", str(tmp_path / "demo")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(3)]
    yield process, lines
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    kill_those_with("HOME", str(tmp_path))  # what an agent that was killed had running


def test_it_says_how_to_look_to_try_and_to_stop(demo: Demo, tmp_path: pathlib.Path) -> None:
    process, (viewer, attempt, stop) = demo
    assert re.match(r"Viewer +http://127\.0\.0\.1:\d+/signin\?code=\S+", viewer), (tmp_path / "stderr").read_text()
    assert "Ctrl-C" in stop
    command = attempt.partition(" ")[2].strip()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "stopped" in done.stdout
    started = children(process.pid)
    assert len(started) == 4
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in started)
    assert (tmp_path / "demo" / "server" / "lading.db").exists()


def test_a_process_that_dies_is_said(demo: Demo, tmp_path: pathlib.Path) -> None:
    process, _ = demo
    agent = next(pid for pid in children(process.pid) if b"dock-2" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(agent, signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(LIMIT) == 1
    assert time.monotonic() - began < LIMIT
    assert "The dock-2 ended with exit code -9." in (tmp_path / "stderr").read_text()
