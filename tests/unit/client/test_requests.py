from datetime import UTC, datetime

import pytest

from lading.v1 import audit_log_pb2
from lading_client import documents, names, requests


def test_short_names_become_resource_names() -> None:
    assert names.container("dock-1/web") == "agents/dock-1/containers/web"
    assert names.container("agents/dock-1/containers/web") == "agents/dock-1/containers/web"
    assert names.agent("dock-1") == names.agent("agents/dock-1") == "agents/dock-1"
    assert names.command("0198") == names.command("commands/0198") == "commands/0198"


@pytest.mark.parametrize("full", ["agents/dock-1/containers/web", "agents/dock-1", "commands/0198"])
def test_short_names_are_undone(full: str) -> None:
    back = {3: names.container, 1: names.agent}[full.count("/")] if full.startswith("agents") else names.command
    assert back(names.short(full)) == full


@pytest.mark.parametrize("text", ["web", "/web", "dock-1/"])
def test_a_container_needs_its_agent(text: str) -> None:
    with pytest.raises(ValueError, match="AGENT/CONTAINER"):
        names.container(text)


def test_lifecycle_requests_say_how() -> None:
    request = requests.stop("a/b", grace=2.5, reason="why", request_id="r", detach=True, execute_within=90)
    assert (request.reason, request.request_id, request.detach) == ("why", "r", True)
    assert request.grace.ToMilliseconds() == 2500
    assert request.execute_within.seconds == 90
    assert not request.HasField("deliver_within")
    assert not requests.start("a/b").HasField("execute_within")


def test_a_recorded_event_has_a_new_id_and_its_diff() -> None:
    at = datetime(2026, 11, 21, 12, tzinfo=UTC)
    change = {"op": "replace", "path": "/state", "value": ["a", 1], "was": None}
    first = requests.record("task.update", ["task:4:2", ("project", "p")], diff=[change], occurred_at=at)
    assert [(target.type, target.id) for target in first.targets] == [("task", "4:2"), ("project", "p")]
    assert first.outcome == audit_log_pb2.OUTCOME_SUCCESS
    assert documents.document(first)["diff"] == [change]
    assert first.occurred_at.ToDatetime(UTC) == at
    assert first.id != requests.record("task.update", []).id
    with pytest.raises(ValueError, match="TYPE:ID"):
        requests.record("task.update", ["task"])
