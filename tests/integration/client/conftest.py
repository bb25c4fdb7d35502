import base64
import json
import pathlib
from collections.abc import Callable, Iterator

import pytest

from lading_client.cli import run
from tests.integration.client.fake_server import Fleet, serve

# `lading` that completes at leisure, and remembers: a busy machine does not answer within half a second.
PATIENT = "from lading_client.cli import completion, main; completion.LIMIT = completion.KEPT = 60; main()"


def make_token(**claims: object) -> str:
    """In the form of a token; the client never verifies one."""
    payload = base64.urlsafe_b64encode(json.dumps({"org": "acme", **claims}).encode()).decode().rstrip("=")
    return f"e30.{payload}.c2ln"


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def address(fleet: Fleet) -> Iterator[str]:
    server, address = serve(fleet)
    yield address
    if fleet.hang:
        fleet.hang.set()
    server.stop(None).wait()


Lading = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A person's home without settings, where nothing of this machine's is seen."""
    for name in ("LADING_SERVER", "LADING_TOKEN", "LADING_ORG", "LADING_OUTPUT", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def lading(
    address: str, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Lading:
    """Runs a command line; exit code, stdout, stderr."""
    monkeypatch.setenv("LADING_SERVER", address)
    monkeypatch.setenv("LADING_TOKEN", make_token())

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        output = capsys.readouterr()
        return code, output.out, output.err

    return call
