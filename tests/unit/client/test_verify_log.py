"""The check of a whole log: what holds passes, and whatever was changed is named."""

import json
from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.transparency import jcs
from lading.v1 import audit_log_pb2 as pb
from lading_client.verify import canonical
from lading_client.verify.broken import Broken
from lading_client.verify.digests import Digests
from lading_client.verify.log_check import as_shown, check_event
from lading_client.verify.pins import Pin
from lading_client.verify.proofs import Prover
from lading_client.verify.served_log import Result, TooShort, read_tiles, verify_log
from lading_server.event import Actor, ActorType
from tests.unit.client.made_log import BOOT, MadeLog, Outcome, Stage, id_of


def check(log: MadeLog, pin: Pin | None = None, **more: object) -> Result:
    return verify_log(log.client, pin, organization="acme", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 1500])
def test_log_that_is_whole_passes_at_every_size(size: int) -> None:
    result = check(MadeLog(size))
    assert result.check.size == result.checkpoint.size == len(result.check.operations.ended) == size
    assert result.first_sight
    assert result.pin.size == size


def test_erased_details_are_counted_and_break_nothing() -> None:
    log = MadeLog(5)
    log.erase(2)
    assert check(log).check.erased == 1
    log.events[2].ClearField("erasure")
    with pytest.raises(Broken, match=r"#2 .*nobody erased"):
        check(log)


def swap(log: MadeLog) -> None:
    log.events[3], log.events[4] = log.events[4], log.events[3]


def swap_and_renumber(log: MadeLog) -> None:
    swap(log)
    log.events[3].index, log.events[4].index = 3, 4


def delete(log: MadeLog) -> None:
    del log.events[3]


def delete_and_renumber(log: MadeLog) -> None:
    delete(log)
    for index, event in enumerate(log.events):
        event.index = index


def cut(log: MadeLog) -> None:
    del log.events[7:]


def blame(log: MadeLog, index: int = 3) -> None:
    log.events[index].actor.id = "eve"


def excuse(log: MadeLog) -> None:
    log.events[3].reason = "she said so"


def forge(log: MadeLog, index: int = 3) -> None:
    event = log.events[index]
    event.actor.id = "eve"
    event.entry = event.entry.replace(b'"id":"ada"', b'"id":"eve"')


def salt(log: MadeLog) -> None:
    log.events[3].salt = bytes(16)


def move(log: MadeLog) -> None:
    log.events[3].entry = log.events[3].entry.replace(b'"acme"', b'"acne"')


@pytest.mark.parametrize(
    ("lie", "index", "what"),
    [
        (swap, 3, "it is missing"),
        (swap_and_renumber, 3, "wrote its event 5 after 3"),
        (delete, 3, "it is missing"),
        (delete_and_renumber, 3, "4 is missing"),
        (cut, 7, "it is missing"),
        (blame, 3, "`actor`"),
        (excuse, 3, "`reason`"),
        (salt, 3, "commits to"),
        (move, 3, "organization acne"),
    ],
)
def test_lie_is_found_at_its_index(lie: Callable[[MadeLog], None], index: int, what: str) -> None:
    log = MadeLog(10)
    lie(log)
    with pytest.raises(Broken, match=what) as found:
        check(log)
    assert found.value.index == index


def test_entry_that_was_replaced_is_located_by_its_leaf() -> None:
    log = MadeLog(300)
    forge(log)
    with pytest.raises(Broken, match="does not match its leaf") as found:
        check(log)
    assert (found.value.index, found.value.event) == (3, log.events[3].id)


def test_history_rewritten_with_the_right_key_is_found_by_who_saw_the_other_one() -> None:
    log = MadeLog(10)
    pin = check(log).pin
    log.add(11)
    log.build()
    assert check(log, pin).checkpoint.size == 11
    forge(log)
    log.build()
    check(log)
    with pytest.raises(Broken, match="first 10 events are not those"):
        check(log, pin)


def test_log_that_went_back_and_log_with_another_key_are_refused() -> None:
    log = MadeLog(10)
    pin = check(log).pin
    other = MadeLog(10)
    with pytest.raises(Broken, match="shows the key"):
        check(other, pin)
    with pytest.raises(Broken, match="shows the key"):
        check(log, given_key=str(other.key))
    with pytest.raises(Broken, match="pinned as"):
        check(other, pin, given_key=str(other.key))
    del log.events[8:]
    log.build()
    with pytest.raises(Broken, match="this client saw 10"):
        check(log, pin)


def test_operation_ends_once_and_one_that_was_given_up_may_still_end() -> None:
    log = MadeLog()
    for stage, outcome in (
        (Stage.RECEIVED, Outcome.PENDING),
        (Stage.STARTED, Outcome.PENDING),
        (Stage.ABANDONED, Outcome.UNKNOWN),
    ):
        log.add(1, stage, outcome)
    log.add(2, Stage.STARTED, Outcome.PENDING)
    log.build()
    operations = check(log).check.operations
    assert (len(operations.ended), operations.unknown, operations.open) == (0, {id_of(1)}, {id_of(2)})
    log.add(1)
    log.build()
    assert len(check(log).check.operations.ended) == 1
    log.add(1)
    log.build()
    with pytest.raises(Broken, match="ends a second time") as found:
        check(log)
    assert found.value.index == 5


def test_gap_in_the_numbers_of_a_process_is_named() -> None:
    log = MadeLog(3)
    log.skip()
    log.add(9)
    log.build()
    with pytest.raises(Broken, match=f"the process {BOOT} wrote its event 5 after 3: 4 is missing") as found:
        check(log)
    assert (found.value.index, found.value.event) == (3, log.events[3].id)


def test_process_that_begins_late_in_its_numbers_is_named() -> None:
    log = MadeLog()
    log.skip()
    log.add(1)
    log.build()
    with pytest.raises(Broken, match=r"#0 .*event 2 after 0: 1 is missing"):
        check(log)


def test_numbers_of_several_processes_may_alternate() -> None:
    log = MadeLog()
    for number in range(9):
        log.add(number, boot=id_of(number % 3))
    log.build()
    assert check(log).check.processes == {id_of(number): 3 for number in range(3)}


@pytest.mark.parametrize("first", [0, 1, 2, 255, 256, 257, 700, 1023, 1024, 1499, 1500])
def test_log_is_verified_from_any_event_on(first: int) -> None:
    log = MadeLog(1500)
    log.cosign("dock-1", 1)
    log.cosign("dock-2", 1400)
    result = check(log, first=first)
    assert (result.check.first, result.check.size, len(result.check.operations.ended)) == (first, 1500, 1500 - first)
    assert set(result.testimony.names) == {"acme/dock-1", "acme/dock-2"}
    assert result.pin == check(log, result.pin, first=first).pin
    with pytest.raises(TooShort, match="only 1500 events"):
        check(log, first=1501)


@pytest.mark.parametrize("index", [300, 700, 1200])
def test_lie_after_the_first_event_that_is_read_is_named(index: int) -> None:
    log = MadeLog(1300)
    blame(log, index)
    with pytest.raises(Broken, match="`actor`") as found:
        check(log, first=290)
    assert found.value.index == index
    forge(log, index)
    with pytest.raises(Broken, match="does not match its leaf") as found:
        check(log, first=290)
    assert found.value.index == index


@pytest.mark.parametrize("seen", [100, 256, 600, 900])
def test_history_rewritten_before_the_first_event_is_found_by_who_saw_the_other_one(seen: int) -> None:
    log = MadeLog(900)
    pin = Pin(str(log.key), seen, log.root(seen).hex())
    check(log, pin, first=600)
    forge(log)
    log.build()
    check(log, first=600)
    with pytest.raises(Broken, match=f"first {seen} events are not those"):
        check(log, pin, first=600)


def test_hashes_of_what_is_not_read_must_be_in_the_tree() -> None:
    log = MadeLog(900)
    log.tiles[1, 0][1] = bytes(32)
    with pytest.raises(Broken, match="root of all 900 events"):
        check(log, first=600)
    log.tiles[1, 0].clear()
    with pytest.raises(Broken, match="root of all 900 events"):
        check(log, first=600)


def test_witness_of_events_that_are_not_read_is_heard() -> None:
    log = MadeLog(900)
    log.cosign("dock-1", 500)
    forge(log)
    log.build()
    with pytest.raises(Broken, match="cosigned another tree of 500"):
        check(log, first=600)


def life(action: str, **data: object) -> dict[str, object]:
    return {"action": action, "actor": Actor(ActorType.SERVICE, "lading-server"), "data": data | {"version": "1"}}


@pytest.mark.parametrize(("action", "found"), [("server.stop", 3), ("server.crash", 2)])
def test_end_of_a_process_tells_how_many_events_it_wrote(action: str, found: int) -> None:
    log = MadeLog(organization="system")
    log.add(1, Stage.STARTED, Outcome.PENDING, boot=id_of(1), **life("server.start"))
    log.add(2, boot=id_of(1), **life("access.token.issue"))
    writer = id_of(1) if action == "server.stop" else id_of(2)
    log.add(1, boot=writer, **life(action, boot_id=id_of(1), sequences={"system": found, "acme": 100}))
    log.build()
    assert verify_log(log.client, None).check.size == 3
    log = MadeLog(organization="system")
    log.add(1, boot=writer, **life(action, boot_id=id_of(1), sequences={"system": 9}))
    log.build()
    with pytest.raises(Broken, match=rf"#0 .*process {id_of(1)} wrote 9 events by its end; here are [01]\."):
        verify_log(log.client, None)


def test_witnesses_are_counted_when_they_cosigned_this_tree() -> None:
    log = MadeLog(300)
    for agent, size in (("dock-1", 256), ("dock-2", 300)):
        log.cosign(agent, size)
    pin = check(log).pin
    assert set(pin.witnesses) == {"acme/dock-1", "acme/dock-2"}
    stranger = log.cosign("dock-3", 300)
    testimony = check(log, pin).testimony
    assert testimony.names == ("acme/dock-1", "acme/dock-2")
    assert [str(one) for one in testimony.strangers] == [stranger]


def test_cosignature_of_a_later_tree_counts_when_it_extends_this_one() -> None:
    log = MadeLog(300)
    signed = (200, log.root(200))
    log.cosign("dock-1", 300)
    log.signed = signed
    assert check(log).testimony.sizes == (300,)
    log.cosignatures.clear()
    log.cosign("dock-1", 300, bytes(32))
    with pytest.raises(Broken, match="another tree of 300"):
        check(log)


def test_server_that_showed_an_agent_another_tree_is_found_out() -> None:
    log = MadeLog(20)
    log.cosign("dock-1", 20)
    forge(log)
    log.build()
    with pytest.raises(Broken, match="acme/dock-1 cosigned another tree of 20"):
        check(log)


def test_cosignature_that_does_not_hold_is_refused() -> None:
    log = MadeLog(20)
    log.cosign("dock-1", 20)
    log.cosignatures[0].size = 19
    log.cosignatures[0].root = log.root(19)
    with pytest.raises(Broken, match="does not hold"):
        check(log)


LOG = MadeLog(3)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_changed_bit_of_an_event_passes(data: st.DataObject) -> None:
    before = LOG.events[1]
    raw = bytearray(before.SerializeToString())
    place = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[place // 8] ^= 1 << place % 8
    event = pb.Event()
    try:
        event.ParseFromString(bytes(raw))
    except DecodeError:
        return
    event.DiscardUnknownFields()  # type: ignore[attr-defined]
    # The index and the entry are for the tree to prove; what supersedes an event is not claimed by it.
    same = pb.Event.FromString(event.SerializeToString())
    same.index, same.entry = before.index, before.entry
    same.ClearField("superseded_by")
    if same == before:
        return
    with pytest.raises(ValueError, match=r"."):
        check_event(event, "acme")


def stage_of_no_name(event: pb.Event, entry: dict[str, object]) -> None:
    event.stage, entry["stage"] = 99, None  # type: ignore[assignment]


def outcome_of_no_name(event: pb.Event, entry: dict[str, object]) -> None:
    event.outcome, entry["outcome"] = 99, ""  # type: ignore[assignment]


def time_beyond_the_integers_of_json(event: pb.Event, entry: dict[str, object]) -> None:
    event.recorded_at.seconds, event.recorded_at.nanos = 2**34, 0
    entry["recorded_at"] = 2**34 * 1_000_000


def number_beyond_the_integers_of_json(event: pb.Event, entry: dict[str, object]) -> None:
    event.emitter.sequence, entry["emitter"] = 2**60, {"boot_id": event.emitter.boot_id, "sequence": 2**60}


def part_of_a_microsecond(event: pb.Event, entry: dict[str, object]) -> None:
    event.occurred_at.nanos += 1


def text_in_the_form_of_a_number(event: pb.Event, entry: dict[str, object]) -> None:
    entry["code"] = str(event.code)


def other_organization(event: pb.Event, entry: dict[str, object]) -> None:
    event.organization = entry["organization"] = "globex"


def other_version(event: pb.Event, entry: dict[str, object]) -> None:
    entry["v"] = 2


def one_field_more(event: pb.Event, entry: dict[str, object]) -> None:
    entry["w"] = 1


TOGETHER = (
    *(stage_of_no_name, outcome_of_no_name, time_beyond_the_integers_of_json, number_beyond_the_integers_of_json),
    *(part_of_a_microsecond, text_in_the_form_of_a_number, other_organization, other_version, one_field_more),
)


@pytest.mark.parametrize("change", TOGETHER)
def test_entry_that_is_none_does_not_pass_when_it_is_shown_alike(
    change: Callable[[pb.Event, dict[str, object]], None],
) -> None:
    event = pb.Event.FromString(LOG.events[1].SerializeToString())
    entry = jcs.parse(event.entry)
    event.entry = jcs.canonical(entry)
    check_event(event, "acme")
    change(event, entry)
    # As whoever holds the server and the key may write it: not through the contract's own encoder.
    event.entry = json.dumps(entry, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    with pytest.raises(ValueError, match=r"."):
        check_event(event, "acme")


@given(st.text(), st.text(), st.integers(0, 2**53 - 1))
def test_entries_are_checked_alike_parsed_and_as_shown(actor: str, target: str, sequence: int) -> None:
    event = pb.Event.FromString(LOG.events[1].SerializeToString())
    entry = jcs.parse(event.entry)
    try:
        event.actor.id, event.emitter.sequence = actor, sequence
        event.targets.add(id=target, type=actor)
    except UnicodeEncodeError:
        return
    entry["actor"]["id"], entry["emitter"]["sequence"] = actor, sequence
    entry["targets"].append({"id": target, "type": actor})
    event.entry = jcs.canonical(entry)
    assert check_event(event, "acme") == (entry, False)
    assert as_shown(event, "acme") == entry
    event.entry = jcs.canonical(entry | {"parent": entry["parent"] + "x"})
    assert as_shown(event, "acme") is None


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda v: st.lists(v)))
def test_quick_reading_agrees_with_the_contract(value: object) -> None:
    try:
        raw = jcs.canonical({"v": value, "é": 1})
        plain = jcs.canonical({"v": value})
    except ValueError:
        return
    assert jcs.canonical(canonical.read(raw)) == raw
    assert jcs.canonical(canonical.read(plain)) == plain


NOT_CANONICAL = (
    *(b'{"a": 1}', b'{"a":1,"a":1}', b'{"b":1,"a":1}', b'{"a":1.0}', b'{"a":NaN}', b'{"a":"\\u00e9"}', b"[]", b""),
    *(b'{"a":9007199254740993}', b'{"a":-0}', b'{"a":"\\ud800"}', b'{"a":1}\n', b'{"a":1e3}', b"[" * 100_000),
)


@pytest.mark.parametrize("raw", NOT_CANONICAL, ids=range(len(NOT_CANONICAL)))
def test_what_is_not_canonical_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical.read(raw)


def test_digests_hold_what_was_added_and_nothing_else() -> None:
    digests = Digests()
    for number in range(5000):
        assert f"op{number}" not in digests
        digests.add(f"op{number}")
    assert len(digests) == 5000
    assert all(f"op{number}" in digests for number in range(5000))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 700), st.data())
def test_proofs_from_tiles_are_those_of_the_server(size: int, data: st.DataObject) -> None:
    from lading_server.tree import prove_inclusion

    index = data.draw(st.integers(0, size - 1))
    prover = Prover(size)
    prover.tiles.update(read_tiles(LARGE.client, prover.missing([index])))
    assert tuple(prover.prove(index)) == prove_inclusion(index, size, LARGE._node)


LARGE = MadeLog(700)
