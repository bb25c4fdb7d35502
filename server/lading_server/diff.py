"""What changed, as a JSON Patch (RFC 6902) whose operations also say what `was` there before."""

from typing import Any


def change(*path: str, was: Any, value: Any) -> list[dict[str, Any]]:
    """The patch that makes `was` at `path` into `value`; None stands for nothing there, equal values for no change."""
    if was == value:
        return []
    pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)
    if value is None:
        return [{"op": "remove", "path": pointer, "was": was}]
    return [{"op": "add" if was is None else "replace", "path": pointer, "value": value, "was": was}]
