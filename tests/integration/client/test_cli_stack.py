"""The command line against the real server and a real agent."""

import base64
import json
import os
import pathlib
import re
import signal
import subprocess
import time
from importlib import metadata

import pytest

from lading.transparency import note
from lading.transparency.result import InvalidResult, Statement, verify_result
from lading.v1 import audit_log_pb2
from lading_client import Client
from tests.process import wait_until
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


def test_ctrl_c_leaves_the_command_and_names_it(stack: Stack, tmp_path: pathlib.Path) -> None:
    stack.start_server()
    ready, over = tmp_path / "ready", tmp_path / "over"
    script = f"trap '' TERM; touch '{ready}'; while [ ! -e '{over}' ]; do sleep 0.1; done"
    stack.start_agent("dock-1", processes={"mule": ["/bin/sh", "-c", script]})
    assert stack.lading("start", "dock-1/mule").returncode == 0
    wait_until(ready.exists, "the mule is deaf")
    process = subprocess.Popen(
        [LADING, "stop", "mule", "--grace", "100s"],
        env={**os.environ, "LADING_SERVER": stack.address, "LADING_TOKEN": stack.admin_token},
        stderr=subprocess.PIPE,
        text=True,
    )

    def acknowledged() -> str:
        listed = stack.lading("commands", "ls", "--container", "dock-1/mule", "--state", "acknowledged", "-q")
        return listed.stdout.strip()

    wait_until(acknowledged, "the agent has the command")
    command = acknowledged()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"Stopped waiting. The command goes on: lading commands wait {command}" in err
    over.touch()
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


def test_an_agent_that_is_gone_is_unavailable_and_is_asked_once(running: Stack) -> None:
    running.processes[-1].terminate()
    assert running.lading("start", "dock-1/web").returncode == 7
    refused = running.lading("audit", "ls", "action:container.start", "--all", "-o", "jsonl").stdout.splitlines()
    assert len(refused) == 1, "the server says that it is of no use to try again at once"


def test_result_is_signed_by_its_agent_and_the_log_keeps_the_signature(running: Stack) -> None:
    done = running.lading("start", "dock-1/web", "-o", "json")
    command = json.loads(done.stdout)["results"][0]["command"].removeprefix("commands/")
    with Client(running.address, token=running.admin_token) as lading:
        wanted = audit_log_pb2.EventFilter(
            matches=[audit_log_pb2.Match(field=audit_log_pb2.FIELD_OPERATION, values=[command])]
        )
        request = audit_log_pb2.ListEventsRequest(filter=wanted, with_entries=True)
        end = lading.audit.ListEvents(request).events[0]
    kept = json.loads(end.entry_details)["agent_signature"]
    assert kept["key"].startswith("acme/dock-1+")
    signature, key = base64.b64decode(kept["signature"]), note.parse_key(kept["key"])
    verify_result(Statement(**kept["signed"]), signature, key)
    with pytest.raises(InvalidResult):
        verify_result(Statement(**{**kept["signed"], "state": "FAILED"}), signature, key)


def test_program_that_ends_by_itself_is_an_event_and_what_commands_do_is_none(stack: Stack) -> None:
    stack.start_server()
    stack.start_agent("dock-1", processes={"web": SLEEP, "short": ["/bin/sh", "-c", "sleep 1; exit 3"]})
    assert stack.lading("start", "dock-1/web").returncode == 0
    assert stack.lading("start", "dock-1/short").returncode == 0
    assert stack.lading("stop", "dock-1/web").returncode == 0
    shown = ""
    deadline = time.monotonic() + 60
    while "dock-1/short" not in shown:
        assert time.monotonic() < deadline
        shown = stack.lading("events").stdout
    assert [line.split()[1:3] for line in shown.splitlines()[1:]] == [["dock-1/short", "die"]]
    found = json.loads(stack.lading("agents", "inspect", "dock-1").stdout)
    assert (found["connected"], found["hearing"], found["acting"]) == (True, True, True)


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


def test_a_followed_tail_says_that_the_server_is_away_and_back_and_leaves_nothing_out(
    stack: Stack, tmp_path: pathlib.Path
) -> None:
    server = stack.start_server()
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        tail = subprocess.Popen(
            [LADING, "audit", "tail", "-f", "action:task.update", "-o", "jsonl"],
            env={**os.environ, "LADING_SERVER": stack.address, "LADING_TOKEN": stack.admin_token},
            stdout=stdout,
            stderr=stderr,
        )
    indexes: list[int] = []

    def record() -> None:
        with Client(stack.address, token=stack.admin_token) as lading:
            indexes.extend(lading.record("task.update", ["task:42"]) for _ in range(3))

    def told() -> list[str]:
        return [line.partition(" (")[0] for line in err.read_text().splitlines()]

    try:
        wait_until(told, "the tail has begun")
        record()
        server.kill()
        wait_until(lambda: told()[1:], "it says that the server is away")
        stack.start_server()
        record()
        wait_until(lambda: len(out.read_text().splitlines()) >= len(indexes), "it shows what came meanwhile")
    finally:
        tail.send_signal(signal.SIGINT)
        assert tail.wait(20) == 130
    assert [int(json.loads(line)["index"]) for line in out.read_text().splitlines()] == indexes
    assert told()[:3] == ["Nothing yet. What comes is shown here.", "The server is away", "The server is back."]
    assert told()[3:] == ["", "Interrupted."]


def test_watched_agents_go_on_when_the_server_was_away(stack: Stack, tmp_path: pathlib.Path) -> None:
    server = stack.start_server()
    stack.start_agent("dock-1")
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        watch = subprocess.Popen(
            [LADING, "agents", "ls", "-w", "-o", "jsonl"],
            env={**os.environ, "LADING_SERVER": stack.address, "LADING_TOKEN": stack.admin_token},
            stdout=stdout,
            stderr=stderr,
        )

    def told() -> list[str]:
        return [line.partition(" (")[0] for line in err.read_text().splitlines()]

    try:
        wait_until(out.read_text, "it shows the agent")
        server.terminate()
        wait_until(told, "it says that the server is away")
        stack.start_server()
        wait_until(lambda: told()[1:], "it says that the server is back")
        stack.start_agent("dock-2")
        wait_until(lambda: '"agents/dock-2"' in out.read_text(), "it shows the agent that came later")
    finally:
        watch.send_signal(signal.SIGINT)
        assert watch.wait(20) == 130
    assert told() == ["The server is away", "The server is back.", "", "Interrupted."]


def test_version_names_that_of_the_server_where_it_answers(stack: Stack) -> None:
    stack.start_server()
    mine = metadata.version("lading")
    found = json.loads(stack.lading("version", "-o", "json").stdout)
    assert found == {"client": mine, "protocol": "lading.v1", "server": mine}
    for options, token in ((("--server", "127.0.0.1:1"), None), ((), "not.a.token"), (("--org", "globex"), None)):
        began = time.monotonic()
        done = stack.lading("version", *options, token=token)
        assert done.returncode == 0, done.stderr
        assert re.search(r"server +not known: \S", done.stdout)
        assert time.monotonic() - began < 20
    away = json.loads(stack.lading("version", "--server", "127.0.0.1:1", "-o", "json").stdout)
    assert (away["server"], away["server_unknown"]) == ("", "127.0.0.1:1 does not answer (lading doctor)")


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
    deadline = time.monotonic() + 60
    while running.lading("logs", "web").stdout != "up\n":
        assert time.monotonic() < deadline
    assert running.lading("doctor").returncode == 0


def test_two_processes_with_the_name_of_one_agent_are_quarantined(stack: Stack) -> None:
    """Somebody copied the token to another machine: from then on nobody can tell who speaks."""
    stack.start_server()
    first = stack.start_agent("dock-1", processes={"web": SLEEP})
    options = ("--server", stack.address, "--token-file", str(stack.folder / "dock-1.token"), "--runtime", "process")
    copied = ("--processes", str(stack.folder / "dock-1.toml"), "--data", str(stack.folder / "copied"))
    second = stack._start("dock-1-copied", "agent", "run", *options, *copied)
    second.wait_until(lambda: "quarantined" in stack.lading("agents", "ls").stdout, "the alarm")
    assert stack.lading("start", "dock-1/web").returncode == 9
    (event,) = json.loads(stack.lading("audit", "ls", "action:agent.clone", "-o", "json").stdout)
    assert len(event["details"]["boots"]) == 2
    second.terminate()
    assert stack.lading("agents", "unban", "dock-1", "--reason", "the copy is gone").returncode == 0
    first.terminate()
    stack.start_agent("dock-1", processes={"web": SLEEP})
    assert stack.lading("start", "dock-1/web").returncode == 0
