import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
from google.rpc import code_pb2

from lading.v1 import agents_pb2, commands_pb2, containers_pb2
from tests.integration.client.conftest import Lading, make_token
from tests.integration.client.fake_server import Fleet, bad_request, error_info

EXITS = {
    "INTERNAL": 1,
    "UNKNOWN": 1,
    "RESOURCE_EXHAUSTED": 1,
    "INVALID_ARGUMENT": 2,
    "NOT_FOUND": 4,
    "PERMISSION_DENIED": 5,
    "UNAUTHENTICATED": 6,
    "UNAVAILABLE": 7,
    "DEADLINE_EXCEEDED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 9,
}


@pytest.fixture
def two(fleet: Fleet) -> Fleet:
    fleet.add("dock-1/web", "running", image="web:1", labels={"app": "web"})
    fleet.add("dock-2/web", "exited", image="web:1", labels={"app": "web"})
    fleet.add("dock-2/api", "running", image="api:2", labels={"app": "api"})
    return fleet


@pytest.mark.parametrize(("code", "expected"), EXITS.items())
def test_the_exit_code_says_how_it_failed(two: Fleet, lading: Lading, code: str, expected: int) -> None:
    two.fail("StopContainer", code_pb2.Code.Value(code), "the server's words", times=4)
    exit_code, out, err = lading("stop", "dock-1/web", "--strict")
    assert exit_code == expected
    assert "the server's words" in out + err
    assert code in out + err


def test_nobody_listening_is_exit_7(lading: Lading) -> None:
    exit_code, _, err = lading("ps", "--server", "127.0.0.1:1")
    assert exit_code == 7
    assert "lading doctor" in err


def test_a_done_change_is_exit_0_and_carries_the_reason(two: Fleet, lading: Lading) -> None:
    exit_code, out, _ = lading("stop", "dock-1/web", "--reason", "INC-527", "--grace", "3")
    assert exit_code == 0
    assert "dock-1/web" in out
    assert "stopped" in out
    (request,) = two.asked("StopContainer")
    assert (request.reason, request.grace.seconds) == ("INC-527", 3)
    assert request.request_id


def test_already_in_that_state_is_done_but_for_strict(two: Fleet, lading: Lading) -> None:
    exit_code, out, _ = lading("stop", "dock-2/web")
    assert exit_code == 0
    assert "already stopped" in out
    assert lading("stop", "dock-2/web", "--strict")[0] == 9


def test_a_refusal_for_another_cause_is_no_success(two: Fleet, lading: Lading) -> None:
    two.fail("StopContainer", code_pb2.FAILED_PRECONDITION, "the agent is drained")
    exit_code, out, _ = lading("stop", "dock-1/web")
    assert exit_code == 9
    assert "the agent is drained" in out


def test_a_unique_name_needs_no_agent(two: Fleet, lading: Lading) -> None:
    assert lading("restart", "api")[0] == 0
    assert two.asked("RestartContainer")[0].name == "agents/dock-2/containers/api"


def test_an_ambiguous_name_lists_the_candidates(two: Fleet, lading: Lading) -> None:
    exit_code, _, err = lading("stop", "web")
    assert exit_code == 2
    assert "dock-1/web dock-2/web" in err
    assert not two.asked("StopContainer")


def test_an_unknown_name_is_not_found(two: Fleet, lading: Lading) -> None:
    assert lading("stop", "nothing")[0] == 4


def test_several_targets_need_yes_without_a_terminal(two: Fleet, lading: Lading) -> None:
    exit_code, _, err = lading("start", "dock-1/web", "dock-2/web")
    assert exit_code == 2
    assert "--yes" in err
    assert lading("rm", "dock-2/web")[0] == 2
    assert lading("kill", "dock-1/web")[0] == 2
    assert not two.asked("StartContainer") + two.asked("RemoveContainer") + two.asked("KillContainer")


def test_some_failed_is_exit_3_and_the_log_is_named(two: Fleet, lading: Lading) -> None:
    two.fail("StopContainer", code_pb2.UNAVAILABLE, "agent disconnected", times=4)
    exit_code, out, err = lading("stop", "dock-1/web", "dock-2/api", "--yes", "--max-parallel", "1")
    assert exit_code == 3
    assert "UNAVAILABLE" in out
    assert "agent disconnected" in out
    assert "1 of 2 stopped. Show: lading audit ls corr:cli-" in err
    correlation = {metadata["x-request-id"] for name, _, metadata in two.calls if name == "StopContainer"}
    assert len(correlation) == 1
    assert correlation.pop() in err


def test_all_failed_alike_is_that_exit(two: Fleet, lading: Lading) -> None:
    two.fail("StopContainer", code_pb2.PERMISSION_DENIED, "no", times=2)
    assert lading("stop", "dock-1/web", "dock-2/api", "--yes")[0] == 5


def test_fail_fast_begins_no_more(two: Fleet, lading: Lading) -> None:
    two.fail("RestartContainer", code_pb2.INTERNAL, "no")
    targets = ["dock-1/web", "dock-2/web", "dock-2/api"]
    exit_code, _, err = lading("restart", *targets, "--yes", "--fail-fast", "--max-parallel", "1")
    assert exit_code == 3
    assert len(two.asked("RestartContainer")) == 1
    assert "2 not begun" in err


def test_selecting_by_label_and_by_agent(two: Fleet, lading: Lading) -> None:
    exit_code, out, _ = lading("restart", "-l", "app=web", "--dry-run")
    assert exit_code == 0
    assert out.splitlines() == ["dock-1/web would be restarted", "dock-2/web would be restarted"]
    _, out, _ = lading("restart", "--agent", "dock-2", "--all", "--dry-run")
    assert out.splitlines() == ["dock-2/api would be restarted", "dock-2/web would be restarted"]
    assert not two.asked("RestartContainer")


def test_nothing_matched_is_exit_0(two: Fleet, lading: Lading) -> None:
    exit_code, out, err = lading("stop", "-l", "app=none")
    assert (exit_code, out) == (0, "")
    assert "Nothing matches" in err


@pytest.mark.parametrize("arguments", [(), ("--agent", "dock-1"), ("dock-1/web", "-l", "app=web"), ("a/b/c",)])
def test_an_unclear_selection_is_usage(two: Fleet, lading: Lading, arguments: tuple[str, ...]) -> None:
    assert lading("stop", *arguments)[0] == 2


def test_json_is_one_document_without_progress(two: Fleet, lading: Lading) -> None:
    exit_code, out, _ = lading("stop", "dock-1/web", "dock-9/x", "--yes", "-o", "json")
    assert exit_code == 3
    document = json.loads(out)
    first, second = sorted(document["results"], key=lambda result: str(result["target"]))
    assert (first["target"], first["status"]) == ("dock-1/web", "SUCCESS")
    assert first["command"].startswith("commands/")
    assert (second["code"], second["reason"]) == ("NOT_FOUND", "REFUSED_BY_RUNTIME")
    assert "stopped" not in out


def test_detach_answers_with_the_command(two: Fleet, lading: Lading) -> None:
    exit_code, out, _ = lading("stop", "dock-1/web", "--detach")
    assert exit_code == 0
    assert two.asked("StopContainer")[0].detach
    assert "lading commands wait" in out
    # For `lading commands wait $(lading stop … --detach -q)`.
    quiet = lading("stop", "dock-1/web", "--detach", "-q")[1]
    assert f"commands/{quiet.strip()}" == next(reversed(two.commands))
    assert lading("stop", "dock-1/web", "-q")[1] == "dock-1/web\n"


def test_a_late_command_is_named(two: Fleet, lading: Lading) -> None:
    two.fail("StopContainer", code_pb2.DEADLINE_EXCEEDED, "late", error_info("LATE", command="commands/0198"))
    exit_code, _, err = lading("stop", "dock-1/web", "--timeout", "5s")
    assert exit_code == 8
    assert "lading commands wait 0198" in err


def test_wrong_fields_are_named(two: Fleet, lading: Lading) -> None:
    two.fail("StopContainer", code_pb2.INVALID_ARGUMENT, "bad", bad_request("reason", "too long"))
    exit_code, _, err = lading("stop", "dock-1/web")
    assert exit_code == 2
    assert "reason: too long" in err
    two.fail("StopContainer", code_pb2.INVALID_ARGUMENT, "reason: too long", bad_request("reason", "too long"))
    assert lading("stop", "dock-1/web")[2].count("too long") <= 1, "once is enough"


def test_ctrl_c_says_that_the_command_goes_on(two: Fleet, address: str, home: pathlib.Path) -> None:
    two.hang = threading.Event()
    environment = {**os.environ, "LADING_SERVER": address, "LADING_TOKEN": make_token()}
    process = subprocess.Popen(
        [sys.executable, "-m", "lading_client.cli", "stop", "dock-1/web"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert two.begun.wait(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    (command,) = two.commands
    assert process.returncode == 130
    assert f"Stopped waiting. The command goes on: lading commands wait {command.removeprefix('commands/')}" in err


def test_ps_lists_what_runs_and_says_what_it_hides(two: Fleet, lading: Lading) -> None:
    exit_code, out, err = lading("ps")
    assert exit_code == 0
    assert out.splitlines()[0].split() == ["TARGET", "IMAGE", "STATE", "HEALTH", "AGE"]
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["dock-1/web", "dock-2/api"]
    assert "2 containers on 2 agents. 1 more does not run: lading ps -a" in err
    assert len(lading("ps", "-a")[1].splitlines()) == 4
    assert lading("ps", "-q", "--filter", "status=exited")[1] == "dock-2/web\n"
    assert lading("ps", "web", "--agent", "dock-2", "-o", "name")[0] == 2


def test_ps_says_what_is_old(fleet: Fleet, lading: Lading) -> None:
    container = containers_pb2.Container(name="agents/dock-3/containers/old", state="running", current=False)
    fleet.containers[container.name] = container
    assert "dock-3 is offline" in lading("ps")[2]


def test_an_empty_list_is_exit_0(lading: Lading) -> None:
    assert lading("ps", "-o", "json") == (0, "[]\n", "")


def test_machine_formats_have_proto_names_and_utc_times(two: Fleet, lading: Lading) -> None:
    two.containers["agents/dock-1/containers/web"].started_at.FromJsonString("2026-11-21T18:10:22.686Z")
    (document,) = json.loads(lading("ps", "dock-1/web", "-o", "json")[1])
    assert document["started_at"] == "2026-11-21T18:10:22.686Z"
    assert document["restart_count"] == 0
    lines = lading("ps", "-a", "-o", "jsonl")[1].splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["running", "running", "exited"]
    assert "- name: agents/dock-1/containers/web" in lading("ps", "-o", "yaml")[1]
    assert json.loads(lading("inspect", "api")[1])["image"] == "api:2"
    assert lading("ps", "-o", "csv")[0] == 2


def test_control_characters_do_not_reach_the_terminal(fleet: Fleet, lading: Lading) -> None:
    fleet.add("dock-1/web", "running", image="\x1b[31mred\x07")
    assert "\x1b" not in lading("ps")[1]


def test_create_says_what_to_make(fleet: Fleet, lading: Lading) -> None:
    arguments = ["create", "dock-1/job", "--image", "busybox", "-e", "A=1=2", "--label", "app=job", "--network", "none"]
    assert lading(*arguments, "--", "sleep", "-x", "600")[0] == 0
    (request,) = fleet.asked("CreateContainer")
    assert request.name == "agents/dock-1/containers/job"
    assert list(request.spec.command) == ["sleep", "-x", "600"]
    assert dict(request.spec.env) == {"A": "1=2"}
    assert (request.spec.image, request.spec.network) == ("busybox", "none")


def test_pull_goes_to_each_agent(fleet: Fleet, lading: Lading) -> None:
    fleet.agents = [agents_pb2.Agent(name=f"agents/dock-{number}") for number in (1, 2)]
    assert lading("pull", "web:2", "-l", "env=prod")[0] == 0
    assert sorted(request.agent for request in fleet.asked("PullImage")) == ["agents/dock-1", "agents/dock-2"]


def test_logs_go_to_the_stream_they_came_from(two: Fleet, address: str, home: pathlib.Path) -> None:
    answer = containers_pb2.StreamContainerLogsResponse
    two.logs = [
        answer(data=b"out\n", source=containers_pb2.LOG_SOURCE_STDOUT),
        answer(data=b"err\n", source=containers_pb2.LOG_SOURCE_STDERR),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lading_client.cli", "logs", "api", "-f", "--tail", "5", "--since", "10m"],
        env={**os.environ, "LADING_SERVER": address, "LADING_TOKEN": make_token()},
        capture_output=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"err\n")
    (request,) = two.asked("StreamContainerLogs")
    assert (request.follow, request.tail) == (True, 5)
    assert request.HasField("since")


def test_waiting_ends_as_the_command_did(fleet: Fleet, lading: Lading) -> None:
    for name, state, code in (("a", "SUCCEEDED", 0), ("b", "FAILED", 5), ("c", "EXPIRED", 14)):
        value = commands_pb2.CommandState.Value(f"COMMAND_STATE_{state}")
        fleet.commands[f"commands/{name}"] = commands_pb2.Command(name=f"commands/{name}", state=value, code=code)
    assert lading("commands", "wait", "a")[0] == 0
    assert lading("commands", "wait", "b")[0] == 4
    assert lading("commands", "wait", "c")[0] == 7
    assert lading("commands", "wait", "a", "b")[0] == 3
    assert lading("commands", "ls", "-o", "name")[1].split() == ["a", "b", "c"]


def test_waiting_has_a_time_limit(fleet: Fleet, lading: Lading) -> None:
    fleet.commands["commands/a"] = commands_pb2.Command(name="commands/a", state=commands_pb2.COMMAND_STATE_DISPATCHED)
    fleet.hang = threading.Event()
    exit_code, _, err = lading("commands", "wait", "a", "--timeout", "1s")
    assert exit_code == 8
    assert "lading commands wait a" in err


def test_drain_and_cordon_are_the_same(fleet: Fleet, lading: Lading) -> None:
    assert lading("agents", "drain", "dock-1", "--reason", "kernel")[1] == "dock-1 drained\n"
    assert lading("agents", "uncordon", "dock-1")[1] == "dock-1 resumed\n"
    assert [request.resume for request in fleet.asked("DrainAgent")] == [False, True]
