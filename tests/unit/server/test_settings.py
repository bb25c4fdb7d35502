"""What a server may be told, and the sentence for what it may not."""

import pathlib
from dataclasses import replace
from typing import Any

import pytest

from lading_server.settings import InvalidSettings, Settings, is_loopback
from lading_server.workers import Workers


@pytest.fixture
def files(tmp_path: pathlib.Path) -> dict[str, Any]:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    return {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}


def test_default_settings_are_valid(tmp_path: pathlib.Path) -> None:
    settings = Settings(tmp_path)
    settings.check()
    assert settings.database_url == f"sqlite:///{tmp_path}/lading.db"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:7443", "[::1]:7443"])
def test_plaintext_is_served_on_this_machine(tmp_path: pathlib.Path, listen: str) -> None:
    Settings(tmp_path, listen=listen).check()


@pytest.mark.parametrize("listen", ["0.0.0.0:7443", "[::]:7443", "10.0.0.1:1", "lading.example:7443"])
def test_elsewhere_only_tls_is_served(tmp_path: pathlib.Path, files: dict[str, Any], listen: str) -> None:
    with pytest.raises(InvalidSettings, match="give --tls-cert FILE and --tls-key FILE"):
        Settings(tmp_path, listen=listen).check()
    Settings(tmp_path, listen=listen, **files).check()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"listen": "7443"}, "must be HOST:PORT"),
        ({"listen": ":7443"}, "must be HOST:PORT"),
        ({"listen": "127.0.0.1:port"}, "must be HOST:PORT"),
        ({"listen": "127.0.0.1:65536"}, "must be HOST:PORT"),
        ({"tls_cert": pathlib.Path("x")}, "go together"),
        ({"tls_cert": pathlib.Path("x"), "tls_key": pathlib.Path("y")}, "there is no such file"),
        ({"database": "mysql://db/lading"}, "must be sqlite:///FILE or postgresql://"),
        ({"audience": ""}, "--audience"),
        ({"issuer": "lading"}, "names another issuer"),
        ({"issuer": "https://login.example"}, "put its public keys into"),
    ],
)
def test_invalid_settings_say_what_to_change(tmp_path: pathlib.Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidSettings, match=sentence):
        Settings(tmp_path, **options).check()


def test_development_identity_is_refused_where_others_can_connect(
    tmp_path: pathlib.Path, files: dict[str, Any]
) -> None:
    with pytest.raises(InvalidSettings, match="--dev-identity is for this machine alone"):
        Settings(tmp_path, listen="0.0.0.0:7443", development=True, **files).check()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", "", "1"])
def test_what_is_not_loopback_is_known(host: str) -> None:
    assert not is_loopback(host)


def test_workers_need_ports_of_their_own(tmp_path: pathlib.Path) -> None:
    settings = Settings(tmp_path, database="postgresql://db/lading", replica_listen="10.0.0.1:7444")
    with pytest.raises(InvalidSettings, match=r"say --replica-listen 10\.0\.0\.1:0"):
        Workers(settings, 2, [])
    Workers(replace(settings, replica_listen="10.0.0.1:0"), 2, [])
