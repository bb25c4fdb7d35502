"""Signers of logs, for ledgers that tests make themselves."""

import pathlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lading_server.signer import Signer

NAME = "test.internal"


def new_signer(folder: pathlib.Path = pathlib.Path("unused")) -> Signer:
    """One with a new key. It writes to its folder only when it signs."""
    return Signer(folder, Ed25519PrivateKey.generate(), NAME)
