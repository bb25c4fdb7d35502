"""`lading audit verify` and what it can check, against the real server and a real agent."""

import json
import pathlib
import re
import shutil
import sqlite3
from collections.abc import Iterator

import pytest

from lading.transparency import note
from lading_client import Client
from lading_client.verify.broken import Broken
from lading_client.verify.log_check import LogCheck
from tests.stack import Stack

SLEEP = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A log with what an agent did; its server and agent have ended."""
    with Stack(tmp_path_factory.mktemp("stopped")) as stack:
        server = stack.start_server()
        agent = stack.start_agent("dock-1", processes={"web": SLEEP})
        assert stack.lading("start", "dock-1/web", "--reason", "release").returncode == 0
        assert stack.lading("stop", "dock-1/web", "--reason", "INC-527 – ü").returncode == 0
        agent.terminate()
        server.terminate()
        yield stack


@pytest.fixture
def running(stopped: Stack, stack: Stack) -> Stack:
    """A server with a copy of that log."""
    shutil.copytree(stopped.folder / "server", stack.folder / "server")
    stack.admin_token = stopped.admin_token
    stack.start_server()
    return stack


def find_event(stack: Stack, query: str) -> str:
    (event,) = json.loads(stack.lading("audit", "ls", query, "--limit", "1", "-o", "json").stdout)
    return str(event["id"])


def test_log_of_a_server_verifies_again_and_again(running: Stack) -> None:
    first = running.lading("audit", "verify")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "matches the checkpoint" in first.stdout
    assert "First sight" in first.stderr
    second = running.lading("audit", "verify", "-o", "json")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "First sight" not in second.stderr
    found = json.loads(second.stdout)
    assert found["intact"]
    assert found["checked"] > 5
    assert running.lading("audit", "verify", "--witnesses", "5").returncode == 10
    other = "x/acme+2c1b9c4d+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
    assert running.lading("audit", "verify", "--key", other).returncode == 2


def test_log_verifies_from_where_it_was_verified_before(running: Stack) -> None:
    first = json.loads(running.lading("audit", "verify", "-o", "json").stdout)
    assert first["extends"] is None
    more = running.lading("audit", "verify", "--from", str(first["size"]))
    assert more.returncode == 0, more.stdout + more.stderr
    assert f"#0 to #{first['size'] - 1}: their hashes are those of the tree. Not checked" in more.stdout
    assert f"extends     the tree of {first['size']} that this client found before" in more.stdout
    last = json.loads(running.lading("audit", "verify", "--from", "1", "-o", "json").stdout)
    assert f"lading audit verify --from {last['extends']['size']} " in more.stdout
    assert (last["from"], last["checked"]) == (1, last["size"] - 1)
    assert running.lading("audit", "verify", "--from", "100000").returncode == 2


def take_all(check: LogCheck, entries: list[bytes]) -> None:
    for entry in entries:
        check.take_entry(entry)


def test_event_taken_out_of_the_database_with_its_number_is_named(running: Stack) -> None:
    """Whoever has the key and the database can make a tree without it, but not the numbers of its process."""
    (path,) = running.folder.rglob("lading.db")
    id = find_event(running, "action:stop")
    with sqlite3.connect(path) as database:
        boot_id, sequence = database.execute("SELECT boot_id, sequence FROM events WHERE id = ?", (id,)).fetchone()
        others = "SELECT entry FROM events WHERE organization = 'acme' AND id <> ? ORDER BY \"index\""
        entries = [entry for (entry,) in database.execute(others, (id,))]
    database.close()
    check = LogCheck("acme")
    with pytest.raises(Broken, match=f"the process {boot_id} wrote its event {sequence + 1} after {sequence - 1}"):
        take_all(check, entries)


def test_row_changed_in_the_database_is_found(running: Stack) -> None:
    assert running.lading("audit", "verify").returncode == 0
    id = find_event(running, "action:stop")
    (path,) = running.folder.rglob("lading.db")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE events SET reason = 'nothing' WHERE id = ?", (id,))
    database.close()
    done = running.lading("audit", "verify")
    assert done.returncode == 10, done.stdout + done.stderr
    assert id in done.stdout
    assert "`reason`" in done.stdout


def test_after_an_accepted_rollback_each_who_saw_more_is_told_how_to_go_on(running: Stack, stopped: Stack) -> None:
    server, agent = running.processes[-1], running.start_agent("dock-1", processes={"web": SLEEP})
    assert running.lading("start", "dock-1/web").returncode == 0, "its command brought the agent a newer tree"
    assert running.lading("audit", "verify").returncode == 0
    agent.terminate()
    server.terminate()
    shutil.copy(stopped.folder / "server" / "lading.db", running.folder / "server")
    for organization in ("system", "acme"):
        where = ("--data", str(running.folder / "server"), "--org", organization)
        done = running.lading("server", "accept-rollback", *where, "--reason", "disk of db-1 died")
        assert done.returncode == 0, done.stderr
    running.start_server()
    with Client(running.address, token=running.admin_token) as client:
        for _ in range(40):  # more than there was before: nothing but its content shows that it is another log
            client.record("task.update", ["task:42"])

    refused = running.lading("audit", "verify")
    assert (refused.returncode, "are not those that this client saw" in refused.stdout) == (10, True)
    told = " ".join(refused.stderr.split())
    assert 'Its operator says that it was restored: "disk of db-1 died"' in told
    assert "lading audit forget-log lading audit verify" in told
    assert running.lading("audit", "verify", "-q").stderr == ""
    forgotten = json.loads(running.lading("audit", "forget-log", "-o", "json").stdout)
    assert (forgotten["log"], forgotten["key_forgotten"]) == (f"{running.address}/acme", False)
    accepted = running.lading("audit", "verify")
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    assert "First sight" not in accepted.stderr, "the key is believed as before"

    agent = running.start_agent("dock-1", processes={"web": SLEEP}, wait=False)
    agent.wait_until(lambda: "; it refuses the log: the tree of" in running.lading("doctor").stdout, "doctor says why")

    assert running.lading("audit", "forget-log", "--with-key").returncode == 0
    assert "Nothing is known of" in running.lading("audit", "forget-log").stderr


def test_another_key_is_not_believed_and_the_words_say_what_to_ask(running: Stack) -> None:
    assert running.lading("audit", "verify").returncode == 0
    (path,) = running.folder.rglob("logs.toml")
    other = note.Key("x/acme", note.ED25519, bytes(32))
    path.write_text(re.sub(r"\nkey = .*", f'\nkey = "{other}"', path.read_text()))
    refused = running.lading("audit", "verify")
    assert refused.returncode == 10
    assert "lading audit forget-log --with-key" in refused.stderr


def test_receipt_verifies_without_the_server(running: Stack, tmp_path: pathlib.Path) -> None:
    id = find_event(running, "action:stop")
    path = tmp_path / "stop.tlog-proof"
    done = running.lading("audit", "show", id, "--proof", "--out", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    verified = running.lading("audit", "verify", "--file", str(path), "-o", "json", "--server", "127.0.0.1:1")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["entry"]["id"] == id
    path.write_text(path.read_text().replace("index ", "index 1", 1))
    assert running.lading("audit", "verify", "--file", str(path)).returncode == 10


def test_operation_id_that_a_call_answers_with_gets_a_receipt(running: Stack) -> None:
    with Client(running.address, token=running.admin_token) as client:
        client.record("task.update", ["task:42"])
        operation = client.audit.GetCheckpoint.with_call(_checkpoint())[1].trailing_metadata()
        id = dict(operation or ())["lading-operation"]
        assert client.receipt(str(id)).startswith("c2sp.org/tlog-proof@v1\n")


def _checkpoint() -> object:
    from lading.v1 import audit_log_pb2

    return audit_log_pb2.GetCheckpointRequest()


def test_folder_of_tiles_goes_on_and_verifies(running: Stack, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "log"
    for _ in range(2):
        done = running.lading("audit", "export", "--tiles", str(folder))
        assert done.returncode == 0, done.stdout + done.stderr
    verified = running.lading("audit", "verify", "--file", str(folder))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert running.lading("audit", "export", "--tiles", str(folder), "--limit", "3").returncode == 2
    (entries,) = folder.glob("tile/entries/*.p/*")
    entries.write_bytes(entries.read_bytes().replace(b'"ada"', b'"eve"', 1))
    broken = running.lading("audit", "verify", "--file", str(folder), "-o", "json")
    assert broken.returncode == 10
    assert json.loads(broken.stdout)["error"] == "the content does not match its leaf"


def test_export_with_proofs_verifies_without_the_server(running: Stack, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "audit.jsonl"
    done = running.lading("audit", "export", "action:stop", "--with-proofs", "--out", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    # What came after the checkpoint is not in the file, and not counted.
    assert done.stderr.splitlines()[-1].startswith(f"{len(path.read_text().splitlines()) - 1} event")
    verified = running.lading("audit", "verify", "--file", str(path))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    path.write_text(path.read_text().replace("INC-527", "INC-528", 1))
    broken = running.lading("audit", "verify", "--file", str(path))
    assert broken.returncode == 10
    shutil.rmtree(running.folder / ".config", ignore_errors=True)
    assert running.lading("audit", "verify", "--file", str(path)).returncode in (2, 10)


def test_erased_details_are_gone_and_the_log_verifies(running: Stack) -> None:
    id = find_event(running, "action:stop")
    assert running.lading("audit", "erase", id, "--yes").returncode == 2
    done = running.lading("audit", "erase", id, "--yes", "--reason", "article 17")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "INC-527" not in running.lading("audit", "show", id, "--raw").stdout
    verified = running.lading("audit", "verify", "-o", "json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["erased"] == 1
