"""Counts by status, action, user, agent, code and source, beside the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lading.v1 import audit_log_pb2
from lading.v1.audit_log_pb2 import Facet, FacetValue, SummarizeEventsResponse
from lading_viewer import words
from lading_viewer.view import View

HOT_RATIO = 2.0
HOT_FAILED_MIN = 10


@dataclass(frozen=True)
class Kind:
    """One facet. `field` is its name in the query language; a folded one opens on a click."""

    field: str
    name: str
    proto: audit_log_pb2.Field.ValueType
    folded: bool = False


KINDS = (
    Kind("status", "Status", audit_log_pb2.FIELD_OUTCOME),
    Kind("action", "Action", audit_log_pb2.FIELD_ACTION),
    Kind("user", "User", audit_log_pb2.FIELD_ACTOR),
    Kind("agent", "Agent", audit_log_pb2.FIELD_AGENT),
    Kind("code", "Code", audit_log_pb2.FIELD_CODE, folded=True),
    Kind("source", "Source", audit_log_pb2.FIELD_SOURCE, folded=True),
)
STATUS_ORDER = (*[look.word for look in words.STATUSES.values()][1:], "PENDING")


def data(view: View, summaries: Mapping[str, SummarizeEventsResponse]) -> list[dict[str, Any]]:
    """Groups of `components.facets`, from the summary for each field. Facets without values are left out."""
    groups = []
    for kind in KINDS:
        summary = summaries[kind.field]
        found = next((facet for facet in summary.facets if facet.field == kind.proto), Facet())
        values = _with_picked(view, kind, [value for value in found.values if value.value], summaries)
        if kind.field == "status":
            values.sort(key=lambda value: STATUS_ORDER.index(value.value) if value.value in STATUS_ORDER else 99)
        if values:
            rows = [_value(view, kind, value, summary) for value in values]
            groups.append({"field": kind.field, "name": kind.name, "folded": kind.folded, "values": rows})
    return groups


def _with_picked(
    view: View, kind: Kind, values: Sequence[FacetValue], summaries: Mapping[str, SummarizeEventsResponse]
) -> list[FacetValue]:
    """And those that the search text names but nothing, or little, has: they must be there to be taken away again."""
    known = {value.value for value in values}
    picked = [value for term in view.query.terms if term.field == kind.field for value in term.values]
    found = [FacetValue(value=value) for value in picked if value not in known and "*" not in value]
    chosen = {term.field for term in view.query.terms if not term.negate}
    if len(picked) == len(found) == 1 and kind.field in chosen:
        # Rare values are not among those that are counted; but where nothing else is picked, all that is left are its.
        others = (summaries[each.field] for each in KINDS if each.field not in chosen)
        if (other := next(others, None)) is not None:
            found[0].total, found[0].failed = other.total, other.failed
    return [*values, *found]


def _value(view: View, kind: Kind, value: FacetValue, summary: SummarizeEventsResponse) -> dict[str, Any]:
    look = _look(kind, value.value)
    return {
        "value": value.value,
        "word": look.word,
        "icon": look.icon,
        "tone": look.tone if look.icon else "",
        "title": value.value,
        "total": value.total,
        "failed": value.failed,
        "state": view.state_of(kind.field, value.value),
        "hot": "" if kind.field in ("status", "code") else hot(value, summary),
    }


def _look(kind: Kind, value: str) -> words.Look:
    match kind.field:
        case "status":
            return words.status_named(value)
        case "action":
            return words.action(value)
        case _:
            return words.Look(value)


def hot(value: FacetValue, summary: SummarizeEventsResponse) -> str:
    """A sentence with both rates when a value fails twice as often as the rest; else empty."""
    rest_total, rest_failed = summary.total - value.total, summary.failed - value.failed
    if value.failed < HOT_FAILED_MIN or rest_total <= 0:
        return ""
    rate, rest_rate = value.failed / value.total, rest_failed / rest_total
    if rate < HOT_RATIO * rest_rate:
        return ""
    return f"{rate:.1%} fail here, {rest_rate:.1%} of the rest. "
