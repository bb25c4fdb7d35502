"""Requests, built from the short words that callers use. Pure; shared by the blocking and the asyncio client."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, TypeVar, Unpack

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lading.v1 import audit_log_pb2, commands_pb2, containers_pb2
from lading_client import names


class How(TypedDict, total=False):
    """What every lifecycle call may say.

    `reason`: why; recorded. `request_id`: idempotency key. `detach`: answer at once, with the command as recorded.
    `deliver_within`, `execute_within`: seconds. `precondition`: what must hold, checked by the agent.
    """

    reason: str
    request_id: str
    detach: bool
    deliver_within: float
    execute_within: float
    precondition: commands_pb2.Precondition


Lifecycle = TypeVar(
    "Lifecycle",
    containers_pb2.CreateContainerRequest,
    containers_pb2.StartContainerRequest,
    containers_pb2.StopContainerRequest,
    containers_pb2.RestartContainerRequest,
    containers_pb2.KillContainerRequest,
    containers_pb2.PauseContainerRequest,
    containers_pb2.UnpauseContainerRequest,
    containers_pb2.RemoveContainerRequest,
    containers_pb2.PullImageRequest,
)


def _say(request: Lifecycle, how: How) -> Lifecycle:
    request.reason = how.get("reason", "")
    request.request_id = how.get("request_id", "")
    request.detach = how.get("detach", False)
    if "deliver_within" in how:
        request.deliver_within.CopyFrom(duration(how["deliver_within"]))
    if "execute_within" in how:
        request.execute_within.CopyFrom(duration(how["execute_within"]))
    if "precondition" in how:
        request.precondition.CopyFrom(how["precondition"])
    return request


def create(
    target: str,
    image: str,
    *,
    command: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    network: str = "",
    restart: str = "",
    **how: Unpack[How],
) -> containers_pb2.CreateContainerRequest:
    """See ContainerSpec for the fields."""
    spec = commands_pb2.ContainerSpec(
        image=image, command=command, env=env or {}, labels=labels or {}, network=network, restart=restart
    )
    return _say(containers_pb2.CreateContainerRequest(name=names.container(target), spec=spec), how)


def start(target: str, **how: Unpack[How]) -> containers_pb2.StartContainerRequest:
    return _say(containers_pb2.StartContainerRequest(name=names.container(target)), how)


def stop(target: str, *, grace: float | None = None, **how: Unpack[How]) -> containers_pb2.StopContainerRequest:
    """`grace`: seconds that the process has to end by itself."""
    request = containers_pb2.StopContainerRequest(name=names.container(target), grace=optional_duration(grace))
    return _say(request, how)


def restart(target: str, *, grace: float | None = None, **how: Unpack[How]) -> containers_pb2.RestartContainerRequest:
    """`grace`: seconds that the process has to end by itself."""
    request = containers_pb2.RestartContainerRequest(name=names.container(target), grace=optional_duration(grace))
    return _say(request, how)


def kill(target: str, *, signal: str = "", **how: Unpack[How]) -> containers_pb2.KillContainerRequest:
    """`signal`: `SIGTERM`, `TERM` or `15`; SIGKILL when empty."""
    return _say(containers_pb2.KillContainerRequest(name=names.container(target), signal=signal), how)


def pause(target: str, **how: Unpack[How]) -> containers_pb2.PauseContainerRequest:
    return _say(containers_pb2.PauseContainerRequest(name=names.container(target)), how)


def unpause(target: str, **how: Unpack[How]) -> containers_pb2.UnpauseContainerRequest:
    return _say(containers_pb2.UnpauseContainerRequest(name=names.container(target)), how)


def remove(target: str, *, force: bool = False, **how: Unpack[How]) -> containers_pb2.RemoveContainerRequest:
    """`force`: also while it runs."""
    return _say(containers_pb2.RemoveContainerRequest(name=names.container(target), force=force), how)


def pull(agent: str, image: str, **how: Unpack[How]) -> containers_pb2.PullImageRequest:
    return _say(containers_pb2.PullImageRequest(agent=names.agent(agent), image=image), how)


def logs(
    target: str,
    *,
    follow: bool = False,
    tail: int = 0,
    since: datetime | None = None,
    timestamps: bool = False,
    after: str = "",
) -> containers_pb2.StreamContainerLogsRequest:
    """`tail`: only the last so many lines; 0 means all. `after`: go on behind the piece that had this position."""
    request = containers_pb2.StreamContainerLogsRequest(
        name=names.container(target), follow=follow, tail=tail, timestamps=timestamps, after=after
    )
    if since is not None:
        request.since.CopyFrom(timestamp(since))
    return request


def exec_start(
    target: str,
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    user: str = "",
    working_dir: str = "",
    tty: bool = False,
    size: tuple[int, int] | None = None,
    input: bool = False,
    reason: str = "",
    request_id: str = "",
    execute_within: float | None = None,
    precondition: commands_pb2.Precondition | None = None,
) -> containers_pb2.ExecStart:
    """See ExecSpec for the fields. `size`: lines and columns of the terminal. `execute_within`: seconds."""
    spec = commands_pb2.ExecSpec(
        command=command, env=env or {}, user=user, working_dir=working_dir, tty=tty, input=input
    )
    if size is not None:
        spec.size.rows, spec.size.columns = size
    return containers_pb2.ExecStart(
        name=names.container(target),
        reason=reason,
        request_id=request_id,
        precondition=precondition,
        spec=spec,
        execute_within=optional_duration(execute_within),
    )


def list_containers(
    *,
    agent: str = "",
    labels: Mapping[str, str] | None = None,
    states: Iterable[str] = (),
    container: str = "",
) -> containers_pb2.ListContainersRequest:
    """`container`: only those with this name, on any agent."""
    return containers_pb2.ListContainersRequest(
        page_size=500,
        agent=names.agent(agent) if agent else "",
        labels=labels or {},
        states=states,
        container=container,
    )


def record(
    action: str,
    targets: Iterable[tuple[str, str] | str],
    *,
    diff: Sequence[dict[str, Any]] = (),
    reason: str = "",
    outcome: str = "SUCCESS",
    error: str = "",
    details: Mapping[str, Any] | None = None,
    on_behalf_of: str = "",
    occurred_at: datetime | None = None,
    request_id: str = "",
    event_id: str = "",
) -> audit_log_pb2.NewEvent:
    """A domain event of a service: `record("task.update", ["task:42"], diff=[…])`.

    Targets are `type:id` or pairs. `diff` is a JSON Patch (RFC 6902), with `was` for the value before. `event_id` is a
    UUID, a new one by default; the same one again is not recorded twice.
    """
    pairs = [target.split(":", 1) if isinstance(target, str) else target for target in targets]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("a target is TYPE:ID, as in task:42")
    event = audit_log_pb2.NewEvent(
        id=event_id or str(uuid.uuid4()),
        action=action,
        targets=[audit_log_pb2.Target(type=kind, id=identifier) for kind, identifier in pairs],
        reason=reason,
        outcome=audit_log_pb2.Outcome.Value(f"OUTCOME_{outcome}"),
        error=error,
        on_behalf_of=on_behalf_of,
        request_id=request_id,
    )
    for change in diff:
        event.diff.add_struct().update(change)
    if details:
        event.details.update(dict(details))
    if occurred_at is not None:
        event.occurred_at.CopyFrom(timestamp(occurred_at))
    return event


def duration(seconds: float) -> Duration:
    value = Duration()
    value.FromTimedelta(timedelta(seconds=seconds))
    return value


def optional_duration(seconds: float | None) -> Duration | None:
    return None if seconds is None else duration(seconds)


def timestamp(moment: datetime) -> Timestamp:
    """Of an aware time."""
    value = Timestamp()
    value.FromDatetime(moment.astimezone(UTC))
    return value
