"""`lading audit verify`: whether the log, or a file that was taken from it, is whole."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from lading_client.cli import output
from lading_client.cli.invocation import Command, Invocation, pass_invocation

if TYPE_CHECKING:
    from lading.transparency.note import Checkpoint, Key
    from lading.v1.audit_log_pb2 import GetCheckpointResponse
    from lading_client.verify.broken import Changed
    from lading_client.verify.log_check import LogCheck
    from lading_client.verify.pins import Pin
    from lading_client.verify.served_log import Result, Told

BROKEN = 10
"""Exit code: the log is not whole."""
TOLD_EVERY = 0.5  # seconds
ROLLBACK = "log.rollback.accept"
Found = tuple[list[tuple[str, str]], dict[str, Any]]
"""Lines for people, and the same for machines."""


@click.command(
    cls=Command,
    examples="""
    lading audit verify                              the whole log of the server
    lading audit verify --witnesses 2                and that two agents stand for it
    lading audit verify --from 200000                only what came after the first 200000 events
    lading audit verify --file audit.jsonl           offline: an export with proofs, a folder of tiles, a receipt""",
)
@click.option(
    "--from",
    "first",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Read events from #N on; of those before it only hashes, which must be in the tree.",
)
@click.option("--file", type=click.Path(exists=True), metavar="PATH", help="Check this instead, offline.")
@click.option("--key", metavar="VKEY", help="Key of the log. [as seen at first]")
@click.option(
    "--witnesses",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="So many agents must have cosigned this tree or a later one; waits for them, see --timeout.",
)
@click.option("--witness-key", "witness_keys", multiple=True, metavar="VKEY", help="Trust this witness from now on.")
@pass_invocation
def verify(
    invocation: Invocation, first: int, file: str | None, key: str | None, witnesses: int, witness_keys: Sequence[str]
) -> None:
    """Recompute the log from every entry, and compare it with what the server and its witnesses signed.

    Exit code 10 when it does not hold; then the first event that is wrong is named. Keys are believed at first sight
    and kept in logs.toml beside the config file: compare them once with those that the operator of the server gives.
    Kept too is the tree that was found: the next verify proves that the log extends it. A log that does not is refused
    until a person decides, see `lading audit forget-log --help`.
    """
    with refusing(invocation):
        if file is None:
            lines, found = _served(invocation, first, key, witnesses, witness_keys)
        elif first:
            raise click.UsageError("--from is for the log of a server: a file is checked as a whole.")
        elif witnesses or witness_keys:
            raise click.UsageError("Witnesses stand for the log of a server, not for a file.")
        else:
            lines, found = _file(pathlib.Path(file), key)
        _show(invocation, lines, {"intact": True, **found})


@contextmanager
def refusing(invocation: Invocation) -> Iterator[None]:
    """Says what is broken, and ends with the exit code for that."""
    from lading.transparency.note import InvalidNote
    from lading_client.verify.broken import Broken, Changed

    try:
        yield
    except InvalidNote as failure:
        raise click.UsageError(str(failure)) from None
    except Broken as broken:
        line = click.style(output.printable(str(broken)), fg="red")
        found = {"index": broken.index, "event": broken.event, "part": broken.part, "error": broken.what}
        _show(invocation, [(broken.part, line)], {"intact": False, **found})
        if isinstance(broken, Changed):
            for told in changed_words(invocation, broken):
                invocation.say(told)
        raise click.exceptions.Exit(BROKEN) from None


def changed_words(invocation: Invocation, changed: Changed) -> Iterator[str]:
    """What may have happened to a log that is not the one seen before, and how a person goes on."""
    from lading_client.verify import pins

    if changed.key:
        told = (
            "Another key signs the log than the one this client believes. Either its operator made a new one, as after "
            "the loss of the server's data directory, or somebody else answers in its place. Ask the operator for the "
            "log's key, by another way than this server. If that is the new one:"
        )
        commands = ("lading audit forget-log --with-key", "lading audit verify --key VKEY")
    else:
        told = (
            "Events that this client saw are not in the log any more. Either the database was restored from a backup "
            f"and its newest events are lost, or somebody changed history. {_accepted(invocation)} This is for a "
            f"person to decide: until then verify refuses, and {pins.path()} keeps what was seen. If the events are "
            "lost for good, and you know why:"
        )
        commands = ("lading audit forget-log", "lading audit verify")
    yield click.wrap_text(told, 78)
    yield from (f"  {command}" for command in commands)


def _accepted(invocation: Invocation) -> str:
    """What the log itself says about having been restored."""
    from lading.v1 import audit_log_pb2 as pb
    from lading_client.errors import LadingError

    wanted = pb.EventFilter(matches=[pb.Match(field=pb.FIELD_ACTION, values=[ROLLBACK])])
    try:
        found = invocation.client.audit.ListEvents(pb.ListEventsRequest(filter=wanted, page_size=1)).events
    except LadingError:
        return ""
    if not found:
        return f"Nobody says in the log that it was restored (lading audit ls action:{ROLLBACK})."
    reason = json.dumps(output.printable(found[0].reason), ensure_ascii=False)
    at = output.clock(found[0].recorded_at)
    return f"Its operator says that it was restored: {reason}, {at} (lading audit show {found[0].id})."


def _show(invocation: Invocation, lines: list[tuple[str, str]], found: dict[str, Any]) -> None:
    if invocation.format in ("json", "jsonl", "yaml"):
        output.show_document(invocation, found)
    else:
        width = max(len(name) for name, _ in lines)
        output.emit(f"{name.ljust(width)}  {text}" for name, text in lines if text)


def open_log(invocation: Invocation) -> tuple[GetCheckpointResponse, Key]:
    """The newest checkpoint, and the log's key as it is pinned, or pinned now at first sight. Raises Broken."""
    from lading.v1 import audit_log_pb2 as pb
    from lading_client.verify import pins
    from lading_client.verify.served_log import open_answer, organization_of

    answer = invocation.client.audit.GetCheckpoint(pb.GetCheckpointRequest())
    before = known_pin(invocation)
    key, pin = pins.believe(before, answer.log_key, None)
    organization_of(key, invocation.org)
    open_answer(answer, key)
    if before is None:
        pins.write(pin_name(invocation), pin)
        _say_first_sight(invocation, key)
    return answer, key


def _served(invocation: Invocation, first: int, given: str | None, wanted: int, keys: Sequence[str]) -> Found:
    from lading.transparency.note import parse_key
    from lading_client.verify import pins
    from lading_client.verify.broken import Broken
    from lading_client.verify.served_log import TooShort, verify_log

    began, before = time.monotonic(), known_pin(invocation)
    try:
        result = verify_log(
            invocation.client,
            before,
            organization=invocation.org,
            given_key=given,
            witness_keys=[parse_key(one) for one in keys],
            first=first,
            wanted=wanted,
            patience=invocation.timeout(),
            told=progress("events"),
        )
    except TooShort as failure:
        raise click.UsageError(f"--from {first}: {failure}.") from None
    for stranger in result.testimony.strangers:
        invocation.say(f"New witness, not counted. If you know it: lading audit verify --witness-key {stranger}")
    if len(result.testimony.since(result.checkpoint.size)) < wanted:
        raise Broken(_too_few(result, wanted), part="witnesses")
    pins.write(pin_name(invocation), result.pin)
    if result.first_sight:
        _say_first_sight(invocation, result.key)
    return [
        *_checked(result.check, time.monotonic() - began),
        ("checkpoint", _signed(result.key, result.checkpoint.size)),
        ("extends", _extends(before)),
        ("witnesses", _witnesses(result)),
        ("operations", _operations(result.check)),
        ("next", f"lading audit verify --from {result.pin.size} reads only what came after this"),
    ], {
        "extends": {"size": before.size, "root": before.root} if before and before.size else None,
        **_document(result.check, result.key, result.checkpoint),
        "witnesses": list(result.testimony.names),
        "unknown_witnesses": [str(one) for one in result.testimony.strangers],
    }


def _file(path: pathlib.Path, given: str | None) -> Found:
    from lading_client.verify import exported, receipts, tile_folder
    from lading_client.verify.broken import Broken

    def key_of(origin: str) -> Key:
        return _known_key(origin, given)

    began = time.monotonic()
    if path.is_dir():
        key = key_of(tile_folder.origin_of(path))
        check, checkpoint = tile_folder.verify(path, key, progress("events"))
        lines = [*_checked(check, time.monotonic() - began), ("checkpoint", _signed(key, checkpoint.size))]
        return [*lines, ("operations", _operations(check))], _document(check, key, checkpoint)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if receipts.is_receipt(file.read(64)):
                file.seek(0)
                return _receipt(file.read(), key_of)
            file.seek(0)
            found = exported.verify(file, key_of)
    except UnicodeDecodeError:
        raise Broken("it is not text", part="file") from None
    rest = "these are all events of the tree" if found.whole else "whether some are left out, a part cannot prove"
    return [
        ("checked", f"{found.events} of {found.size} events, {time.monotonic() - began:.1f} s"),
        ("tree", f"every event is in the tree of the checkpoint; {rest}"),
        ("checkpoint", _signed(found.key, found.size)),
        ("erased", f"details of {output.plural(found.erased, 'event')}" if found.erased else ""),
    ], {"checked": found.events, "size": found.size, "whole": found.whole, "erased": found.erased}


def _receipt(text: str, key_of: Callable[[str], Key]) -> Found:
    from lading_client.verify import receipts

    key = key_of(receipts.origin_of(text))
    proven = receipts.verify(text, key)
    details = "erased" if proven.details is None else json.dumps(proven.details, ensure_ascii=False)
    return [
        ("receipt", f"#{proven.index} is in the tree of {proven.checkpoint.size}"),
        ("checkpoint", _signed(key, proven.checkpoint.size)),
        ("entry", output.printable(json.dumps(proven.entry, ensure_ascii=False))),
        ("details", output.printable(details)),
    ], {
        "index": proven.index,
        "size": proven.checkpoint.size,
        "entry": proven.entry,
        "details": proven.details,
    }


def pin_name(invocation: Invocation) -> str:
    """Under which name this client keeps what it saw of the server's log."""
    from lading_client.verify.pins import name_of

    return name_of(invocation.context.server, invocation.org)


def known_pin(invocation: Invocation) -> Pin | None:
    from lading_client.verify import pins

    try:
        return pins.read().get(pin_name(invocation))
    except ValueError as failure:
        raise click.ClickException(str(failure)) from None


def _say_first_sight(invocation: Invocation, key: Key) -> None:
    from lading_client.verify import pins

    invocation.say(f"First sight of this log; its key is kept in {pins.path()}. Compare it: {key}")


def _known_key(origin: str, given: str | None) -> Key:
    """The key for a file. click.UsageError when it was never seen: the file's own would prove nothing."""
    from lading_client.verify.pins import find_key

    try:
        return find_key(origin, given)
    except LookupError:
        raise click.UsageError(
            f"The key of the log {output.printable(origin)} is not known here. Give it by --key, or run "
            "`lading audit verify` at its server once."
        ) from None


def _checked(check: LogCheck, seconds: float) -> list[tuple[str, str]]:
    if check.bare:
        details = "not there: only entries were checked"
    elif check.erased:
        details = f"each as its entry says; those of {output.plural(check.erased, 'event')} were erased"
    else:
        details = "each as its entry says"
    count = check.size - check.first
    span = f", #{check.first} to #{check.size - 1}" if count else ""
    before, entries = "", "every entry"
    if check.first:
        before = (
            f"#0 to #{check.first - 1}: their hashes are those of the tree. Not checked: what they say, how their "
            "operations and processes go on after them"
        )
        entries = f"the tiles of the first {check.first} and every entry after them"
    return [
        ("checked", f"{output.plural(count, 'event')}{span}, org {check.organization}, {seconds:.1f} s"),
        ("not read", before),
        ("tree", f"root recomputed from {entries}: matches the checkpoint"),
        ("details", details if count else ""),
        ("processes", f"{len(check.processes)} wrote it; the numbers of their events rise by one"),
    ]


def _extends(before: Pin | None) -> str:
    return f"the tree of {before.size} that this client found before" if before and before.size else ""


def _signed(key: Key, size: int) -> str:
    return f"signed by {key.name}+{key.id.hex()}, size {size}"


def _witnesses(result: Result) -> str:
    sizes, known = result.testimony.sizes, output.plural(len(result.pin.witnesses), "known agent")
    since = f" size {min(sizes)} or later" if sizes else " this log"
    return f"{len(sizes)} of {known} cosigned{since}"


def _too_few(result: Result, wanted: int) -> str:
    testimony, known = result.testimony, output.plural(len(result.pin.witnesses), "known agent")
    size, current = result.checkpoint.size, testimony.since(result.checkpoint.size)
    last = dict(zip(testimony.names, testimony.sizes, strict=True))
    missing = [f"{name} (last: size {last.get(name, 'none')})" for name in result.pin.witnesses if name not in current]
    more = f", {len(missing) - 5} more" if len(missing) > 5 else ""
    named = f". Missing: {', '.join(missing[:5])}{more}" if missing else ""
    return f"{len(current)} of {known} cosigned this tree of size {size} or a later one; {wanted} must have{named}"


def _operations(check: LogCheck) -> str:
    operations = check.operations
    ended, unknown, open = len(operations.ended), len(operations.unknown), len(operations.open)
    more = f", {unknown} whose end is not known" if unknown else ""
    return f"{ended + unknown + open} started, {ended} ended, {open} in flight{more}"


def _document(check: LogCheck, key: Key, checkpoint: Checkpoint) -> dict[str, Any]:
    operations = check.operations
    return {
        "organization": check.organization,
        "from": check.first,
        "checked": check.size - check.first,
        "size": check.size,
        "root": checkpoint.root.hex(),
        "log_key": str(key),
        "erased": check.erased,
        "operations_ended": len(operations.ended),
        "operations_unknown": len(operations.unknown),
        "operations_open": len(operations.open),
    }


def progress(noun: str) -> Told:
    """Says on a terminal how far it is."""
    told = time.monotonic()

    def tell(done: int, size: int) -> None:
        nonlocal told
        if sys.stderr.isatty() and (done == size or time.monotonic() - told > TOLD_EVERY):
            told = time.monotonic()
            text = f"{done:,} of {size:,} {noun}" if done < size else ""
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)

    return tell
