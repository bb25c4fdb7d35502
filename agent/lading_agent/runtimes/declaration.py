"""The file of processes that the process runtime may run: TOML, written by who owns the host."""

import hashlib
import json
import pathlib
import tomllib
from dataclasses import asdict, dataclass, field
from typing import Any

from lading_agent.admission import CONTAINER_NAME
from lading_agent.errors import SettingsError

RESTARTS = ("no", "on-failure", "unless-stopped", "always")


@dataclass(frozen=True)
class Declaration:
    """One `[process.NAME]`: what runs, and how."""

    name: str
    command: list[str]
    cwd: str = ""
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    restart: str = "no"
    autocreate: bool = False
    # Whether other programs may be run beside it, as `lading exec` does.
    exec: bool = False

    @property
    def digest(self) -> str:
        """Changes with anything in it, as an image's digest does."""
        said = asdict(self)
        if not self.exec:
            # As before there was this key.
            del said["exec"]
        return "sha256:" + hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_declarations(file: pathlib.Path | None) -> dict[str, Declaration]:
    """By name; raises SettingsError that names the file and the key."""
    if file is None:
        return {}
    try:
        content = tomllib.loads(file.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read --processes {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"--processes {file} is not TOML: {error}") from None
    for key in content:
        if key != "process":
            raise SettingsError(f"{file}: unknown table {key!r}; a process is declared as [process.NAME]")
    return {name: _read(file, name, table) for name, table in content.get("process", {}).items()}


def _read(file: pathlib.Path, name: str, table: Any) -> Declaration:
    def check(holds: bool, words: str) -> None:
        if not holds:
            raise SettingsError(f"{file}: [process.{name}] {words}")

    check(bool(CONTAINER_NAME.fullmatch(name)), "the name may have letters, digits, _ . and - only")
    check(isinstance(table, dict), "must be a table")
    known = set(Declaration.__dataclass_fields__) - {"name"}
    for key in table:
        check(key in known, f"has an unknown key {key!r}; there are {', '.join(sorted(known))}")
    command = table.get("command")
    words = isinstance(command, list) and command and all(isinstance(word, str) for word in command)
    check(bool(words), 'needs command, a list of words: command = ["sleep", "60"]')
    check(isinstance(table.get("cwd", ""), str), "cwd must be a path")
    for key in ("env", "labels"):
        pairs = table.get(key, {})
        fits = isinstance(pairs, dict) and all(isinstance(value, str) for value in pairs.values())
        check(fits, f'{key} must be a table of strings: {key} = {{ KEY = "value" }}')
    check(table.get("restart", "no") in RESTARTS, f"restart must be one of {', '.join(RESTARTS)}")
    for key in ("autocreate", "exec"):
        check(isinstance(table.get(key, False), bool), f"{key} must be true or false")
    return Declaration(name=name, **table)
