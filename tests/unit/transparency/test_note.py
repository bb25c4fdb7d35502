"""Signed notes against published vectors, and against themselves."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from lading.transparency import note

EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
NEUMANN_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANN_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
NEUMANN_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NEUMANN_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
ORIGIN = "acme.lading.example"


def key_pair(name: str, algorithm: int = note.ED25519) -> tuple[Ed25519PrivateKey, note.Key]:
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    return private, note.Key(name, algorithm, private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def signed_checkpoint(size: int = 3) -> tuple[str, note.Key]:
    private, key = key_pair(ORIGIN)
    text = note.Checkpoint(ORIGIN, size, bytes(32)).text()
    return f"{text}\n{note.format_signature(key, private.sign(text.encode()))}", key


def test_published_note_verifies_and_a_changed_one_does_not() -> None:
    key = note.parse_key(EXAMPLE_KEY)
    assert str(key) == EXAMPLE_KEY
    assert note.verify_note(note.parse_note(EXAMPLE), [key]) == [(key, 0)]
    with pytest.raises(note.InvalidNote):
        note.verify_note(note.parse_note(EXAMPLE.replace("example message", "examp1e message")), [key])


def test_published_signing_key_signs_byte_for_byte() -> None:
    private = Ed25519PrivateKey.from_private_bytes(NEUMANN_SEED)
    key = note.parse_key(NEUMANN_KEY)
    line = note.format_signature(key, private.sign(NEUMANN_TEXT.encode()))
    assert line == f"— PeterNeumann {NEUMANN_SIGNATURE}\n"
    assert note.verify_note(note.parse_note(f"{NEUMANN_TEXT}\n{line}"), [key]) == [(key, 0)]


def test_checkpoint_of_another_log_is_refused() -> None:
    raw, key = signed_checkpoint()
    assert note.open_checkpoint(raw, key).size == 3
    private, _ = key_pair(ORIGIN)
    text = note.Checkpoint("other.lading.example", 3, bytes(32)).text()
    foreign = f"{text}\n{note.format_signature(key, private.sign(text.encode()))}"
    with pytest.raises(note.InvalidNote, match=r"other\.lading\.example"):
        note.open_checkpoint(foreign, key)


def test_cosignature_verifies_with_its_time_and_not_with_another() -> None:
    raw, _ = signed_checkpoint()
    text = note.parse_note(raw).text
    private, witness = key_pair("agent/dock-1", note.COSIGNATURE)
    blob = (1700000000).to_bytes(8, "big") + private.sign(note.cosigned(text, 1700000000))
    assert note.verify_note(note.parse_note(raw + note.format_signature(witness, blob)), [witness]) == [
        (witness, 1700000000)
    ]
    later = (1700000001).to_bytes(8, "big") + blob[8:]
    with pytest.raises(note.InvalidNote):
        note.verify_note(note.parse_note(raw + note.format_signature(witness, later)), [witness])


def test_note_without_a_known_key_is_refused() -> None:
    raw, _ = signed_checkpoint()
    with pytest.raises(note.InvalidNote, match="no signature by a known key"):
        note.verify_note(note.parse_note(raw), [note.parse_key(EXAMPLE_KEY)])


@pytest.mark.parametrize("size", ["03", "-1", "", "1 ", "1e3", "99999999999999999999"])
def test_checkpoint_with_a_malformed_size_is_refused(size: str) -> None:
    with pytest.raises(note.InvalidNote):
        note.parse_checkpoint(f"{ORIGIN}\n{size}\n{base64.b64encode(bytes(32)).decode()}\n")


@given(st.text(max_size=300))
def test_any_text_is_a_note_or_refused(text: str) -> None:
    for parse in (note.parse_note, note.parse_key, note.parse_checkpoint):
        try:
            parse(text)
        except note.InvalidNote:
            continue


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_no_flipped_bit_of_a_checkpoint_passes(at: int, bit: int) -> None:
    raw, key = signed_checkpoint()
    changed = bytearray(raw.encode())
    at %= len(changed)
    changed[at] ^= 1 << bit % 8
    try:
        text = changed.decode()
        found = note.open_checkpoint(text, key)
    except (UnicodeDecodeError, note.InvalidNote):
        return
    # Only what is not signed can differ: nothing does.
    assert (found, text) == (note.open_checkpoint(raw, key), raw)
