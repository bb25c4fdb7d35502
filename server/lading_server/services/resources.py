"""Rows of the store as resources of the contract, and back."""

import functools
import json
import os
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lading.v1 import agent_link_pb2, agents_pb2, commands_pb2, containers_pb2
from lading_server import errors, names
from lading_server.ledger.transaction import Proof
from lading_server.sessions import Session
from lading_server.signer import Signer
from lading_server.store import agents, commands, containers

SECONDS_MIN, SECONDS_MAX = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999."""
RECENT_MICROSECONDS = 120_000_000
"""What another process wrote of a session is believed so long: it writes every 30 s."""


def stamp(at: int | None) -> Timestamp | None:
    """Microseconds since the epoch as a Timestamp."""
    if at is None:
        return None
    return Timestamp(seconds=at // 1_000_000, nanos=at % 1_000_000 * 1000)


def plain_stamp(at: int | None) -> Any:
    """The fields of a Timestamp or Duration, from microseconds: a message made of dicts costs a third of one made of
    messages, which are copied."""
    return None if at is None else {"seconds": at // 1_000_000, "nanos": at % 1_000_000 * 1000}


def microseconds(message: Timestamp | Duration) -> int:
    """A Timestamp or Duration in microseconds."""
    return message.seconds * 1_000_000 + message.nanos // 1000


def time_of(message: Any, field: str) -> int | None:
    """A Timestamp or Duration field in microseconds, if it is there and in the range of a Timestamp."""
    if not message.HasField(field) or not SECONDS_MIN <= getattr(message, field).seconds <= SECONDS_MAX:
        return None
    return microseconds(getattr(message, field))


def text(value: str, length_max: int) -> str:
    """What an agent says, as far as it is kept. The database's text takes no NUL: it becomes U+FFFD."""
    return value[:length_max].replace("\0", "\ufffd")


def duration(length: int) -> Duration:
    """Microseconds as a Duration."""
    return Duration(seconds=length // 1_000_000, nanos=length % 1_000_000 * 1000)


def within(request: Any, field: str, default: int, most: int) -> int:
    """A Duration of the request in microseconds, between 1 ms and `most` seconds. Raises InvalidArgument."""
    if not request.HasField(field):
        return default * 1_000_000
    length = microseconds(getattr(request, field))
    if not 1000 <= length <= most * 1_000_000:
        sentence = f"must be between 0.001 s and {most} s"
        raise errors.InvalidArgument(f"{field}: {sentence}", violations={field: sentence})
    return length


def command_of(row: commands.Row) -> commands_pb2.Command:
    """A command, without the secrets of its arguments."""
    return commands_pb2.Command(
        name=names.command_name(row.id),
        agent=names.agent_name(row.agent),
        container=names.container_name(row.agent, row.container) if row.container else "",
        verb=row.verb,
        arguments=commands_pb2.Arguments.FromString(row.arguments_shown),
        state=row.state,
        reason=row.reason,
        actor=row.actor,
        actor_email=row.actor_email,
        request_id=row.request_id,
        parent=row.parent,
        precondition=commands_pb2.Precondition.FromString(row.precondition) if row.precondition else None,
        created_at=plain_stamp(row.created_at),
        dispatched_at=plain_stamp(row.dispatched_at),
        acknowledged_at=plain_stamp(row.acknowledged_at),
        settled_at=plain_stamp(row.settled_at),
        deliver_by=plain_stamp(row.deliver_by),
        execute_within=plain_stamp(row.execute_within),
        code=row.code,
        error=row.error,
        evidence=row.evidence,
        container_id=row.container_id,
        rollout=names.rollout_name(row.rollout) if row.rollout else "",
        exit_code=row.exit_code or 0,
    )


def seal(values: dict[str, Any], arguments: bytes) -> bytes:
    """The bytes of a command, from its columns, that its agent gets; the log holds their digest."""
    return agent_link_pb2.Envelope(
        command=values["id"],
        organization=values["organization"],
        agent=values["agent"],
        container=values["container"],
        verb=values["verb"],
        arguments=commands_pb2.Arguments.FromString(arguments),
        actor=values["actor"],
        issued_at=stamp(values["created_at"]),
        deliver_by=stamp(values["deliver_by"]),
        execute_within=duration(values["execute_within"]),
        precondition=commands_pb2.Precondition.FromString(values["precondition"]) if values["precondition"] else None,
        nonce=os.urandom(16),
    ).SerializeToString(deterministic=True)


class Frames:
    """Frames that show an agent the log: with a command that is in it, or alone."""

    def __init__(self, signer: Signer) -> None:
        self._log_key = functools.cache(lambda organization: str(signer.key(organization)))

    def show(self, row: commands.Row | None, proof: Proof) -> agent_link_pb2.ConnectResponse:
        """The frame of a command with its proof; without a command, of the tree alone."""
        growth = agent_link_pb2.Growth(
            checkpoint=proof.checkpoint,
            extends=proof.extends,
            consistency=proof.consistency,
            log_key=self._log_key(proof.organization),
        )
        if row is None:
            return agent_link_pb2.ConnectResponse(growth=growth)
        return agent_link_pb2.ConnectResponse(
            dispatch=agent_link_pb2.Dispatch(
                envelope=row.envelope,
                entry=proof.entry,
                entry_details=proof.details,
                salt=proof.salt,
                index=proof.index,
                inclusion=proof.hashes,
                growth=growth,
            )
        )


def cancel_of(command: str) -> agent_link_pb2.ConnectResponse:
    """The frame that asks an agent to stop a command."""
    return agent_link_pb2.ConnectResponse(cancel=agent_link_pb2.Cancel(command=command))


def container_of(row: containers.Row, at: int) -> containers_pb2.Container:
    """A container as its agent last reported it; `at`: now, to tell whether that agent's lease still holds."""
    return containers_pb2.Container(
        name=names.container_name(row.agent, row.name),
        id=row.id,
        image=row.image,
        image_digest=row.image_digest,
        state=row.state,
        health=row.health,
        exit_code=row.exit_code,
        restart_count=row.restart_count,
        labels=json.loads(row.labels),
        created_at=stamp(row.created_at),
        started_at=stamp(row.started_at),
        finished_at=stamp(row.finished_at),
        as_of=stamp(row.as_of),
        current=bool(row.connected) and (row.lease_until or 0) > at,
    )


def container_values(message: containers_pb2.Container, at: int) -> dict[str, Any]:
    """What an agent reports, by column name. `at`: when it was reported."""
    return {
        "name": message.name,
        "id": text(message.id, 128),
        "image": text(message.image, 512),
        "image_digest": text(message.image_digest, 128),
        "state": text(message.state, 32),
        "health": text(message.health, 32),
        "exit_code": message.exit_code,
        "restart_count": message.restart_count,
        "labels": json.dumps(dict(message.labels), sort_keys=True).replace("\\u0000", "\\ufffd"),
        "created_at": time_of(message, "created_at"),
        "started_at": time_of(message, "started_at"),
        "finished_at": time_of(message, "finished_at"),
        "as_of": at,
    }


def agent_of(
    row: agents.Row, at: int, session: Session | None, *, containers: tuple[int, int], in_flight: int
) -> agents_pb2.Agent:
    """An agent. `at`: now; `session`: its session in this process; `containers`: those that run, and all.

    What its session says counts; of one in another process what that wrote down last is shown.
    """
    connected = bool(row.connected) and row.lease_until > at
    stale, acted_at = False, row.acted_at
    hearing = connected and (row.heard_at or 0) > at - RECENT_MICROSECONDS
    acting = connected and (row.acted_at is None or row.acted_at > at - RECENT_MICROSECONDS)
    if session is not None and connected:
        stale, hearing, acting = session.stale, session.hearing, session.acting
        acted_at = session.pulse.acted_at
    if not connected:
        state = agents_pb2.AGENT_STATE_OFFLINE
    else:
        state = agents_pb2.AGENT_STATE_STALE if stale else agents_pb2.AGENT_STATE_ONLINE
    return agents_pb2.Agent(
        name=names.agent_name(row.name),
        state=state,
        version=row.version,
        runtime=row.runtime,
        labels=json.loads(row.labels),
        drained=row.drained,
        banned=row.banned,
        epoch=row.epoch or 0,
        created_at=stamp(row.created_at),
        connected_at=stamp(row.connected_at),
        last_seen_at=stamp(row.last_seen_at),
        containers_running=containers[0],
        containers_total=containers[1],
        commands_in_flight=in_flight,
        connected=connected,
        hearing=hearing,
        acting=acting,
        acted_at=stamp(acted_at),
        quarantined=row.quarantined,
    )
