"""The file of contexts, `~/.config/lading/config.toml`: which server, with which token. Mode 0600."""

from __future__ import annotations

import json
import os
import pathlib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import click


@dataclass(frozen=True)
class Context:
    """A server and who one is there."""

    server: str
    token: str = ""
    org: str = ""
    ca: str = ""


@dataclass(frozen=True)
class Config:
    """All contexts by name, and the one in use."""

    current: str = ""
    contexts: Mapping[str, Context] = field(default_factory=dict)

    def with_context(self, name: str, context: Context) -> Config:
        """The same with this context in use."""
        return Config(name, {**self.contexts, name: context})

    def without(self, name: str) -> Config:
        rest = {other: context for other, context in self.contexts.items() if other != name}
        return Config("" if self.current == name else self.current, rest)


def path() -> pathlib.Path:
    home = os.environ.get("XDG_CONFIG_HOME") or pathlib.Path.home() / ".config"
    return pathlib.Path(home) / "lading" / "config.toml"


def read() -> Config:
    """The file's content; empty when there is no file. click.ClickException when it cannot be understood."""
    try:
        content = tomllib.loads(path().read_text())
        contexts = {name: Context(**fields) for name, fields in content.get("contexts", {}).items()}
        return Config(content.get("current", ""), contexts)
    except FileNotFoundError:
        return Config()
    except (OSError, ValueError, TypeError) as error:
        raise click.ClickException(f"{path()} cannot be read: {error}") from None


def write(config: Config) -> None:
    """Replace the file; a crash leaves the old one or the new one."""
    lines = [f"current = {_string(config.current)}"]
    for name, context in config.contexts.items():
        lines += ["", f"[contexts.{_string(name)}]"]
        lines += [f"{key} = {_string(value)}" for key, value in asdict(context).items()]
    path().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path().with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")
    fresh.replace(path())


def exposed() -> bool:
    """Whether others than the owner may read the file."""
    try:
        return bool(path().stat().st_mode & 0o077)
    except FileNotFoundError:
        return False


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
