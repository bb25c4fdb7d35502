"""What each role grants. Pure; the permissions are those that the audit options of lading.v1 name."""

from collections.abc import Iterable
from enum import IntEnum

from lading_server.event import SYSTEM


class Role(IntEnum):
    """Numbers as in lading.v1.Role."""

    VIEWER = 1
    AUDITOR = 2
    OPERATOR = 3
    ADMIN = 4
    RECORDER = 5


_VIEWER = frozenset({"container.read", "container.logs", "command.read", "agent.read", "audit.read"})
_AUDITOR = _VIEWER | {"audit.export", "access.read"}
_OPERATOR = _VIEWER | {"container.operate", "container.exec", "command.resolve", "agent.operate"}
_RECORDER = frozenset({"audit.record"})
_ADMIN = _AUDITOR | _OPERATOR | _RECORDER | {"agent.admin", "access.admin", "audit.erase"}

GRANTS: dict[int, frozenset[str]] = {
    Role.VIEWER: _VIEWER,
    Role.AUDITOR: _AUDITOR,
    Role.OPERATOR: _OPERATOR,
    Role.ADMIN: _ADMIN,
    Role.RECORDER: _RECORDER,
}
OF_AGENTS = frozenset({"agent.connect"})
"""What agents may do, and nobody else: no role grants it, and agents have no roles."""
OF_REPLICAS = frozenset({"replica.relay"})
"""What the processes of this server may do, and nobody else."""
OF_SYSTEM_ADMINS = frozenset({"organization.create"})


def permissions(roles: Iterable[int], organization: str) -> frozenset[str]:
    """What these roles grant together in this organization. Numbers that are no role grant nothing."""
    held = frozenset(roles)
    granted = frozenset[str]().union(*(GRANTS.get(role, frozenset()) for role in held))
    return granted | OF_SYSTEM_ADMINS if Role.ADMIN in held and organization == SYSTEM else granted
