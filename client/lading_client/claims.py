"""What a token says of itself. Read without verification, to talk about it; only the server believes it or not."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def read(token: str | None) -> Mapping[str, Any]:
    """The claims of a JWT; empty when it is none."""
    try:
        _, payload, _ = (token or "").split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, binascii.Error):
        return {}
    return claims if isinstance(claims, dict) else {}


def organization(token: str | None) -> str:
    return str(read(token).get("org", ""))


def expires_at(token: str | None) -> datetime | None:
    """Aware, UTC; None when the token does not say."""
    value = read(token).get("exp")
    try:
        return datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else None
    except (ValueError, OverflowError, OSError):
        return None
