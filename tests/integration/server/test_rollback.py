"""A database that went back is refused, until somebody says by name and reason to go on with it."""

import asyncio
import pathlib
import shutil

import pytest

from lading.transparency import note
from lading_server import bootstrap, signer
from lading_server.ledger.transaction import Proof, Sight, Transaction
from lading_server.settings import Settings
from tests.integration.server.ledgers import book, event


async def record_and_sign(settings: Settings, count: int) -> note.Checkpoint:
    """The checkpoint of the log of acme after so many more events."""

    def look(transaction: Transaction) -> Proof:
        return transaction.prove_again("acme", -1, Sight())

    async with book(settings) as ledger:
        await ledger.record(*(event() for _ in range(count)))
        proof: Proof = await ledger.commit(look)
    return note.open_checkpoint(proof.checkpoint, signer.load(settings.data).key("acme"))


@pytest.fixture
def settings(tmp_path: pathlib.Path) -> Settings:
    made = Settings(data=tmp_path / "data")
    bootstrap.initialize(made, "acme", "ada", "", 3600)
    return made


def test_restored_database_is_refused_until_it_is_accepted(settings: Settings, tmp_path: pathlib.Path) -> None:
    database, backup = settings.data / "lading.db", tmp_path / "backup.db"
    asyncio.run(record_and_sign(settings, 3))
    shutil.copy(database, backup)
    signed = asyncio.run(record_and_sign(settings, 300))
    for file in settings.data.glob("lading.db*"):
        file.unlink()
    shutil.copy(backup, database)

    with pytest.raises(signer.RolledBack, match="accept-rollback --org acme"):
        asyncio.run(record_and_sign(settings, 1))
    size, was = bootstrap.accept_rollback(settings, "acme", "the newer one is lost")
    assert (size < was, was) == (True, signed.size)
    again = asyncio.run(record_and_sign(settings, 1))
    assert again.size == size + 2, "the acceptance is in the log too"
    with pytest.raises(bootstrap.NothingToAccept):
        bootstrap.accept_rollback(settings, "acme", "once more")


def test_log_that_only_grew_has_nothing_to_accept(settings: Settings) -> None:
    asyncio.run(record_and_sign(settings, 2))
    with pytest.raises(bootstrap.NothingToAccept):
        bootstrap.accept_rollback(settings, "acme", "by mistake")
