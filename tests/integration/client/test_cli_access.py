import contextlib
import http.server
import io
import json
import os
import pathlib
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from google.rpc import code_pb2

from lading.v1 import agents_pb2
from tests.integration.client.conftest import PATIENT, Lading, make_token
from tests.integration.client.fake_server import Fleet


@pytest.fixture
def signed_in(lading: Lading, monkeypatch: pytest.MonkeyPatch, address: str) -> Lading:
    """As after `lading login`: no environment, all from the file."""
    assert lading("login")[0] == 0
    monkeypatch.delenv("LADING_SERVER")
    monkeypatch.delenv("LADING_TOKEN")
    return lading


def test_login_saves_a_context_for_the_owner_only(signed_in: Lading, fleet: Fleet, home: pathlib.Path) -> None:
    file = home / "config" / "lading" / "config.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert signed_in("ps")[0] == 0
    assert fleet.calls[-1][2]["authorization"] == f"Bearer {make_token()}"
    assert "acme" in signed_in("context", "ls")[1]


def test_login_reads_the_token_from_stdin(
    lading: Lading, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, home: pathlib.Path
) -> None:
    monkeypatch.delenv("LADING_TOKEN")
    monkeypatch.setattr(sys, "stdin", io.StringIO("a.b.c\n"))
    assert lading("login", "--context", "mine")[0] == 0
    assert fleet.calls[-1][2]["authorization"] == "Bearer a.b.c"


def test_a_refused_token_is_not_saved(lading: Lading, fleet: Fleet, home: pathlib.Path) -> None:
    fleet.fail("WhoAmI", code_pb2.UNAUTHENTICATED, "expired")
    assert lading("login")[0] == 6
    assert not (home / "config").exists()


def test_a_token_is_not_sent_to_another_server(signed_in: Lading, fleet: Fleet, address: str) -> None:
    other = address.replace("127.0.0.1", "localhost")
    signed_in("ps", "--server", other)
    assert "authorization" not in fleet.calls[-1][2]


def test_a_readable_file_is_said(signed_in: Lading, home: pathlib.Path) -> None:
    (home / "config" / "lading" / "config.toml").chmod(0o644)
    assert "chmod 600" in signed_in("ps")[2]


def test_contexts_are_switched_and_forgotten(signed_in: Lading) -> None:
    assert signed_in("context", "use", "nowhere")[0] == 2
    assert signed_in("context", "use", "acme")[0] == 0
    assert signed_in("logout")[0] == 0
    assert "no token" in signed_in("context", "ls")[1]
    assert signed_in("context", "rm", "acme")[0] == 0
    assert json.loads(signed_in("context", "ls", "-o", "json")[1]) == []
    assert signed_in("ps", "--context", "acme")[0] == 2


def test_acting_in_another_organization_is_refused_here(lading: Lading, fleet: Fleet) -> None:
    exit_code, _, err = lading("ps", "--org", "globex")
    assert exit_code == 2
    assert "acme" in err
    assert not fleet.calls
    assert lading("ps", "--org", "acme")[0] == 0


def test_a_flag_wins_over_the_environment(lading: Lading, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("LADING_SERVER", "127.0.0.1:1")
    assert lading("ps", "--server", address)[0] == 0
    assert lading("--server", address, "ps")[0] == 0
    assert lading("ps")[0] == 7
    monkeypatch.setenv("LADING_OUTPUT", "json")
    assert lading("--server", address, "ps")[1] == "[]\n"
    assert lading("--server", address, "-o", "name", "ps")[1] == ""


def test_whoami_names_me(lading: Lading) -> None:
    exit_code, out, _ = lading("whoami")
    assert exit_code == 0
    assert "ada@acme.example" in out
    assert "admin" in out


def test_a_new_token_is_alone_on_stdout(lading: Lading, fleet: Fleet) -> None:
    exit_code, out, err = lading(
        "token", "create", "bot", "--kind", "service", "--role", "recorder", "--lifetime", "2d", "--reason", "ci"
    )
    assert (exit_code, out) == (0, "secret.of.token\n")
    assert "lading token revoke t-1" in err
    assert fleet.asked("IssueToken")[0].lifetime.seconds == 2 * 86400
    assert fleet.asked("AssignRole")[0].subject == "bot"


def test_doctor_names_the_command_that_fixes_it(lading: Lading, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    exit_code, out, _ = lading("doctor")
    assert exit_code == 1
    assert "lading token create --kind agent" in out
    fleet.agents = [agents_pb2.Agent(name="agents/dock-1", state=agents_pb2.AGENT_STATE_ONLINE)]
    assert lading("doctor")[0] == 0
    exit_code, out, _ = lading("doctor", "--server", "127.0.0.1:1")
    assert exit_code == 1
    assert "lading server run" in out
    one_of_two = f"{os.environ['LADING_SERVER']},127.0.0.1:1"
    exit_code, out, _ = lading("doctor", "--server", one_of_two)
    assert exit_code == 0
    assert "127.0.0.1:1 does not answer" in out
    with http_server() as web:
        exit_code, out, _ = lading("doctor", "--server", web)
    assert exit_code == 1
    assert "it is no Lading server" in out
    monkeypatch.setenv("LADING_TOKEN", make_token(exp=1))
    exit_code, out, _ = lading("doctor", "-o", "json")
    assert json.loads(out)[-1]["fix"] == "lading login"
    assert exit_code == 1


@contextlib.contextmanager
def http_server() -> Iterator[str]:
    """HTTP/1.1, as the viewer speaks it; its HOST:PORT."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def complete(address: str, words: str, *program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, *(program or ("-c", PATIENT))],
        env={
            **os.environ,
            "_LADING_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) if words.endswith(" ") else len(words.split()) - 1),
            "LADING_SERVER": address,
            "LADING_TOKEN": make_token(),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [line.partition(",")[2] for line in done.stdout.split()]


def test_targets_and_agents_complete_from_the_server(fleet: Fleet, address: str, home: pathlib.Path) -> None:
    fleet.add("dock-1/web")
    fleet.agents = [agents_pb2.Agent(name="agents/dock-1")]
    assert complete(address, "lading stop dock") == ["dock-1/web"]
    assert complete(address, "lading stop do") == ["dock-1/web"]
    assert len(fleet.asked("ListContainers")) == 1  # the second one is from the cache
    assert complete(address, "lading agents drain ") == ["dock-1"]
    assert complete(address, "lading st") == ["start", "stop"]


def test_a_silent_server_does_not_disturb_completion(home: pathlib.Path) -> None:
    assert complete("127.0.0.1:1", "lading stop dock", "-m", "lading_client.cli") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(lading: Lading, shell: str) -> None:
    exit_code, out, _ = lading("completion", shell)
    assert exit_code == 0
    assert "_LADING_COMPLETE" in out
