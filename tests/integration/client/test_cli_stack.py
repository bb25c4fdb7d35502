"""The command line against the real server and a real agent."""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from lading_client import Client
from tests.stack import LADING, Stack

SLEEP = ["/bin/sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 1 & wait $!; done"]


@pytest.fixture
def running(stack: Stack) -> Stack:
    """A server, and an agent with two containers, neither started."""
    stack.start_server()
    stack.start_agent("dock-1", processes={"web": SLEEP, "api": SLEEP})
    return stack


def test_a_stop_is_found_in_the_log_with_who_what_why_and_how(running: Stack) -> None:
    assert running.lading("start", "dock-1/web", "--reason", "release").returncode == 0
    done = running.lading("stop", "web", "--reason", "INC-527 mitigation", "-o", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (result,) = document["results"]
    command = result["command"].removeprefix("commands/")

    (event,) = json.loads(running.lading("audit", "ls", f"cmd:{command}", "-o", "json").stdout)
    assert event["actor"]["id"] == "ada"
    assert event["action"] == "container.stop"
    assert event["targets"] == [{"type": "container", "id": "dock-1/web"}]
    assert event["reason"] == "INC-527 mitigation"
    assert event["outcome"] == "OUTCOME_SUCCESS"
    stages = [
        json.loads(line)["stage"]
        for line in running.lading(
            "audit", "ls", f"corr:{document['correlation_id']}", "action:stop", "--all", "-o", "jsonl"
        ).stdout.splitlines()
    ]
    assert stages.count("STAGE_RECEIVED") == 1
    shown = running.lading("audit", "show", event["id"]).stdout
    assert "received" in shown
    assert "INC-527 mitigation" in shown


def test_many_at_once_by_agent(running: Stack) -> None:
    done = running.lading("start", "--agent", "dock-1", "--all", "--yes")
    assert done.returncode == 0, done.stderr
    assert running.lading("ps", "-q").stdout.split() == ["dock-1/api", "dock-1/web"]
    again = running.lading("start", "--agent", "dock-1", "--all", "--yes")
    assert again.returncode == 0
    assert again.stdout.count("already started") == 2
    assert running.lading("start", "--agent", "dock-1", "--all", "--yes", "--strict").returncode == 9


def test_detach_then_wait(running: Stack) -> None:
    done = running.lading("start", "dock-1/web", "--detach", "-o", "json")
    command = json.loads(done.stdout)["results"][0]["command"]
    waited = running.lading("commands", "wait", command, "--timeout", "30s")
    assert waited.returncode == 0, waited.stderr
    assert "SUCCEEDED" in waited.stdout
    assert running.lading("commands", "cancel", command).returncode == 9


def test_ctrl_c_leaves_the_command_and_names_it(stack: Stack) -> None:
    stack.start_server()
    stack.start_agent("dock-1", processes={"mule": ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"]})
    assert stack.lading("start", "dock-1/mule").returncode == 0
    process = subprocess.Popen(
        [LADING, "stop", "mule", "--grace", "4s"],
        env={**os.environ, "LADING_SERVER": stack.address, "LADING_TOKEN": stack.admin_token},
        stderr=subprocess.PIPE,
        text=True,
    )
    command = ""
    while not command:
        listed = stack.lading("commands", "ls", "--container", "dock-1/mule", "--state", "acknowledged", "-q")
        command = listed.stdout.strip()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"Stopped waiting. The command goes on: lading commands wait {command}" in err
    assert stack.lading("commands", "wait", command).returncode == 0
    assert json.loads(stack.lading("inspect", "mule").stdout)["state"] == "exited"


def test_refusals_have_their_exit_codes(running: Stack) -> None:
    assert running.lading("start", "dock-9/web").returncode == 4
    assert running.lading("start", "dock-1/nothing").returncode == 4
    assert running.lading("start", "nothing").returncode == 4
    assert running.lading("stop", "dock-1/web", "--strict").returncode == 9
    assert running.lading("ps", token="not.a.token").returncode == 6
    viewer = running.issue_token("bob")
    assert running.lading("stop", "dock-1/web", token=viewer).returncode == 5
    assert running.lading("stop", "dock-1/web", "--reason", "x" * 2000).returncode == 2


def test_an_agent_that_is_gone_is_unavailable(running: Stack) -> None:
    running.processes[-1].terminate()
    assert running.lading("start", "dock-1/web").returncode == 7


def test_export_is_whole_and_itself_recorded(running: Stack, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "audit.jsonl"
    done = running.lading("audit", "export", "--out", str(out), "--reason", "review")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in out.read_text().splitlines()]
    indexes = [int(event["index"]) for event in events]
    assert indexes == sorted(indexes, reverse=True)
    assert indexes[-1] == 0
    assert "audit.export" in running.lading("audit", "ls", "action:audit.export", "-o", "csv").stdout


def test_a_cursor_reads_on(running: Stack) -> None:
    for _ in range(3):
        running.lading("whoami")
    first = running.lading("audit", "ls", "action:access.whoami", "--since", "1h", "--limit", "2", "-o", "name")
    assert first.stderr.startswith("more: lading audit ls action:access.whoami --since ")
    again = first.stderr.strip().removeprefix("more: lading ").split()
    second = running.lading(*again)
    assert second.returncode == 0, second.stderr
    assert len({*first.stdout.split(), *second.stdout.split()}) == 3


def test_a_service_records_and_tails(running: Stack) -> None:
    with Client(running.address, token=running.admin_token, source="tests") as lading:
        first = lading.record("project.create", ["project:p"], reason="new")
        change = {"op": "replace", "path": "/state", "value": "done", "was": "open"}
        lading.record("task.update", ["task:42"], diff=[change])
        tail = lading.tail(from_index=first)
        seen = {}
        while "task.update" not in seen:
            event = next(tail)
            seen[event.action] = event
    assert seen["project.create"].reason == "new"
    assert seen["task.update"].actor.id == "ada"


def test_tokens_roles_and_logs(running: Stack) -> None:
    done = running.lading("token", "create", "bob", "--email", "bob@acme.example", "--role", "viewer")
    assert done.returncode == 0, done.stderr
    bob = done.stdout.strip()
    assert "viewer" in running.lading("whoami", token=bob).stdout
    assert "bob" in running.lading("role", "ls").stdout
    assert running.lading("role", "remove", "bob", "viewer").returncode == 0
    assert running.lading("ps", token=bob).returncode == 5
    token = json.loads(running.lading("token", "ls", "-o", "json").stdout)[0]
    assert running.lading("token", "revoke", token["id"]).returncode == 0
    assert running.lading("ps", token=bob).returncode == 6

    assert running.lading("start", "dock-1/web").returncode == 0
    deadline = time.monotonic() + 20
    while running.lading("logs", "web").stdout != "up\n":
        assert time.monotonic() < deadline
    assert running.lading("doctor").returncode == 0
