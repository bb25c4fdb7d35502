"""Files that were taken from a log: they verify without any server, and a changed one does not."""

import pathlib
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.transparency.note import Key
from lading.v1 import audit_log_pb2 as pb
from lading_client.verify import exported, pins, receipts, tile_folder
from lading_client.verify.broken import Broken
from lading_client.verify.pins import Pin
from tests.unit.client.made_log import MadeLog, erase

LOG = MadeLog(520)


def untold(done: int, size: int) -> None:
    """Nobody watches."""


def export(log: MadeLog, events: list[pb.Event] | None = None) -> list[str]:
    answer = log.GetCheckpoint(pb.GetCheckpointRequest())
    found = [pb.Event.FromString(one.SerializeToString()) for one in (log.events[::-1] if events is None else events)]
    return [line + "\n" for line in exported.lines(log.client, answer, log.key, found)]


def verify(lines: list[str], log: MadeLog = LOG) -> exported.Proven:
    def key_of(origin: str) -> Key:
        assert origin == log.key.name
        return log.key

    return exported.verify(lines, key_of)


def test_export_with_proofs_verifies_and_says_whether_it_is_all() -> None:
    assert verify(export(LOG)) == exported.Proven(LOG.key, 520, 520, 0, True)
    part = verify(export(LOG, LOG.events[100:300:7]))
    assert (part.events, part.whole) == (29, False)
    assert verify(export(LOG, [])).events == 0


def test_event_after_the_checkpoint_is_left_to_the_next_export() -> None:
    log = MadeLog(5)
    answer = log.GetCheckpoint(pb.GetCheckpointRequest())
    log.add(6)
    assert len(list(exported.lines(log.client, answer, log.key, log.events))) == 6


def test_erased_event_stays_provable() -> None:
    log = MadeLog(5)
    erase(log.events[2])
    assert verify(export(log), log).erased == 1


LINES = export(LOG, LOG.events[2:5])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_changed_character_of_an_export_passes(data: st.DataObject) -> None:
    lines = list(LINES)
    number = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[number]) - 1))
    char = data.draw(st.characters(codec="utf-8") | st.sampled_from('09azAZ"{}[],: \n'))
    kind = data.draw(st.sampled_from(["replace", "insert", "delete"]))
    line = lines[number]
    lines[number] = line[:place] + ("" if kind == "delete" else char) + line[place + (kind != "insert") :]
    if lines == LINES:
        return
    with pytest.raises((Broken, AssertionError)):
        verify(lines)


def test_lines_out_of_order_or_twice_are_refused() -> None:
    for lines in ([*LINES, LINES[-1]], [LINES[0], LINES[2], LINES[3], LINES[1]]):
        with pytest.raises(Broken, match="out of order"):
            verify(lines)


def test_export_without_proofs_is_said_to_be_none() -> None:
    with pytest.raises(Broken, match="--with-proofs"):
        verify(['{"id":"1"}\n'])
    with pytest.raises(Broken, match="--with-proofs"):
        verify([])


RECEIPT = receipts.write(LOG.GetReceipt(pb.GetReceiptRequest(id=LOG.events[7].id)))


def test_receipt_stands_alone() -> None:
    proven = receipts.verify(RECEIPT, LOG.key)
    assert (proven.index, proven.checkpoint.size) == (7, 520)
    assert proven.entry["id"] == LOG.events[7].id
    assert proven.details is not None
    assert proven.details["reason"] == LOG.events[7].reason
    assert receipts.origin_of(RECEIPT) == LOG.key.name


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_changed_character_of_a_receipt_passes(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(RECEIPT) - 1))
    char = data.draw(st.characters(codec="utf-8") | st.sampled_from("09azAZ+/= \n"))
    changed = RECEIPT[:place] + char + RECEIPT[place + 1 :]
    if changed == RECEIPT:
        return
    with pytest.raises(Broken):
        receipts.verify(changed, LOG.key)


def write(log: MadeLog, folder: pathlib.Path) -> int:
    return tile_folder.write(log.client, folder, log.GetCheckpoint(pb.GetCheckpointRequest()), log.key, untold).size


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 520])
def test_folder_of_tiles_verifies_at_every_size(size: int, tmp_path: pathlib.Path) -> None:
    log = MadeLog(size)
    assert write(log, tmp_path) == size
    check, checkpoint = tile_folder.verify(tmp_path, log.key, untold)
    assert check.size == checkpoint.size == size
    assert tile_folder.origin_of(tmp_path) == log.key.name


def test_folder_goes_on_where_it_was_left(tmp_path: pathlib.Path) -> None:
    log = MadeLog(300)
    write(log, tmp_path)
    full = tmp_path / "tile/0/000"
    before = full.stat().st_mtime_ns
    for number in range(300, 600):
        log.add(number)
    log.build()
    assert write(log, tmp_path) == 600
    assert full.stat().st_mtime_ns == before
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        "checkpoint",
        *("tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2"),
        *("tile/entries/000", "tile/entries/001", "tile/entries/002.p/88"),
    ]
    assert tile_folder.verify(tmp_path, log.key, untold)[0].size == 600


def rewrite(log: MadeLog) -> None:
    log.events[3].entry = log.events[3].entry.replace(b'"id":"ada"', b'"id":"eve"')
    log.build()


def test_rewritten_log_does_not_get_into_the_folder(tmp_path: pathlib.Path) -> None:
    log = MadeLog(300)
    write(log, tmp_path)
    rewrite(log)
    log.add(301)
    log.build()
    with pytest.raises(Broken):
        write(log, tmp_path)
    assert tile_folder.verify(tmp_path, log.key, untold)[0].size == 300


@pytest.fixture(scope="module")
def folder() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory() as name:
        write(LOG, pathlib.Path(name))
        yield pathlib.Path(name)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_changed_bit_of_a_folder_passes(folder: pathlib.Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    before = path.read_bytes()
    raw = bytearray(before)
    place = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[place // 8] ^= 1 << place % 8
    path.write_bytes(raw)
    try:
        with pytest.raises(Broken):
            tile_folder.verify(folder, LOG.key, untold)
    finally:
        path.write_bytes(before)


def test_entry_that_was_changed_in_a_folder_is_named(folder: pathlib.Path) -> None:
    path = folder / "tile/entries/001"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"dock-1/c300", b"dock-1/c301", 1))
    with pytest.raises(Broken, match="#300"):
        tile_folder.verify(folder, LOG.key, untold)
    path.write_bytes(before)


def test_pin_of_several_servers_is_found_in_any_order(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    name = "10.0.0.1:7443,10.0.0.2:7443/acme"
    for server in ("10.0.0.2:7443,10.0.0.1", " 10.0.0.1:7443, 10.0.0.2:7443,10.0.0.1:7443"):
        assert pins.name_of(server, "acme") == name
    assert pins.name_of("not an address/", "acme") == "not an address//acme"
    pins.write("10.0.0.2,10.0.0.1/acme", Pin(str(LOG.key), 7, "aa"))
    older = pins.path().read_text().replace('"10.0.0.1:7443,10.0.0.2:7443/acme"', '"10.0.0.2,10.0.0.1/acme"')
    pins.path().write_text(older)  # as it was kept before: by the text of --server
    assert pins.read() == {name: Pin(str(LOG.key), 7, "aa")}
    larger = older.replace("10.0.0.2,10.0.0.1", "10.0.0.1,10.0.0.2").replace("size = 7", "size = 9")
    pins.path().write_text(older + larger)
    assert pins.read() == {name: Pin(str(LOG.key), 9, "aa")}, "the larger one is kept"
    pins.write(name, Pin(str(LOG.key), 10, "bb"))
    assert pins.path().read_text().count("[logs.") == 1
    pins.path().write_text(older + larger.replace(str(LOG.key), "another"))
    for refused in (pins.read, lambda: pins.write("127.0.0.1/other", None)):
        with pytest.raises(
            ValueError, match=r'"10\.0\.0\.2,10\.0\.0\.1/acme" and "10\.0\.0\.1,10\.0\.0\.2/acme" .* two keys'
        ):
            refused()
    assert pins.path().read_text().count("[logs.") == 2, "neither is dropped"


def test_pins_are_kept_by_log_and_survive_odd_names(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert pins.read() == {}
    first = Pin(str(LOG.key), 520, "ab" * 32, {"acme/dock.1": "k1", 'acme/"dö\\ck': "k2"})
    pins.write("127.0.0.1:7443/acme", first)
    pins.write("[::1]:7443/other", Pin(str(LOG.key)))
    assert pins.read() == {"127.0.0.1:7443/acme": first, "[::1]:7443/other": Pin(str(LOG.key))}
    assert pins.path().stat().st_mode & 0o777 == 0o600
    assert pins.find_key(LOG.key.name, None) == LOG.key
    with pytest.raises(LookupError):
        pins.find_key("else/acme", None)
    pins.write("[::1]:7443/other", None)
    assert list(pins.read()) == ["127.0.0.1:7443/acme"]
    pins.path().write_text("logs = 3")
    with pytest.raises(ValueError, match=r"logs\.toml"):
        pins.read()
