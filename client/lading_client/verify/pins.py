"""What this client saw of logs before: `~/.config/lading/logs.toml`. Keys are believed at first sight, then kept."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from lading.transparency.note import Checkpoint, Key, parse_key
from lading_client.verify.broken import Broken, Changed


@dataclass(frozen=True)
class Pin:
    """A log as it was seen: the key, the largest tree that was found whole, and the keys of its witnesses by name."""

    key: str
    size: int = 0
    root: str = ""
    witnesses: Mapping[str, str] = field(default_factory=dict)

    def check_size(self, size: int) -> None:
        """Raises Changed when the log is smaller than it was."""
        if size < self.size:
            raise Changed(f"the log has {size} events; this client saw {self.size}")

    def check_root(self, root: bytes) -> None:
        """`root`: of the tree of `size`. Raises Changed when it is another."""
        if self.size and root.hex() != self.root:
            raise Changed(f"the first {self.size} events are not those that this client saw")

    def grown(self, checkpoint: Checkpoint) -> Pin:
        """The same, that saw this tree."""
        return replace(self, size=checkpoint.size, root=checkpoint.root.hex())

    def knows(self, keys: Iterable[Key]) -> Pin:
        """The same with these witnesses too."""
        return replace(self, witnesses={**self.witnesses, **{key.name: str(key) for key in keys}})


def path() -> pathlib.Path:
    home = os.environ.get("XDG_CONFIG_HOME") or pathlib.Path.home() / ".config"
    return pathlib.Path(home) / "lading" / "logs.toml"


def name_of(server: str, organization: str) -> str:
    """`SERVER/ORGANIZATION`, under which a log is kept: the same for the addresses of several servers in any order."""
    from lading_client.channel import parse_addresses  # with grpc: who checks a file needs none of it

    with contextlib.suppress(ValueError):
        server = ",".join(sorted({str(address) for address in parse_addresses(server)}))
    return f"{server}/{organization}"


def read() -> dict[str, Pin]:
    """By `name_of`; of a log that is kept under several names, the largest tree.

    Raises ValueError as `_read` does, and when the keys under these names differ: which is right is not guessed.
    """
    found: dict[str, tuple[str, Pin]] = {}
    for kept, pin in sorted(_read().items(), key=lambda one: one[1].size):
        name = name_of(*kept.rpartition("/")[::2])
        other, seen = found.get(name, (kept, pin))
        if seen.key != pin.key:
            raise ValueError(
                f"{path()} cannot be read: {_text(other)} and {_text(kept)} are two names of one log, with two keys, "
                f"{seen.key} and {pin.key}. Find out which is the log's, and take the part [logs.…] of the other out."
            )
        found[name] = (kept, pin)
    return {name: pin for name, (_, pin) in found.items()}


def _read() -> dict[str, Pin]:
    """By name, as it stands. Raises ValueError when the file cannot be understood: nothing in it is guessed."""
    try:
        content = tomllib.loads(path().read_text())
        return {name: Pin(**fields) for name, fields in content.get("logs", {}).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as failure:
        raise ValueError(f"{path()} cannot be read: {failure}") from None


def write(name: str, pin: Pin | None) -> None:
    """Keep what was seen, None to forget it; a crash leaves the old file or the new one."""
    lines = []
    for one, seen in {**read(), name: pin}.items():
        if seen is None:
            continue
        lines += [
            f"[logs.{_text(one)}]",
            f"key = {_text(seen.key)}",
            f"size = {seen.size}",
            f"root = {_text(seen.root)}",
        ]
        lines += [f"[logs.{_text(one)}.witnesses]"] if seen.witnesses else []
        lines += [f"{_text(witness)} = {_text(key)}" for witness, key in seen.witnesses.items()] + [""]
    path().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path().with_suffix(".new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write("\n".join(lines))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path())


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def believe(pin: Pin | None, shown: str, given: str | None) -> tuple[Key, Pin]:
    """The log's key: as `given`, else as pinned, else as shown at first sight. Raises InvalidNote for what is no key.

    Raises Changed when another one is shown than is pinned, and Broken when only the one that was given is another.
    """
    if given is None and pin is None:
        return parse_key(shown), Pin(shown)
    wanted = parse_key(given or (pin.key if pin else ""))
    what = ""
    if pin is not None and pin.key != str(wanted):
        what = f"the key of the log is pinned as {pin.key}, not {wanted}"
    elif shown and shown != str(wanted):
        what = f"the log shows the key {shown}, expected is {wanted}"
    if what:
        changed = pin is not None and shown != pin.key
        raise Changed(what, key=True) if changed else Broken(what, part="checkpoint")
    return wanted, pin or Pin(str(wanted))


def find_key(origin: str, given: str | None) -> Key:
    """The key for a file of the log with this origin: as given, else as pinned for any server. Raises LookupError."""
    if given is not None:
        return parse_key(given)
    for pin in _read().values():
        key = parse_key(pin.key)
        if key.name == origin:
            return key
    raise LookupError(origin)
