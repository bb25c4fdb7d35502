"""`--wave` and `lading rollouts` against the real server and a real agent."""

import json
import os
import subprocess
import sys

import pytest

from tests.integration.client.conftest import PATIENT
from tests.stack import LADING, Stack

SLEEP = ["/bin/sh", "-c", "while :; do sleep 1 & wait $!; done"]
NAMES = [f"web-{number}" for number in range(5)]
ALL = ("--agent", "dock-1", "--all", "--yes")


@pytest.fixture
def running(stack: Stack) -> Stack:
    """A server, and an agent with five containers, none started."""
    stack.start_server()
    stack.start_agent("dock-1", processes=dict.fromkeys(NAMES, SLEEP))
    return stack


def test_rollout_starts_all_in_waves_and_is_found_again(running: Stack) -> None:
    planned = running.lading("start", *ALL, "--wave", "1,60%", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "wave 1: start 1 container\n  dock-1/web-0\nwave 2: start 2 containers" in planned.stdout
    assert running.lading("ps", "-q").stdout == ""

    done = running.lading("start", *ALL, "--wave", "1,60%", "--reason", "release 1.31")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "✓ SUCCEEDED  5 of 5 done" in done.stdout
    assert len(running.lading("ps", "-q").stdout.split()) == 5
    (rollout,) = json.loads(running.lading("rollouts", "ls", "-o", "json").stdout)
    assert (rollout["wave_ends"], rollout["reason"]) == ([1, 3, 5], "release 1.31")
    id = rollout["name"].removeprefix("rollouts/")
    typed = {"_LADING_COMPLETE": "bash_complete", "COMP_WORDS": "lading rollouts watch ", "COMP_CWORD": "3"}
    own = {"LADING_SERVER": running.address, "LADING_TOKEN": running.admin_token, "HOME": str(running.folder)}
    environment = {"PATH": os.environ["PATH"], **own, **typed}
    completed = subprocess.run([sys.executable, "-c", PATIENT], env=environment, capture_output=True)
    assert completed.stdout.decode().split() == [f"plain,{id}"]
    assert "RESTART" not in running.lading("rollouts", "ls").stdout
    targets = running.lading("rollouts", "targets", id).stdout
    assert targets.count("✓ SUCCEEDED") == 5
    assert running.lading("rollouts", "watch", id).returncode == 0
    found = running.lading("audit", "ls", "action:rollout.run", "-o", "json")
    assert json.loads(found.stdout)[0]["targets"] == [{"type": "rollout", "id": id}]


def test_options_that_would_do_nothing_are_refused(running: Stack) -> None:
    for options in (("--max-failures", "2"), ("--soak", "1s"), ("--stop-on-breach",), ("--wave", "1", "--fail-fast")):
        done = running.lading("restart", *ALL, *options)
        assert done.returncode == 2, options
        assert "--wave" in done.stderr
    assert "Make one: lading restart" in running.lading("rollouts", "ls").stderr
    unknown = "0198c2de-0000-7000-8000-000000000000"
    assert f"there is no rollout {unknown} in" in running.lading("rollouts", "pause", unknown).stderr
    assert f"there is no command {unknown} in" in running.lading("commands", "wait", unknown).stderr


def test_too_many_failures_pause_it_and_it_can_be_ended_and_retried(running: Stack) -> None:
    assert running.lading("start", "dock-1/web-0", "dock-1/web-1", "--yes").returncode == 0
    done = running.lading("start", *ALL, "--wave", "2,100%", "--max-failures", "1")
    assert done.returncode == 3
    assert "‖ PAUSED (2 failed, 1 were allowed)" in done.stdout
    assert "dock-1/web-0  ✗ FAILED" in done.stdout
    id = running.lading("rollouts", "ls", "-q").stdout.strip()
    assert f"lading rollouts resume {id}" in done.stderr
    assert running.lading("rollouts", "retry", id).returncode == 9
    assert running.lading("rollouts", "stop", id, "--reason", "wrong").returncode == 0
    assert running.lading("stop", "dock-1/web-0", "dock-1/web-1", "--yes").returncode == 0
    again = running.lading("rollouts", "retry", id)
    assert again.returncode == 0, again.stderr + again.stdout
    assert len(running.lading("ps", "-q").stdout.split()) == 5


def test_watch_says_that_the_server_is_away_and_goes_on(stack: Stack) -> None:
    server = stack.start_server()
    stack.start_agent("dock-1", processes=dict.fromkeys(NAMES, SLEEP))
    assert stack.lading("start", *ALL, "--wave", "1,100%", "--soak", "1h", "--detach").returncode == 0
    id = stack.lading("rollouts", "ls", "-q").stdout.strip()
    own = {"LADING_SERVER": stack.address, "LADING_TOKEN": stack.admin_token, "HOME": str(stack.folder)}
    environment = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **own}
    with subprocess.Popen(
        [LADING, "rollouts", "watch", id], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        try:
            assert watching.stdout is not None
            assert watching.stderr is not None
            while "wave 1 of 2" not in watching.stdout.readline():
                assert watching.poll() is None
            server.kill()
            said = watching.stderr.readline()
            assert said == "The connection is lost (UNAVAILABLE), going on as soon as there is one.\n"
            stack.start_server()
            assert stack.lading("rollouts", "stop", id).returncode == 0
            shown, said = watching.communicate(timeout=30)
        finally:
            watching.kill()
    assert watching.returncode == 3
    assert "○ STOPPED" in shown
    assert said == f"Again for those that did not succeed: lading rollouts retry {id}\n"
