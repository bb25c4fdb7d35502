"""The viewer as a process: what it answers to a browser, and to what is none."""

import contextlib
import csv
import dataclasses
import http.client
import io
import json
import pathlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlencode

import grpc
import pytest

from tests.process import Process
from tests.stack import LADING
from tests.unit.viewer import audit_server
from tests.unit.viewer.audit_server import Log, event


@dataclasses.dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclasses.dataclass
class Viewer:
    """A running viewer over a log in this process."""

    where: str
    log: Log
    code_file: pathlib.Path

    def ask(
        self, method: str, path: str, fields: dict[str, str] | None = None, token: str | None = None, **headers: str
    ) -> Answer:
        """One request; `fields` are sent as a form, `token` as the session."""
        connection = http.client.HTTPConnection(self.where, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["cookie"] = f"lading_session={token}"
        if fields is not None:
            sent["content-type"] = "application/x-www-form-urlencoded"
        try:
            connection.request(method, path, urlencode(fields) if fields is not None else None, sent)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[Viewer]:
    log = Log()
    address, stop = audit_server.serve(log)
    code_file, port_file = folder / "code", folder / "port"
    code_file.touch(0o600)
    code_file.write_text(f"open-sesame\n{audit_server.token('grace')}\n")
    where: list[str | pathlib.Path] = ["--server", address, "--listen", "127.0.0.1:0", "--port-file", port_file]
    process = Process("viewer", [LADING, "viewer", "run", *where, "--one-time-code-file", code_file], folder / "log")
    try:
        process.wait_until(lambda: port_file.exists() and port_file.read_text().strip(), "the viewer answers")
        yield Viewer(port_file.read_text().strip(), log, code_file)
    finally:
        process.terminate()
        stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    with running(tmp_path_factory.mktemp("viewer")) as viewer:
        yield viewer


@pytest.fixture
def viewer(shared: Viewer) -> Viewer:
    """One that other tests use too, over an empty log."""
    shared.log.events.clear()
    shared.log.fails.clear()
    shared.log.calls.clear()
    return shared


@pytest.fixture
def own_viewer(tmp_path: pathlib.Path) -> Iterator[Viewer]:
    """For a test that leaves a mark: it fails to sign in, which slows down who comes next, or uses up the code."""
    with running(tmp_path) as viewer:
        yield viewer


def test_sign_in_sets_a_cookie_that_no_script_reads_and_leads_back(viewer: Viewer) -> None:
    token = audit_server.token(lifetime=timedelta(hours=1))
    answer = viewer.ask("POST", "/signin", {"token": f" {token}\n", "next": "/?q=user%3Aana"})
    assert answer.status == 303
    assert answer.headers["location"] == "/?q=user%3Aana"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"lading_session={token};")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie  # loopback
    (lifetime,) = (int(part.partition("=")[2]) for part in cookie.split("; ") if part.startswith("Max-Age"))
    assert 3500 < lifetime <= 3600


def test_page_is_for_the_signed_in_only(viewer: Viewer) -> None:
    for token in (None, "", "a.b.c", audit_server.token(lifetime=timedelta(seconds=-1))):
        body = viewer.ask("GET", "/?q=x", token=token).body
        assert b'name="token"' in body
        assert b'value="/?q=x"' in body
    assert b"<noscript>" in viewer.ask("GET", "/", token=audit_server.token()).body


def test_wrong_token_is_refused_without_saying_why(own_viewer: Viewer) -> None:
    own_viewer.log.fails["WhoAmI"] = grpc.StatusCode.UNAUTHENTICATED
    for wrong in (audit_server.token(), audit_server.token(lifetime=timedelta(days=-1)), "nonsense", ""):
        answer = own_viewer.ask("POST", "/signin", {"token": wrong, "next": "/"})
        assert answer.status == 401
        assert "set-cookie" not in answer.headers
        assert b"This token is not valid or has expired. Nothing was loaded." in answer.body


def test_form_that_is_too_long_is_not_read(own_viewer: Viewer) -> None:
    assert own_viewer.ask("POST", "/signin", {"token": "x" * 100_000}).status == 413
    assert own_viewer.ask("POST", "/signin", {"token": "x" * 10_000}).status == 401


def test_wrong_tokens_slow_an_address_down(own_viewer: Viewer) -> None:
    answers = [own_viewer.ask("POST", "/signin", {"token": "nonsense"}) for _ in range(10)]
    assert [answer.status for answer in answers[:6]] == [401] * 6
    # The sixth is to wait 2 s, and each that a busy machine lets come after that twice as long.
    refused = [answer for answer in answers[6:] if answer.status == 429]
    assert refused
    assert refused[0].headers["retry-after"]


def test_sign_in_while_the_server_is_down_says_so(own_viewer: Viewer) -> None:
    own_viewer.log.fails["WhoAmI"] = grpc.StatusCode.UNAVAILABLE
    answer = own_viewer.ask("POST", "/signin", {"token": audit_server.token()})
    assert answer.status == 503
    assert b"cannot be reached" in answer.body


def test_one_time_code_signs_in_once(own_viewer: Viewer) -> None:
    assert own_viewer.ask("GET", "/signin?code=wrong").status == 401
    assert own_viewer.code_file.exists()
    first = own_viewer.ask("GET", "/signin?code=open-sesame")
    assert (first.status, first.headers["location"]) == (303, "/")
    assert "lading_session=" in first.headers["set-cookie"]
    assert not own_viewer.code_file.exists()
    second = own_viewer.ask("GET", "/signin?code=open-sesame")
    assert second.status == 401
    assert "set-cookie" not in second.headers
    # In the browser that it has signed in the link leads to the log again.
    again = own_viewer.ask("GET", "/signin?code=open-sesame", token=audit_server.token())
    assert (again.status, again.headers["location"]) == (303, "/")


def test_sign_out_ends_the_session(viewer: Viewer) -> None:
    answer = viewer.ask("POST", "/signout", {}, token=audit_server.token())
    assert answer.status == 303
    assert 'lading_session=""' in answer.headers["set-cookie"]
    assert viewer.ask("GET", "/signout").status != 303


def test_forms_of_other_sites_are_refused(viewer: Viewer) -> None:
    for path in ("/signin", "/signout"):
        for origin in ("https://evil.example", "null"):
            answer = viewer.ask("POST", path, {"token": audit_server.token()}, origin=origin)
            assert answer.status == 403
            assert "set-cookie" not in answer.headers
    same = viewer.ask("POST", "/signin", {"token": audit_server.token()}, origin=f"http://{viewer.where}")
    assert same.status == 303


def test_other_names_for_the_address_are_refused(viewer: Viewer) -> None:
    assert viewer.ask("GET", "/", host="evil.example").status == 400
    assert viewer.ask("GET", "/export?format=csv", host="evil.example:80", token=audit_server.token()).status == 400
    assert viewer.ask("GET", "/", host=f"localhost:{viewer.where.rpartition(':')[2]}").status == 200


def test_link_from_another_site_finds_the_session(viewer: Viewer) -> None:
    answer = viewer.ask("GET", "/?event=1", sec_fetch_site="cross-site")
    assert b'http-equiv="refresh"' in answer.body
    assert b'name="token"' in viewer.ask("GET", "/?event=1", sec_fetch_site="same-origin").body


def test_every_answer_has_its_security_headers(viewer: Viewer) -> None:
    token = audit_server.token()
    for path in ("/", "/signin", "/export?format=csv", "/_stcore/health", "/nothing"):
        headers = viewer.ask("GET", path, token=token).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy
        assert headers["x-content-type-options"] == "nosniff"
    for path in ("/signin", "/export?format=csv"):
        assert viewer.ask("GET", path, token=token).headers["cache-control"] == "no-store"


def test_answers_are_compressed(viewer: Viewer) -> None:
    answer = viewer.ask("GET", "/signin", accept_encoding="gzip")
    assert answer.headers["content-encoding"] == "gzip"


def test_export_has_the_events_of_the_view_and_is_asked_for_with_the_persons_token(viewer: Viewer) -> None:
    now = datetime.now(UTC)
    for index in range(450):
        viewer.log.events.append(event(index, now - timedelta(seconds=500 - index), reason=f"reason {index}"))
    viewer.log.events.append(event(999, now, "container.kill", reason="=cmd()"))
    token = audit_server.token("emi")
    answer = viewer.ask("GET", "/export?format=csv", token=token)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"].startswith('attachment; filename="audit-acme-20')
    header, *rows = csv.reader(io.StringIO(answer.body.decode(), newline=""))
    assert len(rows) == 451
    assert rows[0][header.index("reason")] == "'=cmd()"
    assert ("ExportEvents", f"Bearer {token}") in viewer.log.calls
    some = viewer.ask("GET", f"/export?format=jsonl&q={quote('action:container.kill')}", token=token)
    assert [json.loads(line)["index"] for line in some.body.splitlines()] == ["999"]


def test_export_that_may_not_be_had_is_an_error_not_a_file(viewer: Viewer) -> None:
    token = audit_server.token()
    assert viewer.ask("GET", "/export?format=csv").status == 401
    assert viewer.ask("GET", "/export?format=xls", token=token).status == 400
    for code, status in (("PERMISSION_DENIED", 403), ("UNAVAILABLE", 503), ("UNAUTHENTICATED", 401)):
        viewer.log.fails["ExportEvents"] = grpc.StatusCode[code]
        answer = viewer.ask("GET", "/export?format=csv", token=token)
        assert (answer.status, "content-disposition" in answer.headers) == (status, False)
