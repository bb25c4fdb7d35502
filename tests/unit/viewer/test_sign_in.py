"""Sessions, addresses to return to, and the wait after wrong tokens."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading_viewer import session, sign_in
from tests.unit.viewer.audit_server import token


def test_token_says_who_and_until_when() -> None:
    found = session.read(token("ana", timedelta(hours=1)))
    assert found is not None
    assert (found.subject, found.email, found.organization) == ("ana", "ana@acme.example", "acme")
    assert not found.ended(datetime.now(UTC))
    assert found.ended(datetime.now(UTC) + timedelta(hours=1))


@given(st.text())
def test_any_text_is_a_session_or_none(text: str) -> None:
    assert session.read(text) is None or text.count(".") >= 1


def test_token_without_an_end_is_no_session() -> None:
    ends: list[object] = [None, "soon", float("inf"), 1e300, [], {}]
    for end in ends:
        assert session.read(token(exp=end)) is None


@pytest.mark.parametrize(
    "url",
    [
        "//evil.example",
        "https://evil.example/",
        "/\\evil.example",
        "javascript:alert(1)",
        "",
        "evil",
        "/\t/evil",
        "/signin",
    ],
)
def test_sign_in_leads_nowhere_else(url: str) -> None:
    assert sign_in.local(url) == "/"


def test_sign_in_leads_back_to_the_page() -> None:
    assert sign_in.local("/?q=user%3Aana&event=1") == "/?q=user%3Aana&event=1"


def test_form_escapes_where_it_leads_to() -> None:
    body = bytes(sign_in.page('/?q="><script>alert(1)</script>').body).decode()
    assert "<script>" not in body


def test_wrong_tokens_make_an_address_wait_longer_each_time() -> None:
    backoff = sign_in.Backoff()
    waits = []
    for _ in range(14):
        backoff.wrong("10.0.0.1", 100.0)
        waits.append(backoff.wait("10.0.0.1", 100.0))
    assert waits[:5] == [0, 0, 0, 0, 0]
    assert waits[5:] == [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert backoff.wait("10.0.0.2", 100.0) == 0
    assert backoff.wait("10.0.0.1", 161.0) == 0
    backoff.right("10.0.0.1")
    assert backoff.wait("10.0.0.1", 100.0) == 0


def test_addresses_are_not_remembered_without_bound() -> None:
    backoff = sign_in.Backoff(addresses_max=10)
    for number in range(100):
        backoff.wrong(f"10.0.0.{number}", 0.0)
    assert len(backoff._wrong) == 10
