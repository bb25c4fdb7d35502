"""JSON Lines that carry their proofs: first the checkpoint, then events, each with its entry and inclusion proof."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict, ParseError

from lading.transparency.merkle import InvalidProof, leaf_hash, verify_inclusion
from lading.transparency.note import InvalidNote, Key, open_checkpoint, parse_checkpoint, parse_note
from lading.v1 import audit_log_pb2 as pb
from lading_client.documents import document
from lading_client.verify.broken import Broken
from lading_client.verify.log_check import check_event
from lading_client.verify.proofs import Prover
from lading_client.verify.served_log import open_answer, read_tiles

if TYPE_CHECKING:
    from lading_client.client import Client

AT_ONCE = 10_000
"""Events whose proofs are made together: each call for tiles is itself recorded."""


@dataclass(frozen=True)
class Proven:
    """`whole`: these are all events of the tree, none is left out."""

    key: Key
    size: int
    events: int
    erased: int
    whole: bool


def lines(client: Client, answer: pb.GetCheckpointResponse, key: Key, events: Iterable[pb.Event]) -> Iterator[str]:
    """Lines without their ends. Events that came after the checkpoint are left out. Raises Broken.

    `answer`: the checkpoint, asked for before the events.
    """
    checkpoint = open_answer(answer, key)
    yield _line({"checkpoint": answer.checkpoint, "log_key": str(key)})
    prover = Prover(checkpoint.size)
    proven = (event for event in events if event.index < checkpoint.size)
    while some := list(islice(proven, AT_ONCE)):
        prover.tiles.update(read_tiles(client, prover.missing(event.index for event in some)))
        for event in some:
            proof = prover.prove(event.index)
            try:
                verify_inclusion(leaf_hash(event.entry), event.index, checkpoint.size, proof, checkpoint.root)
            except InvalidProof as failure:
                raise Broken(str(failure), event.index, event.id) from failure
            yield _event_line(event, proof)
        prover.forget()


def _event_line(event: pb.Event, proof: Iterable[bytes]) -> str:
    # What follows an event is not in its entry, and cannot be proven.
    event.ClearField("superseded_by")
    return _line({**document(event), "proof": _encoded(proof)})


def _encoded(proof: Iterable[bytes]) -> list[str]:
    return [base64.b64encode(one).decode() for one in proof]


def _sorted(value: dict[str, Any]) -> str:
    # Protobuf's maps have no order of their own.
    return json.dumps(value, sort_keys=True)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def verify(found: Iterable[str], key_of: Callable[[str], Key]) -> Proven:
    """Check the lines of a file, with their ends. `key_of`: the key of the log with an origin. Raises Broken."""
    given = iter(found)
    try:
        first = next(given, "")
        header = json.loads(first)
        key = key_of(parse_checkpoint(parse_note(header["checkpoint"]).text).origin)
        checkpoint = open_checkpoint(header["checkpoint"], key)
        if _line(header) + "\n" != first or header != {"checkpoint": header["checkpoint"], "log_key": str(key)}:
            raise InvalidNote("the first line shows the key of another log, or is not written as it must be")
    except InvalidNote as failure:
        raise Broken(str(failure), part="checkpoint") from failure
    except (ValueError, TypeError, KeyError) as failure:
        raise Broken("the first line is no checkpoint: was it exported with --with-proofs?", part="file") from failure
    organization = key.name.rpartition("/")[2]
    count, erased, before, step = 0, 0, -1, 0
    for number, line in enumerate(given, 2):
        index, id = None, ""
        try:
            value = json.loads(line)
            same = _line(value) + "\n" == line
            shown = value.pop("proof")
            proof = [base64.b64decode(one, validate=True) for one in shown]
            same = same and _encoded(proof) == shown
            event = ParseDict(value, pb.Event())
            index, id = event.index, event.id
            if not same or event.HasField("superseded_by") or _sorted(value) != _sorted(document(event)):
                raise ValueError("the line is not written as it must be")
            erased += check_event(event, organization)[1]
            verify_inclusion(leaf_hash(event.entry), index, checkpoint.size, proof, checkpoint.root)
            if count:
                step = step or (1 if index > before else -1)
                if (index - before) * step <= 0:
                    raise ValueError("it is out of order")
        except InvalidProof as failure:
            raise Broken("the content does not match its leaf", index, id) from failure
        except (ValueError, TypeError, KeyError, AttributeError, ParseError, RecursionError) as failure:
            raise Broken(f"line {number}: {failure}", index, id, part="file") from failure
        count, before = count + 1, index
    # No index comes twice, and each is in the tree.
    return Proven(key, checkpoint.size, count, erased, count == checkpoint.size)
