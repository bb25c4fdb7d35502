"""What the agent believes of the log, and what it signs."""

import pathlib
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lading.transparency import note
from lading.v1.agent_link_pb2 import Growth
from lading_agent.errors import JournalError, LogRefused, SessionBroken, SettingsError
from lading_agent.journal import Journal
from lading_agent.witness import KEY_FILE, Witness
from tests.unit.agent.honest_log import AGENT, ORGANIZATION, HonestLog


async def open_witness(folder: pathlib.Path, organization: str = ORGANIZATION) -> tuple[Witness, Journal]:
    journal = Journal(folder)
    await journal.open()
    witness = Witness(organization, AGENT, journal)
    try:
        await witness.open()
    except BaseException:
        await journal.close()
        raise
    return witness, journal


@pytest.fixture
async def journal(tmp_path: pathlib.Path) -> AsyncIterator[Journal]:
    journal = Journal(tmp_path)
    await journal.open()
    yield journal
    await journal.close()


@pytest.fixture
async def witness(journal: Journal) -> Witness:
    witness = Witness(ORGANIZATION, AGENT, journal)
    await witness.open()
    return witness


@pytest.fixture
def log() -> HonestLog:
    log = HonestLog()
    log.grow(5)
    return log


async def see(witness: Witness, growth: Growth) -> None:
    await witness._journal.keep(witness.check(growth))


async def test_every_growth_of_an_honest_log_is_believed(witness: Witness, log: HonestLog) -> None:
    for _ in range(40):
        await see(witness, log.growth(witness.size))
        assert witness.size == log.size
        log.grow(3)


async def test_what_was_seen_survives_a_new_start(tmp_path: pathlib.Path, log: HonestLog) -> None:
    witness, journal = await open_witness(tmp_path)
    await see(witness, log.growth(0))
    key = witness.key
    await journal.close()
    witness, journal = await open_witness(tmp_path)
    assert (witness.size, witness.key) == (5, key)
    assert journal.view is not None
    assert (journal.view.log_key, journal.view.checkpoint) == (log.key, log.checkpoint(5))
    await journal.close()


async def test_check_alone_keeps_nothing(witness: Witness, log: HonestLog) -> None:
    witness.check(log.growth(0))
    assert witness.size == 0


async def test_another_key_is_refused_and_both_are_named(witness: Witness, log: HonestLog) -> None:
    await see(witness, log.growth(0))
    other = HonestLog()
    other.leaves = [*log.leaves, bytes(32)]
    with pytest.raises(LogRefused) as refused:
        witness.check(other.growth(5))
    assert str(other.key) in str(refused.value)
    assert str(log.key) in str(refused.value)


async def test_the_pinned_key_under_another_ones_name_is_refused(witness: Witness, log: HonestLog) -> None:
    await see(witness, log.growth(0))
    other = HonestLog()
    other.leaves = [*log.leaves, bytes(32)]
    growth = other.growth(5)
    growth.log_key = str(log.key)
    with pytest.raises(LogRefused, match="no signature by a known key"):
        witness.check(growth)


async def test_a_log_of_another_organization_is_not_pinned(witness: Witness) -> None:
    other = HonestLog("emca")
    other.grow()
    with pytest.raises(LogRefused, match="is not the key of the log of acme"):
        witness.check(other.growth(0))


async def test_a_checkpoint_of_another_log_by_the_same_key_is_refused(witness: Witness, log: HonestLog) -> None:
    other = HonestLog("emca", private=log.private)
    other.grow(6)
    growth = other.growth(0)
    growth.log_key = str(log.key)
    with pytest.raises(LogRefused):
        witness.check(growth)
    # The same key, under the name it has here, over the other log's text.
    text = note.Checkpoint(other.key.name, 6, bytes(32)).text()
    growth.checkpoint = f"{text}\n{note.format_signature(log.key, log.private.sign(text.encode()))}"
    with pytest.raises(LogRefused, match=r"is of the log harbour\.internal/emca"):
        witness.check(growth)


async def test_a_tree_with_another_history_is_refused(witness: Witness, log: HonestLog) -> None:
    await see(witness, log.growth(0))
    rewritten = HonestLog(private=log.private)
    rewritten.leaves = [*log.leaves[:2], bytes(32), *log.leaves[3:], bytes(32)]
    with pytest.raises(LogRefused, match="the tree of 6 does not extend the tree of 5"):
        witness.check(rewritten.growth(5))
    rewritten.leaves = rewritten.leaves[:5]
    with pytest.raises(LogRefused, match="two trees of 5 have different roots"):
        witness.check(rewritten.growth(5))
    # The true tree is believed all the same afterwards.
    log.grow()
    await see(witness, log.growth(5))


async def test_a_log_that_went_back_is_refused(witness: Witness, log: HonestLog) -> None:
    await see(witness, log.growth(0))
    with pytest.raises(LogRefused, match="a tree of 3 cannot extend one of 5"):
        witness.check(log.growth(5, 3))


async def test_a_proof_from_another_size_ends_the_session_and_says_both(witness: Witness, log: HonestLog) -> None:
    await see(witness, log.growth(0))
    log.grow()
    for extends in (0, 3, 6, -1):
        with pytest.raises(SessionBroken, match=f"from {extends} entries, and this agent saw 5"):
            witness.check(log.growth(extends))


async def test_a_tree_of_one_size_is_seen_twice_only_with_one_root(witness: Witness, log: HonestLog) -> None:
    await see(witness, log.growth(0))
    await see(witness, log.growth(5))
    growth = log.growth(5)
    growth.consistency.append(bytes(32))
    with pytest.raises(LogRefused, match="need no proof"):
        witness.check(growth)


async def test_an_empty_log_is_believed_and_not_twice_differently(witness: Witness) -> None:
    log = HonestLog()
    await see(witness, log.growth(0))
    assert witness.size == 0
    other = HonestLog()
    other.grow()
    with pytest.raises(LogRefused, match="has pinned"):
        witness.check(other.growth(0))
    log.grow(3)
    await see(witness, log.growth(0))
    assert witness.size == 3


async def test_nothing_at_all_is_refused(witness: Witness) -> None:
    with pytest.raises(LogRefused):
        witness.check(Growth())


async def test_a_size_that_no_log_has_is_refused(witness: Witness, log: HonestLog) -> None:
    text = note.Checkpoint(log.key.name, 2**63, bytes(32)).text()
    signed = f"{text}\n{note.format_signature(log.key, log.private.sign(text.encode()))}"
    with pytest.raises(LogRefused, match="no log has"):
        witness.check(Growth(checkpoint=signed, log_key=str(log.key)))


async def test_the_cosignature_is_what_verifiers_expect(witness: Witness, log: HonestLog) -> None:
    await see(witness, log.growth(0))
    signed = witness.cosign()
    text = note.Checkpoint(log.key.name, signed.size, signed.root).text()
    assert log.checkpoint(5).startswith(text)
    key = note.parse_key(str(witness.key))
    ((found, at),) = note.verify_note(note.parse_note(f"{text}\n{signed.signature}"), [key])
    assert (found.name, found.algorithm) == (f"{ORGANIZATION}/{AGENT}", note.COSIGNATURE)
    assert at > 1_700_000_000


async def test_the_witness_key_is_the_agents_alone(tmp_path: pathlib.Path) -> None:
    _, journal = await open_witness(tmp_path)
    await journal.close()
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / KEY_FILE).write_text("nonsense")
    with pytest.raises(SettingsError, match="is not a private key"):
        await open_witness(tmp_path)


async def test_a_journal_belongs_to_one_agent_of_one_organization(tmp_path: pathlib.Path) -> None:
    _, journal = await open_witness(tmp_path)
    await journal.close()
    with pytest.raises(JournalError, match="that of the agent acme/dock-1, this is emca/dock-1"):
        await open_witness(tmp_path, "emca")


async def test_a_log_forgotten_by_hand_is_pinned_anew(witness: Witness, journal: Journal, log: HonestLog) -> None:
    await see(witness, log.growth(0))
    other = HonestLog(private=Ed25519PrivateKey.generate())
    other.grow(2)
    known = await journal.forget_log()
    assert known is not None
    assert known.checkpoint == log.checkpoint(5)
    await see(witness, other.growth(0))
    assert await journal._write(
        lambda connection: connection.execute("SELECT checkpoint FROM refusals").fetchall()
    ) == [(log.checkpoint(5),)]
