"""Keys, and what becomes of every token that a server may be shown."""

import base64
import json
import logging
import pathlib
import stat
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from lading_server import errors, tokens
from lading_server.event import ActorType

KEY = ed25519.Ed25519PrivateKey.generate()
OTHER_KEY = ed25519.Ed25519PrivateKey.generate()
OIDC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OIDC = "https://login.acme.example"
KEYS = {
    "lading": (tokens.Key("EdDSA", KEY.public_key()),),
    OIDC: (tokens.Key("RS256", RSA_KEY.public_key()), tokens.Key("ES256", OIDC_KEY.public_key())),
}
PUBLIC_PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
RAW_PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def payload(**changes: Any) -> dict[str, Any]:
    """A good payload with these claims instead; None leaves one out."""
    at = int(time.time())
    good = {"iss": "lading", "aud": "lading", "sub": "ada", "org": "acme", "iat": at, "exp": at + 60, "jti": "t1"}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def signed(key: Any = KEY, algorithm: str = "EdDSA", headers: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(payload(**changes), key, algorithm=algorithm, headers=headers)


def by_hand(header: dict[str, Any], body: bytes, signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), body, signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def hmac_signed(secret: bytes) -> str:
    """HS256 with the server's public key as the secret: PyJWT itself refuses to make one."""
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    unsigned = by_hand({"alg": "HS256", "typ": "JWT"}, json.dumps(payload()).encode())[:-1]
    return f"{unsigned}.{base64.urlsafe_b64encode(algorithm.sign(unsigned.encode(), secret)).decode().rstrip('=')}"


def tampered() -> str:
    """Another subject under the signature of the first."""
    head, _, signature = signed().split(".")
    body = base64.urlsafe_b64encode(json.dumps(payload(sub="eve")).encode()).decode().rstrip("=")
    return f"{head}.{body}.{signature}"


@pytest.fixture
def verifier() -> tokens.Verifier:
    return tokens.Verifier(KEYS, "lading")


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "empty": (lambda: "", "not a JWT"),
    "words": (lambda: "hello", "not a JWT"),
    "two parts": (lambda: "a.b", "not a JWT"),
    "not base64": (lambda: "!.!.!", "not a JWT"),
    "not JSON": (lambda: by_hand({"alg": "EdDSA"}, b"{"), "not a JWT"),
    "payload is a list": (lambda: by_hand({"alg": "EdDSA"}, b"[]"), "not a JWT"),
    "nested deeply": (lambda: by_hand({"alg": "EdDSA"}, b"[" * 5000), "not a JWT"),
    "not ASCII": (lambda: "é.ü.\udce9", "not a JWT"),
    "NUL": (lambda: "\0" + signed(), "not a JWT"),
    "10,000 characters": (lambda: "a" * 10_000, "longer than 8192"),
    "alg none": (lambda: jwt.encode(payload(), "", algorithm="none"), "'none' are not accepted"),
    "alg None, capitalised": (lambda: by_hand({"alg": "None"}, json.dumps(payload()).encode()), "not accepted"),
    "alg missing": (lambda: by_hand({"typ": "JWT"}, json.dumps(payload()).encode()), "not a"),
    "alg a list": (lambda: by_hand({"alg": ["EdDSA"]}, json.dumps(payload()).encode()), "not a"),
    "HS256 with the public key, PEM": (lambda: hmac_signed(PUBLIC_PEM), "'HS256' are not accepted"),
    "HS256 with the public key, raw": (lambda: hmac_signed(RAW_PUBLIC), "'HS256' are not accepted"),
    "wrong key": (lambda: signed(OTHER_KEY), "signature is wrong"),
    "no signature": (lambda: signed().rpartition(".")[0] + ".", "signature is wrong"),
    "claims changed": (tampered, "signature is wrong"),
    "another curve": (lambda: signed(ed448.Ed448PrivateKey.generate()), "signature is wrong"),
    "algorithm of another key": (lambda: signed(OIDC_KEY, "ES256"), "signature is wrong"),
    "unknown critical header": (lambda: signed(headers={"crit": ["x"], "x": 1}), "not a JWT"),
    "key in the header": (lambda: signed(OTHER_KEY, headers={"jwk": {"kty": "OKP"}}), "signature is wrong"),
    "unknown issuer": (lambda: signed(iss="https://evil.example"), "does not trust the issuer"),
    "issuer a list": (lambda: by_hand_signed('{"iss":["lading"]}'), "does not trust the issuer"),
    "no issuer": (lambda: signed(iss=None), "does not trust the issuer"),
    "key of one issuer for another": (lambda: signed(OIDC_KEY, "ES256", iss="lading"), "signature is wrong"),
    "own key for another issuer": (lambda: signed(iss=OIDC), "signature is wrong"),
    "expired": (lambda: signed(exp=int(time.time()) - 11), "expired"),
    "expired long ago": (lambda: signed(iat=1, exp=2), "expired"),
    "not valid yet": (lambda: signed(nbf=int(time.time()) + 60), "not valid yet"),
    "issued in the future": (lambda: signed(iat=int(time.time()) + 60), "not valid yet"),
    "wrong audience": (lambda: signed(aud="billing"), "its audience (aud) must be lading"),
    "wrong audiences": (lambda: signed(aud=["billing", "mail"]), "its audience (aud) must be lading"),
    "no aud": (lambda: signed(aud=None), "lacks the claim aud"),
    "no exp": (lambda: signed(exp=None), "lacks the claim exp"),
    "no iat": (lambda: signed(iat=None), "lacks the claim iat"),
    "no sub": (lambda: signed(sub=None), "lacks the claim sub"),
    "no org": (lambda: signed(org=None), "lacks the claim org"),
    "exp a word": (lambda: signed(exp="tomorrow"), "malformed"),
    "exp infinite": (lambda: by_hand_signed('{"exp":Infinity}'), "malformed"),
    "exp after the year 9999": (lambda: signed(exp=10**15), "claim exp is malformed"),
    "sub empty": (lambda: signed(sub=""), "claim sub is malformed"),
    "sub a number": (lambda: by_hand_signed('{"sub":7}'), "malformed"),
    "sub with NUL": (lambda: signed(sub="a\0b"), "claim sub is malformed"),
    "sub half a surrogate": (lambda: signed(sub="\ud800"), "claim sub is malformed"),
    "sub too long": (lambda: signed(sub="a" * 257), "claim sub is malformed"),
    "org with a slash": (lambda: signed(org="acme/../other"), "claim org is malformed"),
    "org with SQL": (lambda: signed(org="a' OR 1=1 --"), "claim org is malformed"),
    "org a list": (lambda: signed(org=["acme", "other"]), "claim org is malformed"),
    "kind unknown": (lambda: signed(kind="root"), "claim kind is malformed"),
    "agent with a slash": (lambda: signed(kind="agent", sub="dock/1"), "claim sub is malformed"),
    "email a number": (lambda: signed(email=7), "claim email is malformed"),
    "jti a number": (lambda: by_hand_signed('{"jti":7}'), "malformed"),
}


def by_hand_signed(changes: str) -> str:
    """Properly signed, with claims that PyJWT refuses to encode."""
    body = json.dumps({**payload(), **json.loads(changes)}).encode()
    return jwt.PyJWS().encode(body, KEY, algorithm="EdDSA")


@pytest.mark.parametrize("case", BAD)
def test_bad_token_is_refused_with_a_sentence(verifier: tokens.Verifier, case: str) -> None:
    make, sentence = BAD[case]
    with pytest.raises(errors.Unauthenticated) as refusal:
        verifier.verify(make())
    assert sentence in refusal.value.message
    assert "\n" not in refusal.value.message
    assert len(refusal.value.message) < 200


@pytest.mark.parametrize("case", BAD)
def test_refusal_does_not_repeat_the_token(
    verifier: tokens.Verifier, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = BAD[case][0]()
    with caplog.at_level(logging.DEBUG), pytest.raises(errors.Unauthenticated) as refusal:
        verifier.verify(token)
    for part in token.split("."):
        assert len(part) < 8 or (part not in refusal.value.message and part not in caplog.text)


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: raw.decode("latin-1")))
@settings(max_examples=200, deadline=None)
def test_any_text_is_refused_and_never_raises_another_error(text: str) -> None:
    with pytest.raises(errors.Unauthenticated):
        tokens.Verifier(KEYS, "lading").verify(text)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_flipped_character_never_passes(data: st.DataObject) -> None:
    token = signed()
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("abAB09-_.").filter(lambda character: character != token[at]))
    flipped = token[:at] + other + token[at + 1 :]
    try:
        claims = tokens.Verifier(KEYS, "lading").verify(flipped)
    except errors.Unauthenticated:
        return
    # The last character of base64 carries bits that mean nothing.
    assert at == len(token) - 1
    assert claims.subject == "ada"


def test_signed_token_says_what_was_claimed(verifier: tokens.Verifier) -> None:
    at = int(time.time()) * 1_000_000
    claims = tokens.Claims(
        "lading", "acme", ActorType.SERVICE, "billing", "id-1", at, at + 60_000_000, "b@acme.example", "Billing"
    )
    assert verifier.verify(tokens.sign(KEY, claims, "lading")) == claims


def test_token_just_expired_passes_within_the_leeway(verifier: tokens.Verifier) -> None:
    assert verifier.verify(signed(exp=int(time.time()) - 5)).subject == "ada"


def test_audience_may_be_one_of_several(verifier: tokens.Verifier) -> None:
    assert verifier.verify(signed(aud=["billing", "lading"])).subject == "ada"


@pytest.mark.parametrize(("key", "algorithm"), [(OIDC_KEY, "ES256"), (RSA_KEY, "RS256")])
def test_token_of_a_trusted_issuer_passes(verifier: tokens.Verifier, key: Any, algorithm: str) -> None:
    claims = verifier.verify(signed(key, algorithm, iss=OIDC, jti=None))
    assert (claims.issuer, claims.subject, claims.id, claims.type) == (OIDC, "ada", "", ActorType.USER)


def test_accepted_token_is_remembered_until_it_ends() -> None:
    clock = [int(time.time()) * 1_000_000]
    verifier = tokens.Verifier(KEYS, "lading", clock=lambda: clock[0])
    token = signed()
    first = verifier.verify(token)
    assert verifier.verify(token) is first
    clock[0] = first.expires_at
    assert verifier.verify(token) is not first


def test_refused_token_is_not_remembered(verifier: tokens.Verifier) -> None:
    for _ in range(2):
        with pytest.raises(errors.Unauthenticated):
            verifier.verify(signed(OTHER_KEY))
    assert not verifier._verified


def test_memory_of_tokens_is_bounded(verifier: tokens.Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "VERIFIED_MAX", 3)
    kept, *others = (signed(jti=str(number)) for number in range(5))
    first = verifier.verify(kept)
    for other in others:
        verifier.verify(other)
        assert verifier.verify(kept) is first, "the one that is used stays"
    assert len(verifier._verified) == 3


# -- keys


def test_key_is_made_once_and_for_its_owner_only(tmp_path: pathlib.Path) -> None:
    made = tokens.create_key(tmp_path)
    assert stat.S_IMODE((tmp_path / "token-key.pem").stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["token-key.pem"]
    for again in (tokens.create_key(tmp_path), tokens.load_key(tmp_path)):
        assert again.private_bytes_raw() == made.private_bytes_raw()


def test_missing_key_says_what_to_run(tmp_path: pathlib.Path) -> None:
    with pytest.raises(tokens.BadKey, match="run `lading server init"):
        tokens.load_key(tmp_path)


def test_key_that_others_can_read_is_refused(tmp_path: pathlib.Path) -> None:
    tokens.create_key(tmp_path)
    (tmp_path / "token-key.pem").chmod(0o604)
    with pytest.raises(tokens.BadKey, match="chmod 600"):
        tokens.load_key(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", PUBLIC_PEM])
def test_file_that_holds_no_private_key_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "token-key.pem"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(tokens.BadKey, match="not a private key"):
        tokens.load_key(tmp_path)


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def test_trusted_keys_know_their_algorithm(tmp_path: pathlib.Path) -> None:
    for name, key in (("a", KEY), ("b", OIDC_KEY), ("c", RSA_KEY)):
        (tmp_path / f"{name}.pem").write_bytes(public_pem(key))
    assert [key.algorithm for key in tokens.load_trusted(tmp_path)] == ["EdDSA", "ES256", "RS256"]


@pytest.mark.parametrize(
    "key",
    [
        ed448.Ed448PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=1024),
    ],
)
def test_trusted_key_of_another_kind_is_refused(tmp_path: pathlib.Path, key: Any) -> None:
    (tmp_path / "k.pem").write_bytes(public_pem(key))
    with pytest.raises(tokens.BadKey, match="must be an Ed25519 key"):
        tokens.load_trusted(tmp_path)


def test_trusted_file_without_a_key_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "k.pem").write_text("hello")
    with pytest.raises(tokens.BadKey, match="not a public key"):
        tokens.load_trusted(tmp_path)
