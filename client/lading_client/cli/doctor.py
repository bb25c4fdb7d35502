"""`lading doctor`: what is wrong, and the command that fixes it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import click

from lading_client.cli import config, output
from lading_client.cli.invocation import Command, Invocation, pass_invocation

SKEW_MAX = 5.0  # seconds
CONNECT_WITHIN = 3.0  # seconds
ASKED_MAX = 20
"""Agents whose last session is looked up."""
UNPROVEN = "proof: "
"""So begins what an agent says that refuses the log."""
REFUSES = "it refuses the log"
HTTP_1 = re.compile("first frame, got frame type [1-9]")  # what gRPC says of it; of TLS it says type 0


@dataclass(frozen=True)
class Finding:
    """`state`: good, bad, or note. `fix`: what to run."""

    check: str
    state: str
    text: str
    fix: str = ""


@click.command(cls=Command, examples="lading doctor\nlading doctor --server lading.example.com:7443 --ca ca.pem")
@pass_invocation
def doctor(invocation: Invocation) -> int:
    """Check the way from here to the containers, step by step."""
    findings = []
    people = invocation.format in ("table", "wide")
    for finding in examine(invocation):
        findings.append(finding)
        if people:
            icon, color = {"good": ("✓", "green"), "bad": ("✗", "red")}.get(finding.state, ("·", "yellow"))
            click.echo(f"{click.style(icon, fg=color)} {finding.check:<8} {output.printable(finding.text)}")
            if finding.fix:
                click.echo(f"           {finding.fix}")
    if not people:
        output.show_document(invocation, [asdict(finding) for finding in findings])
    return 1 if any(finding.state == "bad" for finding in findings) else 0


def examine(invocation: Invocation) -> Iterator[Finding]:
    """Each step; the first that fails ends it, as the rest depends on it."""
    if config.exposed():
        yield Finding("config", "bad", f"Others can read the tokens in {config.path()}.", f"chmod 600 {config.path()}")
    for step in (_server, _token, _identity, _agents, _clock):
        found = list(step(invocation))
        yield from found
        if any(finding.state == "bad" for finding in found):
            return


def _server(invocation: Invocation) -> Iterator[Finding]:
    from lading_client.channel import parse_addresses

    text = invocation.context.server
    try:
        addresses = parse_addresses(text)
    except ValueError as error:
        yield Finding("server", "bad", str(error), "lading login --server HOST:PORT")
        return
    silent = []
    for address in addresses:
        try:
            socket.create_connection((address.host, address.port), CONNECT_WITHIN).close()
        except OSError as error:
            start = f"lading server run --listen {address}" if address.loopback else "Is it running? Is the port open?"
            silent.append(Finding("server", "note", f"{address} does not answer: {error}.", start))
        else:
            yield Finding("server", "good", f"{address} answers.")
    # One is enough to go on with.
    bad = len(silent) == len(addresses)
    yield from (replace(finding, state="bad") if bad else finding for finding in silent)


def _token(invocation: Invocation) -> Iterator[Finding]:
    from lading_client import claims

    token = invocation.context.token
    if not token:
        yield Finding("token", "bad", "There is no token.", "lading login   (an admin makes one: lading token create)")
        return
    if not claims.read(token):
        yield Finding("token", "bad", "The token is not a JWT: was it copied whole?", "lading login")
        return
    ends = claims.expires_at(token)
    if ends and ends < datetime.now(UTC):
        yield Finding("token", "bad", f"The token expired at {ends:%Y-%m-%d %H:%M}Z.", "lading login")
        return
    until = f", until {ends:%Y-%m-%d %H:%M}Z" if ends else ""
    yield Finding("token", "good", f"For the organization {claims.organization(token)}{until}.")


def _identity(invocation: Invocation) -> Iterator[Finding]:
    from lading.v1 import access_pb2
    from lading_client import errors, labels
    from lading_client.cli.access import role_name

    try:
        me = invocation.client.access.WhoAmI(access_pb2.WhoAmIRequest())
    except errors.Unavailable as error:
        if HTTP_1.search(str(error)):
            text = "What answers there speaks HTTP/1: it is no Lading server, but perhaps its viewer."
            yield Finding("call", "bad", text, "Try another port: lading doctor --server HOST:PORT")
            return
        yield Finding("call", "bad", f"The port is open, but calls fail: {error}", "TLS? lading doctor --ca FILE")
        return
    except errors.LadingError as error:
        yield Finding("call", "bad", str(error), "lading login" if error.code == "UNAUTHENTICATED" else "")
        return
    roles = ", ".join(role_name(role) for role in me.roles)
    if not roles:
        fix = f"An admin: lading role assign {me.actor.id} viewer"
        yield Finding("roles", "bad", f"{labels.user(me.actor)} has no role in {me.organization}.", fix)
        return
    yield Finding("roles", "good", f"{labels.user(me.actor)} is {roles} in {me.organization}.")


def _agents(invocation: Invocation) -> Iterator[Finding]:
    from lading.v1 import agents_pb2
    from lading_client import errors, names
    from lading_client.cli.agents import every

    try:
        found = list(every(invocation.client))
    except errors.PermissionDenied as error:
        yield Finding("agents", "note", str(error))
        return
    if not found:
        why = _last_words(invocation)
        fix = "lading token create --kind agent NAME > NAME.token; lading agent run --token-file NAME.token"
        yield Finding("agents", "bad", f"There are no agents{why}.", "" if why else fix)
        return
    online = [agent for agent in found if agent.state == agents_pb2.AGENT_STATE_ONLINE]
    yield Finding("agents", "good" if online else "bad", f"{len(online)} of {len(found)} are online.")
    asked = 0
    for agent in found:
        name = names.short(agent.name)
        if agent.banned:
            yield Finding("agents", "note", f"{name} is banned.", f"lading agents unban {name}")
        elif agent.state == agents_pb2.AGENT_STATE_OFFLINE:
            asked += 1
            why = _last_words(invocation, name) if asked <= ASKED_MAX else ""
            fix = "On its host: lading agent refusals   (restored? lading agent forget-log)" if REFUSES in why else ""
            yield Finding("agents", "note", f"{name} is offline since {output.clock(agent.last_seen_at)}{why}.", fix)
        elif agent.drained:
            yield Finding("agents", "note", f"{name} is drained.", f"lading agents resume {name}")


def _last_words(invocation: Invocation, agent: str = "") -> str:
    """How the last session of an agent, or its last attempt at one, ended, as the log has it; empty when it does not
    say. Without a name, of whichever agent came last."""
    from lading.v1 import audit_log_pb2 as pb
    from lading_client import errors, labels

    wanted = pb.EventFilter(matches=[pb.Match(field=pb.FIELD_ACTION, values=["agent.connect"])], latest_only=True)
    if agent:
        wanted.matches.add(field=pb.FIELD_AGENT, values=[agent])
    try:
        request = pb.ListEventsRequest(filter=wanted, page_size=1, with_entries=True)
        found = invocation.client.audit.ListEvents(request).events
    except errors.LadingError:
        return ""
    if not found or found[0].stage != pb.STAGE_COMPLETED:
        return ""
    event = found[0]
    closing = str(json.loads(event.entry_details).get("closing", "") if event.entry_details else "")
    if closing.startswith(UNPROVEN):
        ended = f"{REFUSES}: {closing.removeprefix(UNPROVEN)}"
    else:
        ended = f"its session ended: {closing}" if closing else f"it was refused: {event.error}" if event.error else ""
    who = "" if agent else f" {labels.user(event.actor)} tried, and"
    return f";{who} {ended.rstrip('.')}" if ended else ""


def _clock(invocation: Invocation) -> Iterator[Finding]:
    """The newest event is of one of the calls before: its time is the server's now."""
    from lading.v1 import audit_log_pb2
    from lading_client import errors, labels

    request = audit_log_pb2.ListEventsRequest(page_size=1)
    try:
        events = invocation.client.audit.ListEvents(request).events
    except errors.PermissionDenied as error:
        yield Finding("audit", "note", f"The log is not for you to read: {error}")
        return
    except errors.LadingError as error:
        yield Finding("audit", "bad", f"The log cannot be read: {error}")
        return
    yield Finding("audit", "good", "The log can be read.")
    at = labels.moment(events[0].recorded_at) if events else None
    skew = (datetime.now(UTC) - at).total_seconds() if at else 0.0
    if abs(skew) > SKEW_MAX:
        yield Finding("clock", "note", f"This machine's clock and the server's differ by {abs(skew):.0f} s.")
