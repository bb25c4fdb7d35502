"""Tokens: JWTs (RFC 7519) that the server signs with Ed25519, and verifies, from itself and from other issuers.

Only asymmetric algorithms. Which one a token must use is a matter of the key, never of what the token says.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from lading_server import diff, errors, names
from lading_server.clock import Clock, now
from lading_server.event import ActorType
from lading_server.settings import ISSUER

KEY_FILE = "token-key.pem"

ALGORITHMS = ("EdDSA", "ES256", "RS256")
REQUIRED = ("iss", "aud", "exp", "iat", "sub", "org")
LEEWAY_SECONDS = 10
RSA_BITS_MIN = 2048
TOKEN_LENGTH_MAX = 8192
TEXT = re.compile("[^\\x00-\\x1f\\x7f\\ud800-\\udfff]{0,256}")
"""Claims go into events and the database: no control characters, and nothing that UTF-8 cannot say."""
VERIFIED_MAX = 10_000
MICROSECONDS = 1_000_000
EXPIRES_MAX = 253_402_300_799
"""The end of the year 9999, which is where a Timestamp ends."""

KINDS = {"user": ActorType.USER, "service": ActorType.SERVICE, "agent": ActorType.AGENT}
REPLICA = "replica"
_KIND_OF = {kind: name for name, kind in KINDS.items()}

PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class BadKey(errors.Error):
    """A key file cannot be used."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says. Times in microseconds since the epoch, whole seconds; `id` (jti) may be empty."""

    issuer: str
    organization: str
    type: ActorType
    subject: str
    id: str
    issued_at: int
    expires_at: int
    email: str = ""
    name: str = ""
    replica: bool = False
    """A process of this server, to another one."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key and the one algorithm that it is for."""

    algorithm: str
    public: PublicKey


def create_key(data: pathlib.Path) -> ed25519.Ed25519PrivateKey:
    """The server's signing key in the data directory, made (mode 0600) unless it is there. Raises BadKey."""
    path = data / KEY_FILE
    if not path.exists():
        pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        # A crash before the link leaves a stray file and no key; after it, the whole key. A second process that
        # makes one at the same time loses the race and loads the winner's.
        with tempfile.NamedTemporaryFile(dir=data, prefix=KEY_FILE, delete=True) as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
        folder = os.open(data, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return load_key(data)


def load_key(data: pathlib.Path) -> ed25519.Ed25519PrivateKey:
    """The server's signing key. Raises BadKey, saying what to run."""
    path = data / KEY_FILE
    try:
        if path.stat().st_mode & stat.S_IRWXO:
            raise BadKey(f"{path} can be read by others: run `chmod 600 {path}`")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise BadKey(
            f"{data} holds no {KEY_FILE}: run `lading server init --data {data} …`, "
            "or copy the file from another server of this database"
        ) from None
    except OSError as failure:
        raise BadKey(f"{path} cannot be read: {failure.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadKey(f"{path} is not a private key in PEM without a password") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadKey(f"{path} is not an Ed25519 key")
    return key


def load_trusted(folder: pathlib.Path) -> tuple[Key, ...]:
    """The public keys in the *.pem files of a folder. Raises BadKey for a file that holds none."""
    return tuple(load_public(path) for path in sorted(folder.glob("*.pem")))


def load_public(path: pathlib.Path) -> Key:
    """A public key in PEM. Raises BadKey."""
    try:
        public = serialization.load_pem_public_key(path.read_bytes())
    except OSError as failure:
        raise BadKey(f"{path} cannot be read: {failure.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadKey(f"{path} is not a public key in PEM") from None
    if isinstance(public, ed25519.Ed25519PublicKey):
        return Key("EdDSA", public)
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return Key("ES256", public)
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= RSA_BITS_MIN:
        return Key("RS256", public)
    raise BadKey(f"{path} must be an Ed25519 key, one on the curve P-256, or RSA of at least {RSA_BITS_MIN} bits")


def sign(key: ed25519.Ed25519PrivateKey, claims: Claims, audience: str) -> str:
    """The token that says `claims` to `audience`."""
    payload = {
        "iss": claims.issuer,
        "aud": audience,
        "sub": claims.subject,
        "org": claims.organization,
        "kind": REPLICA if claims.replica else _KIND_OF[claims.type],
        "iat": claims.issued_at // MICROSECONDS,
        "exp": claims.expires_at // MICROSECONDS,
        "jti": claims.id,
        "email": claims.email,
        "name": claims.name,
    }
    return jwt.encode({name: value for name, value in payload.items() if value != ""}, key, algorithm="EdDSA")


def diff_of(claims: Claims) -> list[dict[str, Any]]:
    """What the issue of a token changes, for its event."""
    value = {"type": _KIND_OF[claims.type], "subject": claims.subject, "expires_at": when(claims.expires_at)}
    if claims.email:
        value["email"] = claims.email
    return diff.change("tokens", claims.id, was=None, value=value)


class Verifier:
    """Verifies tokens for one audience, and remembers those it accepted until they end: a verification costs 130 to
    240 microseconds. `keys`: by issuer; a key vouches for its own issuer only."""

    def __init__(self, keys: Mapping[str, Sequence[Key]], audience: str, clock: Clock = now) -> None:
        self._keys = keys
        self._audience = audience
        self._clock = clock
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()

    def verify(self, token: str) -> Claims:
        """What the token says, if it is to be believed. Raises Unauthenticated with a sentence for its bearer."""
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        known = self._verified.get(digest)
        if known is not None and known.expires_at > self._clock():
            self._verified.move_to_end(digest)
            return known
        self._verified.pop(digest, None)
        claims = self._check(token)
        self._verified[digest] = claims
        if len(self._verified) > VERIFIED_MAX:
            self._verified.popitem(last=False)
        return claims

    def _check(self, token: str) -> Claims:
        if len(token) > TOKEN_LENGTH_MAX:
            raise errors.Unauthenticated(
                f"the token is longer than {TOKEN_LENGTH_MAX} characters: ask for a shorter one"
            )
        try:
            unverified = jwt.decode_complete(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise errors.Unauthenticated("the token is not a JWT: copy it again, whole and without quotes") from None
        algorithm, issuer = unverified["header"].get("alg"), unverified["payload"].get("iss")
        if algorithm not in ALGORITHMS:
            raise errors.Unauthenticated(
                f"tokens signed by {str(algorithm)[:16]!r} are not accepted, only those by {', '.join(ALGORITHMS)}"
            )
        keys = self._keys.get(issuer) if isinstance(issuer, str) else None
        if keys is None:
            raise errors.Unauthenticated(
                "this server does not trust the issuer of the token: get one from an administrator "
                "(`lading token create`)"
            )
        for key in keys:
            if key.algorithm == algorithm:
                with contextlib.suppress(jwt.InvalidSignatureError):
                    return self._believe(token, key, issuer)
        raise errors.Unauthenticated(
            "the token's signature is wrong: it was changed, or another server issued it; "
            "get one from an administrator of this server (`lading token create`)"
        )

    def _believe(self, token: str, key: Key, issuer: str) -> Claims:
        try:
            payload = jwt.decode(
                token,
                key.public,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": list(REQUIRED)},
            )
            return read(payload)
        except jwt.InvalidSignatureError:
            raise
        except jwt.ExpiredSignatureError:
            raise errors.Unauthenticated(
                "the token has expired: get a new one from an administrator (`lading token create`)"
            ) from None
        except jwt.ImmatureSignatureError:
            raise errors.Unauthenticated(
                "the token is not valid yet: compare the clocks of this server and of its issuer"
            ) from None
        except jwt.InvalidAudienceError:
            raise errors.Unauthenticated(
                f"the token is not for this server: its audience (aud) must be {self._audience}"
            ) from None
        except jwt.MissingRequiredClaimError as missing:
            raise errors.Unauthenticated(
                f"the token lacks the claim {missing.claim}: it needs {', '.join(REQUIRED)}"
            ) from None
        except jwt.PyJWTError:
            raise errors.Unauthenticated("the token's claims are malformed: get another one") from None


def read(payload: Mapping[str, Any]) -> Claims:
    """Claims of a payload whose signature and times were verified. Raises Unauthenticated for values out of shape."""
    expires = int(payload["exp"])
    organization, subject = _text(payload, "org"), _text(payload, "sub")
    said = _text(payload, "kind", "user")
    # Only this server speaks for its processes.
    replica = said == REPLICA and payload["iss"] == ISSUER
    kind = ActorType.SERVICE if replica else KINDS.get(said)
    if not names.ID.fullmatch(organization):
        raise _malformed("org")
    if kind is None:
        raise _malformed("kind")
    if not subject or (kind is ActorType.AGENT and not names.ID.fullmatch(subject)):
        raise _malformed("sub")
    if expires > EXPIRES_MAX:
        raise _malformed("exp")
    return Claims(
        issuer=payload["iss"],
        organization=organization,
        type=kind,
        subject=subject,
        id=_text(payload, "jti"),
        issued_at=int(payload["iat"]) * MICROSECONDS,
        expires_at=expires * MICROSECONDS,
        email=_text(payload, "email"),
        name=_text(payload, "name"),
        replica=replica,
    )


def when(at: int) -> str:
    """Microseconds since the epoch in RFC 3339, UTC, to the second."""
    return datetime.fromtimestamp(at // MICROSECONDS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _text(payload: Mapping[str, Any], claim: str, default: str = "") -> str:
    value = payload.get(claim, default)
    if not isinstance(value, str) or not TEXT.fullmatch(value):
        raise _malformed(claim)
    return value


def _malformed(claim: str) -> errors.Unauthenticated:
    return errors.Unauthenticated(f"the token's claim {claim} is malformed: get another token")
