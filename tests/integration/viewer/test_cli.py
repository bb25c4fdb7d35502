"""`lading viewer run`: what it refuses to start with."""

import pathlib
import subprocess

import pytest

from tests.stack import LADING


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LADING, "viewer", "run", *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:0"], "not on loopback"),
        (["--listen", "nowhere"], "is not HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "is not HOST:PORT"),
        (["--server", "a/b:c"], "is not HOST:PORT"),
        (["--one-time-code-file", "missing"], "does not exist"),
    ],
)
def test_bad_option_is_named(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_one_time_code_that_others_can_read_is_refused(tmp_path: pathlib.Path) -> None:
    code = tmp_path / "code"
    code.write_text("a\nb\n")
    code.chmod(0o644)
    done = run("--one-time-code-file", str(code))
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def test_help_teaches_how_to_start() -> None:
    text = run("--help").stdout
    assert "lading viewer run --server control.example:7443 --ca ca.pem" in text
    assert "lading token create" in text
