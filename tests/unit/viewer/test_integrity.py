"""The badge and the proof section, over a log that is honest until a test makes it lie."""

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from streamlit.testing.v1 import AppTest

from lading.v1 import audit_log_pb2 as pb
from lading_client.verify import receipts
from lading_client.verify.broken import Broken
from lading_viewer import connection, integrity, pinned
from tests.unit.client import made_log
from tests.unit.client.made_log import MadeLog, erase
from tests.unit.viewer import audit_server
from tests.unit.viewer.audit_server import ORGANIZATION, Log
from tests.unit.viewer.conftest import component

Open = Callable[..., AppTest]


@pytest.fixture
def made(log: Log, now: datetime, monkeypatch: pytest.MonkeyPatch) -> MadeLog:
    monkeypatch.setattr(made_log, "BEGAN", int(now.timestamp() * 1e6) - 60_000_000)
    monkeypatch.setattr(integrity, "REFRESH_S", 0.0)
    made = MadeLog(300)
    log.made, log.events = made, made.events
    return made


def badge(page: AppTest) -> tuple[str, str]:
    found = component(page, "badge")
    assert found is not None
    return found["tone"], found["words"]


def proof(page: AppTest) -> dict[str, Any]:
    drawer = component(page, "event")
    assert drawer is not None
    found: dict[str, Any] = drawer["proof"]
    return found


def test_honest_log_without_witness_is_grey_and_says_so(made: MadeLog, open_page: Open) -> None:
    tone, words = badge(open_page())
    assert tone == "pending"
    assert words.startswith("Verified to #300, ")
    assert words.endswith("no witness yet: the record is self-attested")


def test_honest_log_with_witnesses_is_green(made: MadeLog, open_page: Open) -> None:
    made.cosign("dock-1", 300)
    made.cosign("dock-2", 290)
    tone, words = badge(open_page())
    assert tone == "ok"
    assert words.endswith("s ago, 2 agents as witnesses")


def test_log_that_grew_is_checked_on(made: MadeLog, open_page: Open) -> None:
    made.cosign("dock-1", 300)
    page = open_page()
    for number in range(300, 600):
        made.add(number)
    made.build()
    page.run()
    assert badge(page)[1].startswith("Verified to #600, ")
    assert badge(open_page({"cur": "40"}))[0] == "ok"


def test_table_is_read_before_the_log_is_checked(made: MadeLog, log: Log, open_page: Open) -> None:
    open_page()
    names = [name for name, _ in log.calls]
    assert names.index("ListEvents") < names.index("SummarizeEvents") < names.index("GetCheckpoint")


def test_checkpoint_and_tiles_are_used_again(
    made: MadeLog, log: Log, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "REFRESH_S", 60.0)
    page = open_page()
    page.run()
    names = [name for name, _ in log.calls]
    assert (names.count("GetCheckpoint"), names.count("ReadTiles")) == (1, 1)


@pytest.mark.parametrize("field", ["id", "operation", "action", "reason", "error", "user_agent"])
def test_row_that_shows_another_text_breaks_the_log(made: MadeLog, open_page: Open, field: str) -> None:
    made.cosign("dock-1", 300)
    setattr(made.events[290], field, "0198c2de-0000-7000-8000-000000000009")
    assert badge(open_page()) == ("bad", "Broken at #290")


def test_row_that_shows_another_outcome_actor_or_target_breaks_the_log(made: MadeLog, open_page: Open) -> None:
    for index, change in enumerate(
        (
            lambda event: setattr(event, "outcome", pb.OUTCOME_FAILURE),
            lambda event: setattr(event, "stage", pb.STAGE_RECEIVED),
            lambda event: setattr(event.actor, "id", "eve"),
            lambda event: setattr(event.actor, "email", "eve@acme.example"),
            lambda event: setattr(event.targets[0], "id", "dock-2/web"),
        )
    ):
        before = pb.Event.FromString(made.events[280 + index].SerializeToString())
        change(made.events[280 + index])
        assert badge(open_page()) == ("bad", f"Broken at #{280 + index}")
        made.events[280 + index].CopyFrom(before)
        integrity.log_of(connection.clients().connection, ORGANIZATION).recheck(280 + index)


def test_entry_that_was_written_anew_breaks_the_log(made: MadeLog, open_page: Open) -> None:
    made.events[299].entry = made.events[299].entry.replace(b"task.update", b"task.create")
    made.events[299].action = "task.create"
    assert badge(open_page()) == ("bad", "Broken at #299")


def test_log_that_was_rewritten_is_not_the_one_seen(made: MadeLog, open_page: Open) -> None:
    page = open_page()
    made.events[5].entry = made.events[5].entry.replace(b"task.update", b"task.create")
    made.build()
    page.run()
    assert badge(page) == ("bad", "Broken: The first 300 events are not those that this viewer saw")


def test_log_that_shrank_is_shorter_than_what_was_seen(made: MadeLog, open_page: Open) -> None:
    page = open_page()
    del made.events[-1]
    made.build()
    page.run()
    assert badge(page) == ("bad", "The log is shorter than a checkpoint this viewer saw")


def test_other_key_breaks_the_log(made: MadeLog, log: Log, open_page: Open) -> None:
    page = open_page()
    other = MadeLog(300)
    log.made = other
    page.run()
    tone, words = badge(page)
    assert tone == "bad"
    assert "key" in words


def test_witness_of_another_tree_breaks_the_log(made: MadeLog, open_page: Open) -> None:
    made.cosign("dock-1", 250, b"\x01" * 32)
    tone, words = badge(open_page())
    assert tone == "bad"
    assert "cosigned another tree" in words


def test_broken_log_is_red_on_every_page_for_everybody(made: MadeLog, log: Log, open_page: Open) -> None:
    made.events[290].reason = "another"
    open_page()
    assert badge(open_page({"cur": "100"}, token=audit_server.token("emi"))) == ("bad", "Broken at #290")
    log.fails["*"] = grpc.StatusCode.UNAVAILABLE
    assert badge(open_page()) == ("bad", "Broken at #290")


def test_erased_event_holds_unless_it_shows_details(made: MadeLog, open_page: Open) -> None:
    made.cosign("dock-1", 300)
    erase(made.events[290])
    page = open_page({"event": made.events[290].id})
    assert badge(page)[0] == "ok"
    drawer = component(page, "event")
    assert drawer is not None
    assert drawer["erasure"] == "Details erased by ada: asked for"
    assert "Raw details" not in [fold["title"] for fold in drawer["proof"]["folds"]]
    made.events[290].reason = "made up"
    assert badge(open_page()) == ("bad", "Broken at #290")


def test_details_that_are_missing_without_erasure_break_the_log(made: MadeLog, open_page: Open) -> None:
    erase(made.events[290])
    made.events[290].ClearField("erasure")
    assert badge(open_page()) == ("bad", "Broken at #290")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (grpc.StatusCode.UNAVAILABLE, "server unreachable"),
        (grpc.StatusCode.PERMISSION_DENIED, "your role may not read checkpoints"),
        (grpc.StatusCode.UNIMPLEMENTED, "this server does not prove its log"),
        (grpc.StatusCode.INTERNAL, "the server failed"),
    ],
)
@pytest.mark.parametrize("method", ["GetCheckpoint", "ReadTiles"])
def test_what_was_not_checked_is_grey(
    made: MadeLog, log: Log, open_page: Open, method: str, code: grpc.StatusCode, why: str
) -> None:
    log.fails[method] = code
    assert badge(open_page()) == ("pending", f"Not verified: {why}")


def test_rows_without_entries_are_not_verified(made: MadeLog, open_page: Open) -> None:
    made.cosign("dock-1", 300)
    made.events[299].entry = b""
    assert badge(open_page())[1] == "Not verified: this server does not give the entries of its log"


def test_unreachable_server_is_grey(log: Log, open_page: Open) -> None:
    log.fails["*"] = grpc.StatusCode.UNAVAILABLE
    assert badge(open_page()) == ("pending", "Not verified: server unreachable")


def test_proof_of_an_event_can_be_taken_away(made: MadeLog, open_page: Open) -> None:
    made.cosign("dock-1", 295)
    event = made.events[290]
    found = proof(open_page({"event": event.id}))
    assert found["chip"]["word"] == "In the log"
    facts = {row["name"]: row["value"] for row in found["rows"]}
    assert facts["Number in the log"] == "#290"
    assert facts["Cosigned by"] == "acme/dock-1"
    folds = {fold["title"]: fold["text"] for fold in found["folds"]}
    assert json.loads(folds["Raw entry"]) == json.loads(event.entry)
    assert folds["Checkpoint note"] == made.checkpoint()
    assert found["download"]["name"] == f"{event.id}.tlog-proof"
    assert receipts.verify(found["download"]["text"], made.key).index == 290


def test_proof_that_does_not_hold_is_red_and_a_recheck_looks_anew(made: MadeLog, open_page: Open) -> None:
    event = made.events[3]
    event.reason = "another"
    page = open_page({"event": event.id})
    assert proof(page)["chip"]["word"] == "Broken at #3"
    assert badge(page) == ("bad", "Broken at #3")
    event.reason = "because 3 – ü"
    integrity.log_of(connection.clients().connection, ORGANIZATION).recheck(3)
    assert proof(open_page({"event": event.id}))["chip"]["word"] == "In the log"


def test_what_was_seen_outlives_the_process(made: MadeLog, log: Log, tmp_path: Path) -> None:
    where = replace(connection.clients().connection, data=tmp_path / "viewer")
    client = connection.clients().of(audit_server.token())
    integrity.Log(where, ORGANIZATION).check(client, made.events[-5:])
    file = tmp_path / "viewer" / "logs.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    del made.events[-1]
    made.build()
    with pytest.raises(Broken, match="shorter than a checkpoint this viewer saw"):
        integrity.Log(where, ORGANIZATION).check(client, made.events[-5:])


def test_file_that_cannot_be_read_is_not_replaced(made: MadeLog, tmp_path: Path) -> None:
    where = replace(connection.clients().connection, data=tmp_path)
    (tmp_path / "logs.json").write_text("{")
    with pytest.raises(pinned.Unreadable):
        integrity.Log(where, ORGANIZATION)
    assert (tmp_path / "logs.json").read_text() == "{"
