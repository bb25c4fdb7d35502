"""Resource names, and the short forms that people type.

`dock-1/web` is `agents/dock-1/containers/web`; `dock-1` is `agents/dock-1`; a bare UUID is `commands/{uuid}`.
"""

from __future__ import annotations


def agent(text: str) -> str:
    """`agents/{agent}` of `dock-1` or `agents/dock-1`."""
    return text if text.startswith("agents/") else f"agents/{text}"


def container(text: str) -> str:
    """`agents/{agent}/containers/{container}` of `dock-1/web` or the full name; ValueError when it is neither."""
    if text.startswith("agents/"):
        return text
    agent_id, slash, container_id = text.partition("/")
    if not slash or not agent_id or not container_id:
        raise ValueError(f"{text!r} is not AGENT/CONTAINER, as in dock-1/web")
    return f"agents/{agent_id}/containers/{container_id}"


def command(text: str) -> str:
    """`commands/{uuid}` of a UUID or the full name."""
    return text if text.startswith("commands/") else f"commands/{text}"


def rollout(text: str) -> str:
    """`rollouts/{uuid}` of a UUID or the full name."""
    return text if text.startswith("rollouts/") else f"rollouts/{text}"


def short(name: str) -> str:
    """What people type for a resource name: `dock-1/web`, `dock-1`, the UUID of a command or a rollout."""
    match name.split("/"):
        case ["agents", agent_id, "containers", container_id]:
            return f"{agent_id}/{container_id}"
        case ["agents" | "commands" | "rollouts", identifier]:
            return identifier
        case _:
            return name
