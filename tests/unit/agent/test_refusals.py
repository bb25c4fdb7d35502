"""What an agent refused, shown to people: `lading agent refusals`, also while the agent runs."""

import base64
import json
import pathlib
import sqlite3
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lading.v1.agent_link_pb2 import ConnectResponse, Dispatch, Growth
from lading_agent import cli, refusals
from lading_agent.journal import Journal

SHOWN = "x/acme\n9\nAAAA\n\n— x/acme AAAA\n"
GROWTH = Growth(checkpoint=SHOWN, log_key="x/acme+00000000+AAAA")


def run(data: pathlib.Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.agent, ["refusals", "--data", str(data), *arguments])


async def refuse(held: Journal) -> None:
    dispatch = ConnectResponse(dispatch=Dispatch(envelope=b"e", growth=GROWTH))
    await held.refuse("command", "c-1", "proof: leaf 20 is not in the tree", dispatch.SerializeToString())
    await held.refuse("log", "", "the key \x1b[31m is another", ConnectResponse(growth=GROWTH).SerializeToString())
    await held.refuse("log", "", "not a frame", b"\xff\xff")


async def test_refusals_are_shown_while_the_agent_runs_and_after(tmp_path: pathlib.Path) -> None:
    held = Journal(tmp_path)
    await held.open()
    await refuse(held)
    during = run(tmp_path)
    await held.close()
    after = run(tmp_path)
    assert during.exit_code == after.exit_code == 0
    assert during.stdout == after.stdout
    heading, *lines = after.stdout.splitlines()
    assert heading.split() == ["AT", "KIND", "COMMAND", "REASON"]
    assert [line.split(maxsplit=3)[1:] for line in lines] == [
        ["command", "c-1", "proof: leaf 20 is not in the tree"],
        ["log", "-", "the key �[31m is another"],
        ["log", "-", "not a frame"],
    ]


async def test_the_evidence_is_whole_in_json(tmp_path: pathlib.Path) -> None:
    held = Journal(tmp_path)
    await held.open()
    await refuse(held)
    documents: list[dict[str, Any]] = json.loads(run(tmp_path, "-o", "json").stdout)
    await held.close()
    assert [(each["kind"], each["command"], each["shown"]) for each in documents] == [
        ("command", "c-1", SHOWN),
        ("log", "", SHOWN),
        ("log", "", ""),
    ]
    command = documents[0]
    assert command["at"].endswith("Z")
    assert (command["known"], command["log_key"]) == ("", GROWTH.log_key)
    assert ConnectResponse.FromString(base64.b64decode(command["frame"])).dispatch.envelope == b"e"


async def test_an_agent_that_refused_nothing_says_so(tmp_path: pathlib.Path) -> None:
    held = Journal(tmp_path)
    await held.open()
    await held.close()
    done = run(tmp_path)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "This agent refused nothing.\n")
    assert run(tmp_path, "-o", "json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("version", "words"),
    [(None, "no agent ran"), (0, "run the agent once"), (999, "update Lading"), (-1, "not a database")],
)
def test_a_journal_that_cannot_be_read_is_said_in_one_line(
    tmp_path: pathlib.Path, version: int | None, words: str
) -> None:
    if version == -1:
        (tmp_path / "journal.db").write_bytes(b"no database" * 1000)
    elif version is not None:
        with sqlite3.connect(tmp_path / "journal.db") as beside:
            beside.execute(f"PRAGMA user_version = {version}")
        beside.close()
    before = sorted(tmp_path.iterdir())
    done = run(tmp_path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before, "nothing was written"


async def test_reading_changes_nothing(tmp_path: pathlib.Path) -> None:
    held = Journal(tmp_path)
    await held.open()
    await refuse(held)
    await held.close()
    before = (tmp_path / "journal.db").read_bytes()
    assert len(refusals.read(tmp_path)) == 3
    assert (tmp_path / "journal.db").read_bytes() == before
