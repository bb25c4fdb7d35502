"""Signing in and out: the token comes by a form, or by a one-time code, and goes into a cookie no script can read."""

import hmac
import html
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from lading.v1.access_pb2 import WhoAmIRequest
from lading_client.errors import LadingError, PermissionDenied, Unauthenticated
from lading_viewer import connection, session
from lading_viewer.session import COOKIE, Session

WRONG = "This token is not valid or has expired. Nothing was loaded."
USED = "This link was used or is not valid. Paste a token instead."
DOWN = "The control plane cannot be reached, so the token could not be checked. Try again in a moment."
TOKEN_LENGTH_MAX = 3500  # a cookie holds 4,096 bytes
FORM_LENGTH_MAX = 65_536
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PAGE = Template(resources.files("lading_viewer").joinpath("sign_in.html").read_text(encoding="utf-8"))
# A navigation from another site brings no SameSite=Strict cookie; one from this page does.
AGAIN = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0"><title>Lading</title>'


def page(next_url: str, message: str = "", status: int = 200) -> HTMLResponse:
    """The form. `next_url` is where it leads to."""
    note = f'<p role="alert">{html.escape(message)}</p>' if message else ""
    return HTMLResponse(PAGE.substitute(note=note, next=html.escape(local(next_url))), status)


def local(url: str) -> str:
    """The address when it is one of this viewer; else its first page. A link must not lead people elsewhere."""
    # Browsers take control characters out, and backslashes for slashes.
    is_path = url.isprintable() and "\\" not in url and url.startswith("/") and not url.startswith("//")
    return url if is_path and urlsplit(url).path not in ("/signin", "/signout") else "/"


def of(request: HTTPConnection) -> Session | None:
    """The session that a request brings, when it has not ended."""
    found = session.read(request.cookies.get(COOKIE, ""))
    return None if found is None or found.ended(datetime.now(UTC)) else found


def gate(request: Request) -> Response | None:
    """In place of the page, for those who are not signed in."""
    if of(request):
        return None
    if request.headers.get("sec-fetch-site") == "cross-site" and COOKIE not in request.cookies:
        return HTMLResponse(AGAIN)
    ended = "Your session has ended. Sign in again to continue; this page's link is kept."
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return page(here, ended if COOKIE in request.cookies else "")


def is_foreign(request: HTTPConnection) -> bool:
    """Whether another site sent the person's browser here to change something."""
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")


@dataclass
class Backoff:
    """Addresses that gave wrong tokens wait longer each time, up to a minute; those of old are forgotten."""

    free: int = 5
    addresses_max: int = 10_000
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _wrong: OrderedDict[str, tuple[int, float]] = field(default_factory=OrderedDict)

    def wait(self, address: str, now: float) -> float:
        """Seconds until this address may try again."""
        return max(0.0, self._wrong.get(address, (0, 0.0))[1] - now)

    def wrong(self, address: str, now: float) -> None:
        with self._lock:
            count = self._wrong.pop(address, (0, 0.0))[0] + 1
            pause = min(60.0, 2.0 ** (count - self.free)) if count > self.free else 0.0
            self._wrong[address] = (count, now + pause)
            if len(self._wrong) > self.addresses_max:
                self._wrong.popitem(last=False)

    def right(self, address: str) -> None:
        with self._lock:
            self._wrong.pop(address, None)


class SignIn:
    """The routes /signin and /signout. `one_time_code_file`: two lines, code and token; see `lading viewer run`."""

    def __init__(self, one_time_code_file: Path | None = None) -> None:
        self.one_time_code_file = one_time_code_file
        self.backoff = Backoff()
        self._exchange = threading.Lock()

    async def form(self, request: Request) -> Response:
        """GET /signin, with or without `code`."""
        next_url = request.query_params.get("next", "/")
        code = request.query_params.get("code", "")
        if not code:
            return page(next_url)
        token = self._token_of(code)
        if not token and of(request):
            # The link again, in the browser that it has signed in.
            return RedirectResponse(local(next_url), 303)
        return await self._enter(request, token, next_url, USED)

    async def submit(self, request: Request) -> Response:
        """POST /signin."""
        if is_foreign(request):
            return PlainTextResponse("This form was sent from another site.", 403)
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > FORM_LENGTH_MAX:
            return PlainTextResponse("That is no token.", 413)
        fields = await request.form()
        token, next_url = (str(fields.get(name, "")).strip() for name in ("token", "next"))
        return await self._enter(request, token, next_url, WRONG)

    async def leave(self, request: Request) -> Response:
        """POST /signout."""
        if is_foreign(request):
            return PlainTextResponse("This form was sent from another site.", 403)
        response = RedirectResponse("/", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    async def _enter(self, request: Request, token: str, next_url: str, wrong: str) -> Response:
        address, now = request.client.host if request.client else "", time.monotonic()
        if wait := self.backoff.wait(address, now):
            response: Response = page(next_url, f"Too many wrong tokens. Try again in {wait:.0f} s.", 429)
            response.headers["retry-after"] = str(int(wait) + 1)
            return response
        found = session.read(token) if len(token) <= TOKEN_LENGTH_MAX else None
        try:
            if found is not None:
                await run_in_threadpool(_check, token)
        except (Unauthenticated, PermissionDenied):
            found = None
        except LadingError:
            return page(next_url, DOWN, 503)
        if found is None:
            self.backoff.wrong(address, now)
            return page(next_url, wrong, 401)
        self.backoff.right(address)
        response = RedirectResponse(local(next_url), 303)
        response.set_cookie(
            COOKIE,
            token,
            max_age=max(0, int((found.expires_at - datetime.now(UTC)).total_seconds())),
            httponly=True,
            samesite="strict",
            secure=request.url.hostname not in LOOPBACK,
        )
        return response

    def _token_of(self, code: str) -> str:
        """The token that waits for this code, which is then gone; empty for any other code."""
        with self._exchange:
            if self.one_time_code_file is None or not self.one_time_code_file.exists():
                return ""
            expected, _, token = self.one_time_code_file.read_text(encoding="ascii").strip().partition("\n")
            if not expected or not hmac.compare_digest(expected.strip().encode(), code.encode()):
                return ""
            # Gone before it is used: a crash here costs the person a new code, and gives nobody a second use.
            self.one_time_code_file.unlink()
            return token.strip()


def _check(token: str) -> None:
    """LadingError when the server does not know the token. The server records the attempt."""
    with connection.clients().connect(token) as client:
        client.access.WhoAmI(WhoAmIRequest())
