"""Resource names (AIP-122): `agents/{agent}`, `agents/{agent}/containers/{container}`, `commands/{uuid}`,
`rollouts/{uuid}`."""

import re

ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_AGENT = re.compile(rf"agents/({ID.pattern})")
_CONTAINER = re.compile(rf"agents/({ID.pattern})/containers/({ID.pattern})")
_UUID = r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_COMMAND = re.compile(f"commands/{_UUID}")
_ROLLOUT = re.compile(f"rollouts/{_UUID}")


def agent_of(name: str) -> str:
    """`agents/dock-1` → `dock-1`; empty when it is not the name of an agent."""
    found = _AGENT.fullmatch(name)
    return found[1] if found else ""


def container_of(name: str) -> tuple[str, str]:
    """`agents/dock-1/containers/web` → (`dock-1`, `web`); empty when it is not the name of a container."""
    found = _CONTAINER.fullmatch(name)
    return (found[1], found[2]) if found else ("", "")


def command_of(name: str) -> str:
    """`commands/{uuid}` → the UUID; empty when it is not the name of a command."""
    found = _COMMAND.fullmatch(name)
    return found[1] if found else ""


def rollout_of(name: str) -> str:
    """`rollouts/{uuid}` → the UUID; empty when it is not the name of a rollout."""
    found = _ROLLOUT.fullmatch(name)
    return found[1] if found else ""


def agent_name(agent: str) -> str:
    """`dock-1` → `agents/dock-1`."""
    return f"agents/{agent}"


def container_name(agent: str, container: str) -> str:
    """(`dock-1`, `web`) → `agents/dock-1/containers/web`."""
    return f"agents/{agent}/containers/{container}"


def command_name(command: str) -> str:
    """UUID → `commands/{uuid}`."""
    return f"commands/{command}"


def rollout_name(rollout: str) -> str:
    """UUID → `rollouts/{uuid}`."""
    return f"rollouts/{rollout}"


def target_of(target_type: str, value: str) -> tuple[tuple[str, str], str]:
    """The target of an event for the value of a request field, and the agent it is on (or empty).

    Values that are not a proper name are kept as they came, at most 512 characters: a refused call is recorded too.
    """
    agent, container = container_of(value)
    if container:
        return (target_type, f"{agent}/{container}"), agent
    if agent := agent_of(value):
        return (target_type, agent), agent
    return (target_type, command_of(value) or rollout_of(value) or value[:512]), ""
