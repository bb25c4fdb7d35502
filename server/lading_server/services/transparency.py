"""The part of AuditLog that proves: checkpoints, proofs, tiles, receipts."""

import base64
from collections.abc import AsyncIterator
from typing import Any

from lading.v1 import audit_log_pb2 as pb
from lading_server import call as calls
from lading_server import errors, names
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Proof, Sight, Transaction
from lading_server.services.resources import stamp
from lading_server.signer import Signer
from lading_server.store import events, tiles
from lading_server.store.reader import Reader

ENTRIES = -1
"""Level of the tiles that hold entries."""
LEVEL_MAX = 7
RECEIPT = "c2sp.org/tlog-proof@v1"


class Transparency:
    """What everybody who reads the log may have proven."""

    _reader: Reader

    def __init__(self, ledger: Ledger, signer: Signer, cache: tiles.Cache) -> None:
        self._ledger, self._signer, self._cache = ledger, signer, cache

    async def _sign(self, organization: str, index: int = -1) -> Proof:
        """The tree as it is now, signed, with the proof of one entry. Raises LedgerUnavailable, RolledBack."""

        def look(transaction: Transaction) -> Proof:
            return transaction.prove_again(organization, index, Sight())

        proof = await self._ledger.commit((organization,), look)
        if not proof.checkpoint:
            raise errors.LedgerUnavailable("the log cannot be signed now: try again")
        return proof

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Any) -> pb.GetCheckpointResponse:
        organization = calls.current().organization
        proof = await self._sign(organization)
        found = await self._reader.read(tiles.list_cosignatures, organization)
        return pb.GetCheckpointResponse(
            checkpoint=proof.checkpoint,
            log_key=str(self._signer.key(organization)),
            size=proof.size,
            cosignatures=[
                pb.Cosignature(
                    agent=names.agent_name(row.agent),
                    witness_key=row.witness_key,
                    size=row.size,
                    root=row.root,
                    signature=row.signature,
                    signed_at=stamp(row.signed_at),
                )
                for row in found
            ],
        )

    async def GetInclusionProof(self, request: pb.GetInclusionProofRequest, context: Any) -> pb.InclusionProof:
        organization = calls.current().organization
        size = await self._size(organization, request.size)
        hashes = await self._prove(tiles.inclusion, organization, request.index, size)
        return pb.InclusionProof(index=request.index, size=size, hashes=hashes)

    async def GetConsistencyProof(self, request: pb.GetConsistencyProofRequest, context: Any) -> pb.ConsistencyProof:
        organization = calls.current().organization
        second = await self._size(organization, request.second)
        hashes = await self._prove(tiles.consistency, organization, request.first, second)
        return pb.ConsistencyProof(first=request.first, second=second, hashes=hashes)

    async def _size(self, organization: str, requested: int) -> int:
        size = (await self._reader.read(events.log, organization)).size
        if requested > size:
            raise errors.OutOfRange(f"the log has {size} entries, not {requested}")
        return requested or size

    async def _prove(self, make: Any, organization: str, first: int, size: int) -> Any:
        try:
            return await self._reader.read(make, organization, self._cache, first, size)
        except (ValueError, LookupError) as failure:
            raise errors.OutOfRange(str(failure)) from failure

    async def ReadTiles(self, request: pb.ReadTilesRequest, context: Any) -> AsyncIterator[pb.ReadTilesResponse]:
        organization = calls.current().organization
        for tile in request.tiles:
            width = tile.width or tiles.WIDTH
            if not ENTRIES <= tile.level <= LEVEL_MAX or width > tiles.WIDTH:
                raise errors.InvalidArgument(f"there is no tile of level {tile.level} with a width of {width}")
            data = await self._reader.read(read_tile, organization, self._cache, tile.level, tile.index, width)
            if data is None:
                raise errors.OutOfRange(f"tile {tile.index} of level {tile.level} does not have {width} hashes yet")
            yield pb.ReadTilesResponse(tile=tile, data=data)

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: Any) -> pb.Receipt:
        organization = calls.current().organization
        row = await self._reader.read(events.get, organization, request.id)
        if row is None:
            row = await self._reader.read(events.last_of, organization, request.id)
        if row is None:
            raise errors.NotFound(f"there is no event and no operation {request.id} in your organization")
        proof = await self._sign(organization, row.index)
        return pb.Receipt(
            proof=receipt_of(proof),
            entry=proof.entry,
            entry_details=proof.details,
            salt=proof.salt,
            log_key=str(self._signer.key(organization)),
        )


def receipt_of(proof: Proof) -> str:
    """A proof as C2SP tlog-proof."""
    hashes = "".join(f"{base64.b64encode(one).decode()}\n" for one in proof.hashes)
    return f"{RECEIPT}\nindex {proof.index}\n{hashes}\n{proof.checkpoint}"


def read_tile(
    connection: Any, /, organization: str, cache: tiles.Cache, level: int, index: int, width: int
) -> bytes | None:
    """The bytes of a tile as C2SP tlog-tiles has them; None when it is not that wide yet."""
    if level == ENTRIES:
        entries = tiles.read_entries(connection, organization, index * tiles.WIDTH, width)
        if len(entries) < width:
            return None
        return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)
    hashes = tiles.Nodes(connection, organization, cache).tile(level, index)[:width]
    return b"".join(hashes) if len(hashes) == width else None
