"""A log as a folder (C2SP tlog-tiles): `checkpoint`, `tile/L/N[.p/W]`, `tile/entries/N[.p/W]`; to write and to check.

Each file is whole or not there. `checkpoint` is replaced last: whatever stops the writing leaves a folder that holds.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lading.transparency.merkle import Frontier, leaf_hash
from lading.transparency.note import Checkpoint, InvalidNote, Key, open_checkpoint, parse_checkpoint, parse_note
from lading.transparency.tiles import WIDTH, path_of, tiles_of
from lading_client.verify.broken import Broken
from lading_client.verify.log_check import LogCheck
from lading_client.verify.served_log import Told, open_answer, read_tiles

if TYPE_CHECKING:
    from lading.v1.audit_log_pb2 import GetCheckpointResponse
    from lading_client.client import Client

ENTRIES = -1
AT_ONCE = 50
"""Tiles of entries in one call: they are large."""


def write(client: Client, folder: pathlib.Path, answer: GetCheckpointResponse, key: Key, told: Told) -> Checkpoint:
    """Bring the folder up to the checkpoint; what is there already is not asked for again. Raises Broken."""
    checkpoint = open_answer(answer, key)
    before = _before(folder, key)
    if before and before.size > checkpoint.size:
        raise Broken(f"the log has {checkpoint.size} events; the folder has {before.size}", part="checkpoint")
    wanted = [tile for tile in _tiles(checkpoint.size) if not (folder / _path(*tile)).exists()]
    done = 0
    for begin in range(0, len(wanted), AT_ONCE):
        for (level, index, width), data in read_tiles(client, wanted[begin : begin + AT_ONCE]):
            _write(folder / _path(level, index, width or WIDTH), data)
            done += 1
            told(done, len(wanted))
    roots = {before.size: b""} if before else {}
    frontier = Frontier()
    for leaf in _leaves(folder, checkpoint.size):
        frontier.append(leaf)
        if frontier.size in roots:
            roots[frontier.size] = frontier.root()
    if before and before.size and roots[before.size] != before.root:
        raise Broken(f"the tree does not extend that of {before.size} events in the folder", part="checkpoint")
    if frontier.root() != checkpoint.root:
        raise Broken("the tiles are not those of the checkpoint")
    _write(folder / "checkpoint", answer.checkpoint.encode())
    _sweep(folder, checkpoint.size)
    return checkpoint


def origin_of(folder: pathlib.Path) -> str:
    """Which log it says it is. Raises Broken."""
    try:
        return parse_checkpoint(parse_note(_read(folder / "checkpoint").decode()).text).origin
    except ValueError as failure:
        raise Broken(str(failure), part="checkpoint") from failure


def verify(folder: pathlib.Path, key: Key, told: Told) -> tuple[LogCheck, Checkpoint]:
    """Check all entries and all tiles of the folder. Raises Broken."""
    try:
        checkpoint = open_checkpoint(_read(folder / "checkpoint").decode(), key)
    except (InvalidNote, UnicodeDecodeError) as failure:
        raise Broken(str(failure), part="checkpoint") from failure
    check = LogCheck(key.name.rpartition("/")[2])
    above: list[bytes] = []
    for first, width in _spans(checkpoint.size):
        hashes = _hashes(folder, 0, first, width)
        for at, entry in enumerate(_entries(folder, first, width)):
            if leaf_hash(entry) != hashes[at * 32 : at * 32 + 32]:
                raise Broken("the content does not match its leaf", check.size)
            check.take_entry(entry)
        if width == WIDTH:
            above.append(_root(hashes))
        told(check.size, checkpoint.size)
    if check.frontier.root() != checkpoint.root:
        raise Broken("the root of all entries is not that of the checkpoint")
    level = 1
    while above:
        here, above = above, []
        for index, width in _spans(len(here)):
            hashes = _hashes(folder, level, index, width)
            if hashes != b"".join(here[index * WIDTH : index * WIDTH + width]):
                raise Broken(f"{path_of(level, index, width)} does not hold the roots of the tiles below it")
            if width == WIDTH:
                above.append(_root(hashes))
        level += 1
    return check, checkpoint


def _before(folder: pathlib.Path, key: Key) -> Checkpoint | None:
    try:
        return open_checkpoint((folder / "checkpoint").read_text(), key)
    except FileNotFoundError:
        return None
    except (InvalidNote, UnicodeDecodeError) as failure:
        raise Broken(f"the folder is not of this log: {failure}", part="checkpoint") from failure


def _tiles(size: int) -> Iterator[tuple[int, int, int]]:
    yield from tiles_of(size)
    for index, width in _spans(size):
        yield ENTRIES, index, width


def _spans(count: int) -> Iterator[tuple[int, int]]:
    """The tiles over so many hashes: number and width."""
    for index in range(-(-count // WIDTH)):
        yield index, min(WIDTH, count - index * WIDTH)


def _path(level: int, index: int, width: int) -> str:
    return path_of("entries" if level == ENTRIES else level, index, width)


def _leaves(folder: pathlib.Path, size: int) -> Iterator[bytes]:
    """The leaf hashes, each of which is that of its entry. Raises Broken, and removes what is wrong in the folder."""
    for index, width in _spans(size):
        paths = [folder / _path(level, index, width) for level in (0, ENTRIES)]
        hashes = _hashes(folder, 0, index, width)
        if b"".join(map(leaf_hash, _entries(folder, index, width))) != hashes:
            for path in paths:
                path.unlink()
            raise Broken(f"{paths[1]} does not hold the entries of its leaves; it is removed", index * WIDTH)
        yield from (hashes[at : at + 32] for at in range(0, len(hashes), 32))


def _hashes(folder: pathlib.Path, level: int, index: int, width: int) -> bytes:
    raw = _read(folder / path_of(level, index, width))
    if len(raw) != width * 32:
        raise Broken(f"{path_of(level, index, width)} has {len(raw)} bytes, not {width * 32}")
    return raw


def _entries(folder: pathlib.Path, index: int, width: int) -> Iterator[bytes]:
    raw, at = _read(folder / path_of("entries", index, width)), 0
    for number in range(width):
        length = int.from_bytes(raw[at : at + 2], "big")
        entry = raw[at + 2 : at + 2 + length]
        at += 2 + length
        if at > len(raw) or not entry:
            raise Broken("its entry is cut off", index * WIDTH + number)
        yield entry
    if at != len(raw):
        raise Broken(f"{path_of('entries', index, width)} holds more than its entries", index * WIDTH + width)


def _root(hashes: bytes) -> bytes:
    frontier = Frontier()
    for at in range(0, len(hashes), 32):
        frontier.append(hashes[at : at + 32])
    return frontier.root()


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as failure:
        raise Broken(f"{path} cannot be read: {failure.strerror}", part="file") from None


def _write(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    with open(fresh, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _sweep(folder: pathlib.Path, size: int) -> None:
    """Remove the partial tiles that wider ones replaced."""
    for level, index, width in _tiles(size):
        partial = folder / (_path(level, index, WIDTH) + ".p")
        for path in partial.glob("*") if partial.is_dir() else ():
            if width == WIDTH or path.name != str(width):
                path.unlink()
        if width == WIDTH and partial.is_dir():
            partial.rmdir()
