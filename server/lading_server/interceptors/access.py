"""Whether the caller may call: inside the audit, so that refusals are recorded too."""

from lading_server import errors
from lading_server.call import Call
from lading_server.interceptors.methods import Method


def check(call: Call, method: Method) -> None:
    """Raise Unauthenticated or PermissionDenied, saying what is missing."""
    if method.public:
        return
    if call.refused is not None:
        raise call.refused
    needed = method.rule.permission
    if needed and needed not in call.permissions:
        raise errors.PermissionDenied(
            f"{call.actor.id} needs the permission {needed} in {call.organization}: "
            "ask an administrator for a role that grants it (`lading role assign`)",
            metadata={"permission": needed, "organization": call.organization},
        )
