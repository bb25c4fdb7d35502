"""No proof, no action: what says anything else than the truth is not admitted."""

import asyncio
import pathlib
import tempfile
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lading.v1.agent_link_pb2 import ConnectRequest, Dispatch, Envelope
from lading.v1.commands_pb2 import COMMAND_STATE_REJECTED
from lading_agent.admission import admit, read_envelope
from lading_agent.errors import Refused, SessionBroken, Unproven
from lading_agent.journal import Journal
from lading_agent.witness import Witness
from lading_agent.worker import Worker
from tests.unit.agent.fake_runtime import FakeRuntime
from tests.unit.agent.honest_log import AGENT, ORGANIZATION, HonestLog, command

SEEN = 11


def make_witness(folder: pathlib.Path, log: HonestLog) -> Witness:
    """One that saw the first entries of the log."""
    journal = Journal(folder)
    witness = Witness(ORGANIZATION, AGENT, journal)
    journal.view = witness.check(log.growth(0, SEEN))
    return witness


def make_log() -> HonestLog:
    log = HonestLog()
    log.grow(SEEN)
    return log


def take(witness: Witness, dispatch: Dispatch) -> Envelope:
    """As the worker does."""
    envelope = read_envelope(dispatch)
    admit(dispatch, envelope, witness.check(dispatch.growth).tree, witness.organization, witness.agent)
    return envelope


@pytest.fixture
def log() -> HonestLog:
    return make_log()


@pytest.fixture
def witness(tmp_path: pathlib.Path, log: HonestLog) -> Witness:
    return make_witness(tmp_path, log)


@pytest.mark.parametrize("verb", ["create", "start", "stop", "restart", "kill", "pause", "unpause", "remove"])
def test_what_the_log_says_is_admitted(witness: Witness, log: HonestLog, verb: str) -> None:
    envelope = command(verb)
    frame = log.dispatch(envelope, SEEN)
    log.grow(7)
    assert take(witness, frame) == envelope
    assert take(witness, log.dispatch(envelope, SEEN)) == envelope, "an older intent in a newer tree"


def test_a_pull_is_an_intent_on_the_agent(witness: Witness, log: HonestLog) -> None:
    assert take(witness, log.dispatch(command("pull", "", image="web:2"), SEEN))


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"operation": "00000000-0000-0000-0000-000000000000"}, "operation is"),
        ({"stage": "COMPLETED"}, "stage is 'COMPLETED'"),
        ({"stage": "STARTED"}, "stage is"),
        ({"outcome": "SUCCESS"}, "outcome is"),
        ({"action": "container.stop"}, "action is 'container.stop', not 'container.start'"),
        ({"targets": [{"id": "dock-1/db", "type": "container"}]}, "targets is"),
        ({"targets": [{"id": "dock-2/web", "type": "container"}]}, "targets is"),
        ({"targets": []}, "targets is"),
        ({"targets": None}, "targets is"),
        ({"actor": {"id": "eve", "type": "user"}}, "actor is 'eve', not 'ada'"),
        ({"actor": "ada!"}, "actor is"),
        ({"organization": "emca"}, "organization is"),
        ({"occurred_at": 1}, "occurred_at is"),
        ({"v": 2}, "of version 2"),
        ({"details": "AAAA"}, "the details are not those"),
        ({"details": 7}, "cannot be checked"),
    ],
)
def test_an_entry_that_says_something_else_is_not_admitted(
    witness: Witness, log: HonestLog, lie: dict[str, Any], words: str
) -> None:
    with pytest.raises(Unproven, match=words):
        take(witness, log.dispatch(command("start"), SEEN, entry=lie))


@pytest.mark.parametrize("lie", [{"envelope": "AAAA"}, {"envelope": None}, {"agent": "dock-2"}])
def test_details_that_say_something_else_are_not_admitted(
    witness: Witness, log: HonestLog, lie: dict[str, Any]
) -> None:
    with pytest.raises(Unproven, match=f"details.{next(iter(lie))} is"):
        take(witness, log.dispatch(command("start"), SEEN, details=lie))


def test_a_command_of_another_organization_is_not_admitted(witness: Witness, log: HonestLog) -> None:
    envelope = command("start")
    envelope.organization = "emca"
    with pytest.raises(Unproven, match="organization is 'emca', not 'acme'"):
        take(witness, log.dispatch(envelope, SEEN, entry={"organization": ORGANIZATION}))


@pytest.mark.parametrize("part", ["envelope", "entry", "entry_details", "salt", "index", "inclusion", "growth"])
def test_no_part_of_the_proof_may_be_missing_or_from_another_command(
    witness: Witness, log: HonestLog, part: str
) -> None:
    log.dispatch(command("stop"), SEEN)
    other = log.record(command("stop", "db"))
    mine = log.dispatch(command("start"), SEEN)
    other.inclusion.extend(log.prove_inclusion(other.index))
    other.growth.CopyFrom(log.growth(SEEN - 1))
    swapped = Dispatch()
    swapped.CopyFrom(mine)
    swapped.ClearField(part)  # type: ignore[arg-type]
    with pytest.raises((Refused, SessionBroken)):
        take(witness, swapped)
    swapped.MergeFrom(Dispatch(**{part: getattr(other, part)}))
    with pytest.raises((Refused, SessionBroken)):
        take(witness, swapped)
    assert take(witness, mine)


def test_the_whole_proof_of_another_command_does_not_carry_this_one(witness: Witness, log: HonestLog) -> None:
    frame = log.dispatch(command("stop"), SEEN)
    frame.envelope = command("start").SerializeToString(deterministic=True)
    with pytest.raises(Unproven, match="proof: "):
        take(witness, frame)


def test_an_intent_of_an_entry_in_another_form_is_not_admitted(witness: Witness, log: HonestLog) -> None:
    """The bytes are in the tree, but they are not canonical: readers could disagree on what they say."""
    frame = log.record(command("start"))
    frame.entry = frame.entry.replace(b'{"action"', b'{ "action"')
    frame.index = log.append(frame.entry)
    frame.inclusion.extend(log.prove_inclusion(frame.index))
    frame.growth.CopyFrom(log.growth(SEEN))
    with pytest.raises(Unproven, match="canonical"):
        take(witness, frame)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"[" * 60_000, b"{" * 50, b'{"v":1}', b"\xff\xfe", b'{"v":true}', b"1e999"]
)
def test_what_is_no_entry_is_refused_and_ends_nothing(witness: Witness, log: HonestLog, raw: bytes) -> None:
    frame = log.record(command("start"))
    for field in ("entry", "entry_details"):
        setattr(frame, field, raw)
        frame.index = log.append(frame.entry)
        del frame.inclusion[:]
        frame.inclusion.extend(log.prove_inclusion(frame.index))
        frame.growth.CopyFrom(log.growth(SEEN))
        with pytest.raises(Unproven):
            take(witness, frame)


LOG = make_log()
FRAMES = [
    LOG.dispatch(command("start"), SEEN),
    LOG.dispatch(command("stop"), SEEN),
    LOG.dispatch(command("kill"), SEEN),
]
TRUE = LOG.dispatch(Envelope.FromString(FRAMES[0].envelope), SEEN)
BYTES = TRUE.SerializeToString()


@st.composite
def mutations(draw: st.DrawFn) -> Dispatch:
    """The true frame with something else in it: flipped bits, lost or moved hashes, other numbers, others' parts."""
    frame = Dispatch()
    frame.CopyFrom(TRUE)
    how = draw(st.sampled_from(["bits", "part", "hashes", "number", "cut", "bytes"]))
    if how == "bits":
        raw = bytearray(BYTES)
        for at in draw(st.lists(st.integers(0, len(raw) * 8 - 1), min_size=1, max_size=3, unique=True)):
            raw[at // 8] ^= 1 << at % 8
        try:
            frame = Dispatch.FromString(bytes(raw))
        except DecodeError:
            assume(False)
    elif how == "part":
        part = draw(st.sampled_from(["envelope", "entry", "entry_details", "salt", "index", "inclusion", "growth"]))
        frame.ClearField(part)  # type: ignore[arg-type]
        if draw(st.booleans()):
            frame.MergeFrom(Dispatch(**{part: getattr(draw(st.sampled_from(FRAMES[1:])), part)}))
    elif how == "hashes":
        hashes = draw(st.sampled_from([frame.inclusion, frame.growth.consistency]))
        changed = draw(st.lists(st.sampled_from([*hashes, bytes(32), b""]), max_size=len(hashes) + 2))
        del hashes[:]
        hashes.extend(changed)
    elif how == "number":
        number = draw(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 30))
        if draw(st.booleans()):
            frame.index = number
        else:
            frame.growth.extends = number
    else:
        part = draw(st.sampled_from(["envelope", "entry", "entry_details", "salt"]))
        whole = getattr(frame, part)
        cut = whole[: draw(st.integers(0, len(whole)))] if how == "cut" else b""
        setattr(frame, part, cut + draw(st.binary(max_size=8 if how == "cut" else 200)))
    assume(frame != TRUE)
    return frame


@settings(max_examples=1000, deadline=None)
@given(mutations())
def test_no_mutation_of_a_frame_is_admitted(frame: Dispatch) -> None:
    witness = make_witness(pathlib.Path("nowhere"), LOG)
    assert take(witness, TRUE)
    with pytest.raises((Refused, SessionBroken)):
        take(witness, frame)


@settings(max_examples=60, deadline=None)
@given(mutations(), st.booleans())
def test_no_mutation_of_a_frame_touches_the_runtime(frame: Dispatch, first_contact: bool) -> None:
    """The worker whole, with a journal on disk; at first contact too, when any key would be believed."""
    if first_contact:
        frame.growth.extends -= SEEN if frame.growth.extends == SEEN else 0
        del frame.growth.consistency[:]
        true = Dispatch()
        true.CopyFrom(TRUE)
        true.growth.extends = 0
        del true.growth.consistency[:]
        assume(frame != true)

    async def attack(folder: pathlib.Path) -> None:
        runtime, sent = FakeRuntime("web"), list[ConnectRequest]()
        journal = Journal(folder)
        await journal.open()
        witness = Witness(ORGANIZATION, AGENT, journal)
        await witness.open()
        if not first_contact:
            await journal.keep(witness.check(LOG.growth(0, SEEN)))
        worker = Worker(witness, runtime, journal)
        worker.send = sent.append
        try:
            await worker.receive(frame)
        except (Refused, SessionBroken) as error:
            broken = isinstance(error, SessionBroken)
        else:
            broken = False
        assert await worker.idle(5)
        assert runtime.calls == []
        assert await journal.depth() == 0
        if not broken:
            assert [each.result.state for each in sent] == [COMMAND_STATE_REJECTED]
            rows = await journal._write(lambda each: each.execute("SELECT frame FROM refusals").fetchall())
            assert len(rows) == 1
        await worker.close()
        await journal.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(attack(pathlib.Path(folder)))
