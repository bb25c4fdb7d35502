"""The viewer as an ASGI application: Streamlit's pages, and around them what Streamlit does not do itself.

Outside in: the host is one of ours, every answer has its security headers, the page is for the signed-in only, answers
are compressed; then the routes /signin, /signout and /export, and Streamlit.
"""

import base64
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Iterator
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import streamlit as st
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from lading.v1.audit_log_pb2 import ExportEventsResponse
from lading_client import Client
from lading_client.errors import DeadlineExceeded, LadingError, PermissionDenied, Unauthenticated, Unavailable
from lading_viewer import connection, export, sign_in
from lading_viewer.moments import clock
from lading_viewer.view import View

log = logging.getLogger("lading.viewer")
HERE = Path(str(resources.files("lading_viewer")))
STATUS = {Unauthenticated: 401, PermissionDenied: 403, Unavailable: 503, DeadlineExceeded: 504}


def app(*, one_time_code_file: Path | None = None, hosts: Collection[str] = ()) -> st.App:
    """The application, after `connection.configure`. `hosts`: names it may be called by; empty means any."""
    entry = sign_in.SignIn(one_time_code_file)
    return st.App(
        HERE / "app.py",
        routes=[
            Route("/signin", entry.form, methods=["GET"]),
            Route("/signin", entry.submit, methods=["POST"]),
            Route("/signout", entry.leave, methods=["POST"]),
            Route("/export", export_events, methods=["GET"]),
            Route("/icon.png", icon, methods=["GET"]),
            # Streamlit's own name for it; `page_icon` of a page would load numpy.
            Route("/favicon.png", icon, methods=["GET"]),
        ],
        middleware=[
            Middleware(Doorway, hosts=frozenset(hosts), headers=headers()),
            Middleware(GZipMiddleware, minimum_size=1000, compresslevel=5),
        ],
        on_script_error=report,
    )


def headers() -> dict[bytes, bytes]:
    """Security headers. Scripts come from here, and as blobs: that is how Streamlit runs components."""
    shell = (Path(st.__file__).parent / "static" / "index.html").read_text(encoding="utf-8")
    inline = re.findall(r"<script>(.*?)</script>", shell, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in inline]
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(["'self'", "blob:", *(f"'sha256-{each}'" for each in hashes)]),
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "manifest-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        b"content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()).encode(),
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"same-origin",
        b"cross-origin-opener-policy": b"same-origin",
        b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
    }


class Doorway:
    """Checks the host, adds the headers, and shows the sign-in form in place of the page."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str], headers: dict[bytes, bytes]) -> None:
        self.app = app
        self.hosts = hosts
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        if self.hosts and _host(connection) not in self.hosts:
            # Another name for this address: a page elsewhere may have pointed it here to read from it.
            refusal: ASGIApp = PlainTextResponse("This viewer does not go by that name.", 400)
            await (WebSocketClose() if scope["type"] == "websocket" else refusal)(scope, receive, send)
            return
        answer: ASGIApp = self.app
        if scope["type"] == "http" and scope["path"] in PAGES:
            answer = sign_in.gate(Request(scope)) or self.app
        await answer(scope, receive, self._with_headers(scope, send))

    def _with_headers(self, scope: Scope, send: Send) -> Callable[[Message], Awaitable[None]]:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message.get("headers", ())}
                more = {**self.headers, **({b"cache-control": b"no-store"} if scope["path"] in PRIVATE else {})}
                added = [(name, value) for name, value in more.items() if name not in own]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        return send_with_headers


def _host(connection: HTTPConnection) -> str | None:
    try:
        return connection.url.hostname
    except ValueError:
        return None


PAGES = ("/", "/integrity")
PRIVATE = (*PAGES, "/signin", "/signout", "/export")


async def icon(request: Request) -> Response:
    return FileResponse(HERE / "icon.png", headers={"cache-control": "max-age=86400"})


async def export_events(request: Request) -> Response:
    """The events of the view that the URL names, as a file, with the person's own token."""
    person = sign_in.of(request)
    format_name = request.query_params.get("format", "")
    if person is None:
        return PlainTextResponse("Your session has ended. Sign in again.", 401)
    if format_name not in export.FORMATS:
        return PlainTextResponse(f"format is one of {', '.join(export.FORMATS)}.", 400)
    view = View.parse(dict(request.query_params), datetime.now(UTC), clock(False, None))
    client = connection.clients().connect(person.token)
    batches = client.audit.ExportEvents(export.request(view, format_name))
    try:
        first = await run_in_threadpool(next, batches, None)
    except LadingError as failure:
        client.close()
        return PlainTextResponse(str(failure), STATUS.get(type(failure), 502))
    name = export.file_name(person.organization or "log", view.shown, format_name)
    return StreamingResponse(
        export.lines(_all(client, first, batches), format_name),
        media_type=export.FORMATS[format_name],
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


def _all(
    client: Client, first: ExportEventsResponse | None, rest: Iterator[ExportEventsResponse]
) -> Iterator[ExportEventsResponse]:
    """An error on the way breaks the download off, so that nobody takes a part for the whole."""
    with client:
        if first is not None:
            yield first
            yield from rest


def report(failure: Exception) -> None:
    """The person sees that something failed, without the text; the log has it."""
    log.error("a page failed", exc_info=failure)
