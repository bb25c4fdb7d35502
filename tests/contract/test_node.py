"""The contract from another language: a service in Node that knows nothing but the protos."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

from lading.v1 import access_pb2
from tests.stack import Stack

SERVICE = pathlib.Path(__file__).with_name("service.js")
MODULES = pathlib.Path(__file__).parents[2] / "node_modules/@grpc/grpc-js"

pytestmark = pytest.mark.node


def test_service_in_node_operates_records_and_tails(stack: Stack) -> None:
    if not shutil.which("node"):
        pytest.skip("Node.js is not installed: apt-get install nodejs npm")
    if not MODULES.exists():
        pytest.skip("@grpc/grpc-js is not installed: make node_modules/installed")
    stack.start_server()
    stack.start_agent("dock-1", processes={"web": ["sleep", "1000"]})
    token = stack.issue_token("ci-bot", roles=(access_pb2.ROLE_OPERATOR, access_pb2.ROLE_RECORDER))

    done = subprocess.run(
        ["node", SERVICE, stack.address, "agents/dock-1/containers/web"],
        env={"PATH": os.environ["PATH"], "LADING_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [one["name"] for one in said["listed"]["answer"]["containers"]] == ["agents/dock-1/containers/web"]
    assert said["started"]["answer"]["state"] == "COMMAND_STATE_SUCCEEDED"
    assert said["again"]["code"] == "FAILED_PRECONDITION"
    assert said["stopped"]["answer"]["state"] == "COMMAND_STATE_SUCCEEDED"
    assert said["unknown"]["code"] == "NOT_FOUND"
    assert len(said["recorded"]["answer"]["indexes"]) == 1

    events = said["events"]
    assert [event["index"] for event in events] == list(range(len(events)))
    mine = [event for event in events if event["actor"]["id"] == "ci-bot"]
    assert {event["operation"] for event in mine} >= {
        said[name]["operation"] for name in ("listed", "started", "stopped")
    }
    command = said["started"]["answer"]["name"].removeprefix("commands/")
    stages = [event["stage"] for event in events if event["operation"] == command]
    assert stages == ["STAGE_RECEIVED", "STAGE_STARTED", "STAGE_COMPLETED"]
    task = next(event for event in events if event["id"] == said["id"])
    assert (task["action"], task["actor"]["id"], task["targets"]) == (
        "task.update",
        "ci-bot",
        [{"type": "task", "id": "T-1"}],
    )
