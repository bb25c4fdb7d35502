"""The page of the viewer over a log in this process."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from lading_viewer import connection, integrity, session
from tests.unit.viewer import audit_server
from tests.unit.viewer.audit_server import Log


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """An empty log that the viewer is connected to."""
    # A port may come again, with another log behind it.
    monkeypatch.setattr(integrity, "_logs", {})
    log = Log()
    address, stop = audit_server.serve(log)
    connection.configure(connection.Connection(address))
    st.cache_data.clear()
    yield log
    connection.clients().close()
    stop()


@pytest.fixture
def open_page(log: Log, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Opens the page with the parameters of a URL, as ada unless another token is given."""

    def open_page(parameters: dict[str, str] | None = None, token: str | None = None, **context: str) -> AppTest:
        cookie = audit_server.token() if token is None else token
        monkeypatch.setattr(session, "cookie", lambda: cookie)
        page = AppTest.from_file(str(resources.files("lading_viewer").joinpath("app.py")), default_timeout=60)
        page.query_params.update(parameters or {})
        page.context.update(context)
        page.run()
        assert not page.exception
        return page

    return open_page


def component(page: AppTest, name: str) -> dict[str, Any] | None:
    """The data of a component by its name; None when it is not on the page."""
    for element in page.get("bidi_component"):
        if element.proto.component_name == f"lading_{name}":
            data: list[dict[str, Any]] = json.loads(element.proto.json)
            return data[0]
    return None
