"""What a page reads from the server, with the token of the person who looks at it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import streamlit as st

from lading.v1 import audit_log_pb2
from lading.v1.access_pb2 import WhoAmIRequest, WhoAmIResponse
from lading.v1.audit_log_pb2 import (
    Event,
    EventFilter,
    GetEventRequest,
    ListEventsRequest,
    ListEventsResponse,
    Match,
    SummarizeEventsRequest,
    SummarizeEventsResponse,
    TailEventsRequest,
)
from lading_client import requests
from lading_client.errors import LadingError, Unavailable
from lading_viewer import connection, histogram
from lading_viewer.facets import KINDS, Kind
from lading_viewer.view import View

PAGE_SIZE = 50
SAME_OPERATION_MAX = 50
SUMMARY_S = 15  # what was counted this long ago is shown again
WHO_S = 300
FACET_VALUES_MAX = 12


@dataclass(frozen=True)
class Reader:
    """Reads for one person. Every failure is a LadingError."""

    token: str

    def page(self, view: View) -> ListEventsResponse:
        """The events of a view, newest first, with their entries."""
        request = ListEventsRequest(
            filter=view.filter(), page_size=PAGE_SIZE, page_token=view.cursor, with_entries=True
        )
        try:
            return connection.clients().of(self.token).audit.ListEvents(request)
        except Unavailable:
            connection.clients().forget(self.token)
            raise

    def newer_than(self, view: View, moment: datetime) -> int:
        """How many events were recorded after a moment; at most a page is counted."""
        found = view.filter()
        found.since.CopyFrom(requests.timestamp(moment + timedelta(microseconds=1)))
        request = ListEventsRequest(filter=found, page_size=PAGE_SIZE)
        return len(connection.clients().of(self.token).audit.ListEvents(request).events)

    def tail(self, view: View) -> Any:
        """The answers of a tail, from the next event on; `cancel` ends it."""
        return connection.clients().of(self.token).audit.TailEvents(TailEventsRequest(filter=view.tail_filter()))

    def is_new(self) -> bool:
        """Whether nothing was ever done here, as far as the server says."""
        request = ListEventsRequest(filter=EventFilter(changes_only=True), page_size=1)
        try:
            return not connection.clients().of(self.token).audit.ListEvents(request).events
        except LadingError:
            return False

    def summary(self, view: View, kinds: Sequence[Kind] = KINDS) -> SummarizeEventsResponse:
        """Counts of a view, up to SUMMARY_S old."""
        request = SummarizeEventsRequest(
            filter=view.at_step(SUMMARY_S).filter(),
            buckets=histogram.BARS,
            facets=[kind.proto for kind in kinds],
            values_max=FACET_VALUES_MAX,
        )
        return SummarizeEventsResponse.FromString(_summary(self.token, request.SerializeToString(deterministic=True)))

    def summaries(self, view: View, summary: SummarizeEventsResponse) -> dict[str, SummarizeEventsResponse]:
        """For each facet the counts it shows: of a field that is picked from, also those of what was not picked."""
        picked = {term.field for term in view.query.terms if not term.negate}
        return {
            kind.field: self.summary(view.without(kind.field), [kind]) if kind.field in picked else summary
            for kind in KINDS
        }

    def who(self) -> WhoAmIResponse:
        """Who the server takes this person for, up to WHO_S old."""
        return WhoAmIResponse.FromString(_who(self.token))

    def event(self, event_id: str) -> Event:
        """NotFound when there is none in the person's organization."""
        return connection.clients().of(self.token).audit.GetEvent(GetEventRequest(id=event_id))

    def last_verification(self) -> Event | None:
        """The newest of the last exports that `lading audit verify` made."""
        match = Match(field=audit_log_pb2.FIELD_ACTION, values=["audit.export"])
        request = ListEventsRequest(filter=EventFilter(matches=[match], latest_only=True), page_size=PAGE_SIZE)
        found = connection.clients().of(self.token).audit.ListEvents(request).events
        return next((each for each in found if each.request.fields["format"].string_value == "verify"), None)

    def same_operation(self, event: Event) -> list[Event]:
        """All stages of an operation, of what it caused and of what caused it, with their entries, oldest first."""
        match = Match(field=audit_log_pb2.FIELD_OPERATION, values=[event.parent or event.operation])
        request = ListEventsRequest(
            filter=EventFilter(matches=[match]), page_size=SAME_OPERATION_MAX, with_entries=True
        )
        return sorted(connection.clients().of(self.token).audit.ListEvents(request).events, key=lambda each: each.index)


@st.cache_data(ttl=SUMMARY_S, max_entries=256, show_spinner=False)
def _summary(token: str, request: bytes) -> bytes:
    client = connection.clients().of(token)
    return client.audit.SummarizeEvents(SummarizeEventsRequest.FromString(request)).SerializeToString()


@st.cache_data(ttl=WHO_S, max_entries=1024, show_spinner=False)
def _who(token: str) -> bytes:
    return connection.clients().of(token).access.WhoAmI(WhoAmIRequest()).SerializeToString()
