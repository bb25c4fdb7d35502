"""Whether a demo left what it must: in the log, on the runtimes, in the viewer."""

from __future__ import annotations

import http.client
import pathlib
import time
from collections.abc import Iterator, Sequence

from lading.v1 import audit_log_pb2
from lading_client import labels, names
from lading_client.demo import engine
from lading_client.demo.script import Scene
from lading_client.demo.stage import AUDITOR, Stage
from lading_client.paging import pages

ENDS = {"web": "running", "api": "running", "worker": "running", "mailer": "exited"}
SEEN_WITHIN = 10.0


def complaints(stage: Stage, scenes: Sequence[Scene]) -> Iterator[str]:
    """What is wrong, in sentences; nothing when all is well."""
    yield from _events(stage, scenes)
    yield from _containers(stage)
    yield from _viewer(stage)


def _events(stage: Stage, scenes: Sequence[Scene]) -> Iterator[str]:
    filter = audit_log_pb2.EventFilter(latest_only=True)
    request = audit_log_pb2.ListEventsRequest(filter=filter, page_size=500)
    events = [event for page in pages(stage.client(AUDITOR).audit.ListEvents, request) for event in page.events]
    for scene in scenes:
        found = [event for event in events if _is(event, scene)]
        if not found:
            end = f"{scene.outcome} {scene.code}"
            yield f"The log has no {scene.action} of {scene.target or 'nothing'} by {scene.actor} that ended {end}."


def _is(event: audit_log_pb2.Event, scene: Scene) -> bool:
    target = event.targets[0].id if event.targets else ""
    return (
        event.action == scene.action
        and event.actor.id == scene.actor
        and names.short(target) == scene.target
        and labels.outcome(event) == scene.outcome
        and labels.code(event.code) == scene.code
    )


def _states(stage: Stage) -> dict[str, str]:
    return {names.short(one.name): one.state for one in stage.client(AUDITOR).list_containers()}


def _containers(stage: Stage) -> Iterator[str]:
    wanted = {stage.target(process): expected for process, expected in ENDS.items()}
    give_up_at = time.monotonic() + SEEN_WITHIN
    # A kill is done when the signal is sent; that the process ended is reported a moment later.
    while not wanted.items() <= (states := _states(stage)).items() and time.monotonic() < give_up_at:
        time.sleep(0.1)
    for process, expected in ENDS.items():
        target = stage.target(process)
        if states.get(target) != expected:
            yield f"{target} is {states.get(target, 'missing')} and should be {expected}."
        if expected == "running" and stage.engine and stage.on_engine(process):
            yield from _on_engine(stage.engine, stage.container(process))
        elif expected == "running" and not _processes(stage.mark, process):
            yield f"{target} has no process on this machine."


def _on_engine(found: engine.Engine, name: str) -> Iterator[str]:
    try:
        if not found.state(name)["Running"]:
            yield f"The engine itself says that {name} does not run."
    except (engine.EngineFailed, OSError) as error:
        yield f"The engine does not know {name}: {error}"


def _processes(mark: str, name: str) -> list[str]:
    """Numbers of the processes whose command line has the demo's mark and the name."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if mark.encode() in line and f"{name}: up".encode() in line:
            found.append(path.parent.name)
    return found


def _viewer(stage: Stage) -> Iterator[str]:
    connection = http.client.HTTPConnection(stage.viewer, timeout=30)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            yield f"The viewer answers {answer.status} to GET /."
        connection.request("GET", f"/signin?code={stage.code}")
        answer = connection.getresponse()
        answer.read()
        if answer.status not in (302, 303) or not answer.getheader("set-cookie"):
            yield f"The viewer answers {answer.status} to the one-time sign-in, or sets no cookie."
    except (OSError, http.client.HTTPException) as error:
        yield f"The viewer does not answer: {error}"
    finally:
        connection.close()
