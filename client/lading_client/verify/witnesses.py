"""Who else stands for a log: cosignatures (C2SP tlog-cosignature) by agents, of trees that they found consistent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lading.transparency.note import COSIGNATURE, Checkpoint, InvalidNote, Key, parse_key, parse_note, verify_note
from lading_client.verify.broken import Broken

if TYPE_CHECKING:
    from lading.v1.audit_log_pb2 import Cosignature


@dataclass(frozen=True)
class Testimony:
    """`names` of trusted witnesses who cosigned this tree or a part of it, and of which size each did.

    `strangers`: keys that are not trusted; nobody but the server vouches for them.
    """

    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    strangers: tuple[Key, ...] = ()

    def since(self, size: int) -> tuple[str, ...]:
        """Who cosigned a tree of at least this size. Of what came after its tree, a cosignature says nothing."""
        return tuple(name for name, cosigned in zip(self.names, self.sizes, strict=True) if cosigned >= size)


def hear(
    origin: str,
    cosignatures: Iterable[Cosignature],
    trusted: Mapping[str, str],
    root_at: Callable[[int, bytes], bytes],
) -> Testimony:
    """Check cosignatures against what the log really is.

    `trusted`: keys by witness. `root_at`: the recomputed root of a size; it also gets the root that the witness saw.
    Raises Broken when a trusted witness signed another tree: then the server showed two.
    """
    names, sizes, strangers = [], [], []
    for one in cosignatures:
        try:
            key = parse_key(one.witness_key)
            if key.algorithm != COSIGNATURE:
                raise InvalidNote("it is no key of a witness")
            if trusted.get(key.name) != str(key):
                strangers.append(key)
                continue
            text = Checkpoint(origin, one.size, one.root).text()
            verify_note(parse_note(f"{text}\n{one.signature}"), [key])
        except InvalidNote as failure:
            raise Broken(f"the cosignature of {one.agent} does not hold: {failure}", part="witnesses") from failure
        if root_at(one.size, one.root) != one.root:
            raise Broken(f"{key.name} cosigned another tree of {one.size} events than this", part="witnesses")
        if key.name not in names:
            names.append(key.name)
            sizes.append(one.size)
    return Testimony(tuple(names), tuple(sizes), tuple(strangers))
