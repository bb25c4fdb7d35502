"""Who is shown a log tree by tree, and believes nothing."""

from lading.transparency import merkle, note
from lading_server.ledger.transaction import Proof, Sight, Transaction
from tests.integration.server.ledgers import Book


class Witness:
    """Checks each proof against the last tree it was shown, as an agent does."""

    def __init__(self, key: note.Key) -> None:
        self.key = key
        self.sight = Sight()
        self.size, self.root = 0, merkle.EMPTY_ROOT

    def take(self, proof: Proof) -> note.Checkpoint:
        """The next proof that was made for it. Raises InvalidNote, InvalidProof."""
        checkpoint = note.open_checkpoint(proof.checkpoint, self.key)
        assert (checkpoint.size, proof.extends) == (proof.size, self.size)
        if self.size:
            merkle.verify_consistency(self.size, checkpoint.size, self.root, checkpoint.root, proof.consistency)
        if proof.index >= 0:
            leaf = merkle.leaf_hash(proof.entry)
            merkle.verify_inclusion(leaf, proof.index, checkpoint.size, proof.hashes, checkpoint.root)
        self.size, self.root = checkpoint.size, checkpoint.root
        return checkpoint

    async def look(self, made: Book, organization: str = "acme", index: int = -1) -> note.Checkpoint:
        """Have the log shown, with the proof of one entry, and check it."""

        def show(transaction: Transaction) -> Proof:
            return transaction.prove_again(organization, index, self.sight)

        return self.take(await made.ledger.commit((organization,), show))
