"""The command `lading server`, without serving: init, token, migrate, and what `run` refuses."""

import contextlib
import json
import os
import pathlib
import sqlite3
import stat
import subprocess
import sys
from typing import Any

import jwt
import psycopg
import pytest

from tests.process import free_port

PROGRAM = "from lading_server.cli import server; server(prog_name='lading server')"


def server(*arguments: str | pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LADING_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def init(url: str, data: pathlib.Path, *more: str) -> subprocess.CompletedProcess[str]:
    return server("init", "--data", data, "--database", url, "--org", "acme", "--admin", "ada", *more)


def rows(url: str, query: str) -> list[Any]:
    """By the database's own driver."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            return file.execute(query).fetchall()
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def test_init_prints_the_token_and_nothing_else(database_url: str, tmp_path: pathlib.Path) -> None:
    done = init(database_url, tmp_path / "data", "--email", "ada@acme.example", "--lifetime", "2h")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    said = claims(done.stdout.strip())
    assert (said["sub"], said["org"], said["kind"], said["email"]) == ("ada", "acme", "user", "ada@acme.example")
    assert said["exp"] - said["iat"] == 7200
    assert "lading server run" in done.stderr


def test_init_leaves_its_events_in_both_organizations(database_url: str, tmp_path: pathlib.Path) -> None:
    init(database_url, tmp_path / "data")
    query = "SELECT organization, action, target, actor, actor_type, details, reason FROM events ORDER BY 1, index"
    events = rows(database_url, query.replace("index", '"index"'))
    assert [row[:3] for row in events] == [
        ("acme", "organization.create", "acme"),
        ("acme", "rbac.role.assign", "ada"),
        ("acme", "token.issue", "ada"),
        ("system", "organization.create", "system"),
        ("system", "rbac.role.assign", "ada"),
    ]
    for _, _, _, actor, kind, details, reason in events:
        assert (actor, kind, reason) == ("lading-server", 2, "lading server init")
        said = json.loads(details)
        assert said["actor"]["auth_method"] == "local"
        assert said["actor"]["on_behalf_of"]
        assert said["diff"][0]["op"] == "add"


def test_data_directory_is_for_its_owner_alone(tmp_path: pathlib.Path) -> None:
    data = tmp_path / "deep" / "data"
    assert server("init", "--org", "acme", "--admin", "ada", LADING_DATA=str(data)).returncode == 0
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in data.iterdir()} == {0o600}
    assert {file.name for file in data.iterdir()} >= {"lading.db", "token-key.pem"}


def test_second_init_changes_nothing_and_says_what_to_run(database_url: str, tmp_path: pathlib.Path) -> None:
    init(database_url, tmp_path / "data")
    before = (tmp_path / "data" / "token-key.pem").read_bytes()
    for data in ("data", "another"):
        again = init(database_url, tmp_path / data)
        assert (again.returncode, again.stdout) == (1, "")
        assert "`lading server token`" in again.stderr
    assert (tmp_path / "data" / "token-key.pem").read_bytes() == before
    assert not (tmp_path / "another" / "token-key.pem").exists()
    assert len(rows(database_url, "SELECT * FROM events")) == 5


def test_two_inits_at_once_make_one(tmp_path: pathlib.Path) -> None:
    arguments = ["init", "--data", str(tmp_path / "data"), "--org", "acme", "--admin", "ada"]
    both = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    ends = [(process.communicate(timeout=60), process.returncode) for process in both]
    assert [code for _, code in ends].count(0) == 1, ends
    assert len(rows(f"sqlite:///{tmp_path}/data/lading.db", "SELECT * FROM organizations")) == 2


def test_lost_token_is_replaced_and_that_is_recorded(database_url: str, tmp_path: pathlib.Path) -> None:
    init(database_url, tmp_path / "data")
    for organization in ("acme", "system"):
        where = ("--data", tmp_path / "data", "--database", database_url, "--org", organization)
        done = server("token", *where, "--subject", "ada")
        assert done.returncode == 0, done.stderr
        said = claims(done.stdout.strip())
        assert (said["org"], said["sub"]) == (organization, "ada")
        assert rows(database_url, f"SELECT organization FROM tokens WHERE id = '{said['jti']}'") == [(organization,)]
    recorded = rows(database_url, "SELECT organization, reason FROM events WHERE action = 'token.issue' ORDER BY id")
    assert recorded[1:] == [("acme", "lading server token"), ("system", "lading server token")]


def test_only_admins_get_a_new_token(tmp_path: pathlib.Path) -> None:
    server("init", "--data", tmp_path, "--org", "acme", "--admin", "ada")
    done = server("token", "--data", tmp_path, "--org", "acme", "--subject", "eve")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "lading server: eve is not an admin of acme, but these are: ada\n"
    nowhere = server("token", "--data", tmp_path, "--org", "nowhere", "--subject", "ada")
    assert nowhere.stderr == "lading server: there is no organization nowhere\n"


def test_run_without_init_says_what_to_run(tmp_path: pathlib.Path) -> None:
    done = server("run", "--data", tmp_path / "none")
    assert done.returncode == 1
    assert "run `lading server init" in done.stderr
    assert not (tmp_path / "none").exists()


def test_run_refuses_a_database_of_another_revision(tmp_path: pathlib.Path) -> None:
    server("init", "--data", tmp_path, "--org", "acme", "--admin", "ada")
    connection = sqlite3.connect(tmp_path / "lading.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    done = server("run", "--data", tmp_path)
    assert done.returncode == 1
    assert "revision 9999" in done.stderr
    assert "lading server migrate" in done.stderr


def test_migrate_may_be_repeated(database_url: str, tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        done = server("migrate", "--data", tmp_path / "data", "--database", database_url)
        assert done.returncode == 0, done.stderr
        assert "revision" in done.stderr


@pytest.mark.parametrize("command", ["init", "migrate"])
def test_database_that_does_not_answer_is_exit_7(tmp_path: pathlib.Path, command: str) -> None:
    url = f"postgresql://lading:secret@127.0.0.1:{free_port()}/lading"
    more = ("--org", "acme", "--admin", "ada") if command == "init" else ()
    done = server(command, "--data", tmp_path, "--database", url, *more)
    assert done.returncode == 7
    assert "does not answer" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("init", "--org", "a/b", "--admin", "ada"), "must be 1 to 63 of"),
        (("init", "--org", "x" * 64, "--admin", "ada"), "must be 1 to 63 of"),
        (("init", "--org", "system", "--admin", "ada"), "Lading's own organization"),
        (("init", "--org", "acme", "--admin", ""), "must not be empty"),
        (("init", "--org", "acme", "--admin", "a\nb"), "control character"),
        (("init", "--org", "acme"), "Missing option '--admin'"),
        (("init", "--org", "acme", "--admin", "ada", "--lifetime", "soon"), "not a duration"),
        (("init", "--org", "acme", "--admin", "ada", "--lifetime", "367d"), "at most 366d"),
        (("init", "--org", "acme", "--admin", "ada", "--database", "mysql://db/x"), "--database must be"),
        (("init", "--org", "acme", "--admin", "ada", "--database", "postgresql://h:port/x"), "not a URL"),
        (("run", "--listen", "0.0.0.0:7443"), "give --tls-cert"),
        (("run", "--tls-cert", "missing.pem"), "go together"),
        (("start",), "No such command"),
    ],
)
def test_wrong_usage_is_exit_2_and_touches_nothing(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], sentence: str
) -> None:
    data = tmp_path / "data"
    done = server(*arguments, LADING_DATA=str(data))
    assert done.returncode == 2, done.stderr
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (data / "lading.db").exists()


def test_help_is_quick_to_import() -> None:
    slow = {"grpc", "sqlalchemy", "alembic", "jwt", "cryptography"}
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, lading_server.cli; print(*sys.modules)"], capture_output=True, text=True
    ).stdout.split()
    assert not slow & set(loaded)
