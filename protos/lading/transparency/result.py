"""What an agent signs of a command's end, so that the log can show who said it. The signature is Ed25519 (RFC 8032) by
the key that the agent cosigns with; the first line keeps the two apart."""

import base64
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from lading.transparency.jcs import canonical
from lading.transparency.note import Key

DOMAIN = b"lading-result/v1\n"


class InvalidResult(ValueError):
    """The signature of the result does not hold."""


@dataclass(frozen=True, slots=True)
class Statement:
    """How a command ended, as its agent says.

    `state` in capitals (`SUCCEEDED`); `code` of gRPC; `error` and `evidence` as they were sent. Of an exec session:
    `exit_code`, None when it had not ended, and `output_sha256` and `output_bytes` of all that it wrote.
    """

    organization: str
    agent: str
    command: str
    state: str
    code: int = 0
    error: str = ""
    evidence: str = ""
    container_id: str = ""
    exit_code: int | None = None
    output_sha256: bytes = b""
    output_bytes: int = 0

    def text(self) -> bytes:
        """The bytes that are signed: a line that names the kind, then canonical JSON (RFC 8785).

        Raises ValueError for text that JSON cannot say.
        """
        said: dict[str, object] = {
            "agent": self.agent,
            "code": self.code,
            "command": self.command,
            "container_id": self.container_id,
            "error": self.error,
            "evidence": self.evidence,
            "organization": self.organization,
            "state": self.state,
        }
        if self.exit_code is not None or self.output_sha256:
            ended = {} if self.exit_code is None else {"exit_code": self.exit_code}
            digest = base64.b64encode(self.output_sha256).decode()
            said["exec"] = {**ended, "output_bytes": self.output_bytes, "output_sha256": digest}
        return DOMAIN + canonical(said)


def verify_result(statement: Statement, signature: bytes, key: Key) -> None:
    """Check that the agent with this key signed it. Raises InvalidResult."""
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, statement.text())
    except (InvalidSignature, ValueError):
        raise InvalidResult(f"the result of command {statement.command} is not signed by {key.name}") from None
