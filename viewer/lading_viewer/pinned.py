"""What this viewer saw of logs before, in its data folder: `logs.json`. Keys are believed at first sight, then kept."""

import json
import os
import threading
from dataclasses import asdict
from pathlib import Path

from lading_client.verify.pins import Pin

FILE = "logs.json"
_writing = threading.Lock()


class Unreadable(Exception):
    """The file cannot be understood. Nothing in it is guessed, and nothing is believed anew in its place."""


def read(folder: Path | None, name: str) -> Pin | None:
    """What was seen of the log `SERVER/ORGANIZATION`; None at first sight, and always without a folder."""
    return _read(folder / FILE).get(name) if folder else None


def write(folder: Path | None, name: str, pin: Pin) -> None:
    """Keep what was seen; a crash leaves the old file or the new one. Raises OSError."""
    if folder is None:
        return
    with _writing:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = {**_read(folder / FILE), name: pin}
        fresh = folder / f"{FILE}.new"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump({one: asdict(seen) for one, seen in known.items()}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / FILE)


def _read(path: Path) -> dict[str, Pin]:
    try:
        return {name: Pin(**fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as failure:
        raise Unreadable(f"{path} cannot be read: {failure}") from None
