import pathlib
import stat

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading_client import claims
from lading_client.cli import config
from lading_client.cli.config import Config, Context


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hypothesis runs a test many times in one folder: each example replaces the file."""
    pytest.MonkeyPatch().setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(TEXT, st.builds(Context, TEXT, TEXT, TEXT, TEXT), max_size=3), TEXT)
def test_what_is_written_is_read(contexts: dict[str, Context], current: str) -> None:
    config.write(Config(current, contexts))
    assert config.read() == Config(current, contexts)
    assert stat.S_IMODE(config.path().stat().st_mode) == 0o600
    assert not config.exposed()


def test_a_broken_file_is_named() -> None:
    config.write(Config())
    config.path().write_text("contexts = [")
    with pytest.raises(click.ClickException, match=r"config\.toml"):
        config.read()


def test_the_file_keeps_its_mode(tmp_path: pathlib.Path) -> None:
    config.write(Config())
    config.path().chmod(0o644)
    assert config.exposed()
    config.write(Config("a", {"a": Context("s")}))
    assert not config.exposed()


@given(st.text() | st.from_regex(r"[A-Za-z0-9_=-]*\.[A-Za-z0-9_=-]*\.[A-Za-z0-9_=-]*", fullmatch=True))
def test_no_token_breaks_the_reading_of_claims(token: str) -> None:
    claims.organization(token)
    claims.expires_at(token)
