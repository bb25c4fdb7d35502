"""What the signer keeps beside its key: in two slots, so that no crash leaves none."""

import json
import os
import pathlib

import pytest

from lading_server.signer import SLOT_BYTES, STATE_FOLDER, RolledBack, Signed, read_state, slot_of
from tests.signers import new_signer

ROOTS = [bytes([number]) * 32 for number in range(6)]


def states(path: pathlib.Path) -> list[int]:
    """The sizes in the slots."""
    return [json.loads(line)["size"] for line in path.read_text().splitlines()]


def test_each_write_leaves_the_state_before_it(tmp_path: pathlib.Path) -> None:
    signer, path = new_signer(tmp_path), tmp_path / STATE_FOLDER / "acme.json"
    for size in range(1, 6):
        signer.accept("acme", size, ROOTS[size])
        signer.sign("acme", size, ROOTS[size])
        assert sorted(states(path)) == sorted({1: [1, 1]}.get(size, [size - 1, size]))
        assert path.stat().st_size == 2 * SLOT_BYTES
        assert read_state(path.read_text()) == Signed(size, ROOTS[size])


def test_logs_take_turns_of_their_own(tmp_path: pathlib.Path) -> None:
    signer = new_signer(tmp_path)
    for size in range(1, 5):
        for name in ("acme", "globex"):
            signer.accept(name, size, ROOTS[size])
            signer.sign(name, size, ROOTS[size])
    for name in ("acme", "globex"):
        assert sorted(states(tmp_path / STATE_FOLDER / f"{name}.json")) == [3, 4]


@pytest.mark.parametrize("torn", [b"\0", b"[", b'{"size": 9'])
def test_a_torn_write_leaves_what_was_signed_before(torn: bytes) -> None:
    older, newer = slot_of(Signed(7, ROOTS[1])), slot_of(Signed(8, ROOTS[2]))
    assert read_state((older + torn + newer[len(torn) :]).decode()) == Signed(7, ROOTS[1])
    assert read_state((older + newer.replace(b'"size": 8', b'"size": 9')).decode()) == Signed(7, ROOTS[1])
    assert read_state((newer + older).decode()) == Signed(8, ROOTS[2])


def test_a_state_of_an_older_server_is_read_and_then_replaced(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / STATE_FOLDER
    folder.mkdir()
    (folder / "acme.json").write_text(json.dumps({"size": 3, "root": ROOTS[3].hex()}) + "\n")
    signer = new_signer(tmp_path)
    signer.check("acme", 3, ROOTS[3], lambda first, size: ())
    with pytest.raises(RolledBack):
        signer.check("acme", 2, ROOTS[2], lambda first, size: ())
    signer.accept("acme", 4, ROOTS[4])
    signer.sign("acme", 4, ROOTS[4])
    assert states(folder / "acme.json") == [4, 4]


def test_a_write_that_failed_is_done_in_the_same_slot_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer, path = new_signer(tmp_path), tmp_path / STATE_FOLDER / "acme.json"
    for size in (1, 2):
        signer.accept("acme", size, ROOTS[size])
        signer.sign("acme", size, ROOTS[size])

    def refuse(file: int) -> None:
        raise OSError(28, "no space")

    signer.accept("acme", 3, ROOTS[3])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        with pytest.raises(OSError, match="no space"):
            signer.sign("acme", 3, ROOTS[3])
    signer.sign("acme", 3, ROOTS[3])
    assert sorted(states(path)) == [2, 3]
