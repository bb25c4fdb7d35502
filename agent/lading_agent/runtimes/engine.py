"""HTTP to a Docker-compatible engine: which answer is which gRPC code, and when it is in doubt whether it acted."""

import asyncio
import json
import os
import pathlib
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import aiohttp
from grpc import StatusCode
from yarl import URL

from lading_agent.errors import InDoubt, RuntimeFailure, SettingsError, Unchanged, Unreadable

CONNECT_WITHIN = 10.0
CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.PERMISSION_DENIED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    406: StatusCode.FAILED_PRECONDITION,
    409: StatusCode.FAILED_PRECONDITION,
    500: StatusCode.INTERNAL,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
}
# Answers of a proxy that did not get the engine's.
GATEWAY = frozenset({502, 504})
# What a 500 means by its words: Podman has some where Docker answers 409 or 400, and Docker one at unpause.
MEANINGS = {
    "container state improper": StatusCode.FAILED_PRECONDITION,
    "is not paused": StatusCode.FAILED_PRECONDITION,
    "invalid signal": StatusCode.INVALID_ARGUMENT,
    "no such container": StatusCode.NOT_FOUND,
}


class Engine:
    """One engine at `unix:///path` or `tcp://host:port`; TLS as Docker's own tools take it from the environment
    (DOCKER_TLS_VERIFY, DOCKER_CERT_PATH). `open` first."""

    def __init__(self, url: str) -> None:
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in ("unix", "tcp", "http") or not rest:
            raise SettingsError(f"--docker-host must be unix:///path/to/socket or tcp://HOST:PORT, not {url!r}")
        self.url = url
        self._unix_path = rest if scheme == "unix" else None
        self._tls = tls_from_environment() if scheme == "tcp" else None
        self._address = "http://engine" if self._unix_path else f"{'https' if self._tls else 'http'}://{rest}"
        self._session: aiohttp.ClientSession | None = None
        self._version: str | None = None
        self._podman = ""

    @property
    def is_podman(self) -> bool:
        """Whether Podman answers; known once anything has been asked."""
        return bool(self._podman)

    async def podman_version(self) -> str:
        """Empty when it is another engine."""
        if self._version is None:
            await self._negotiate()
        return self._podman

    async def open(self) -> None:
        connector: aiohttp.BaseConnector
        if self._unix_path:
            connector = aiohttp.UnixConnector(self._unix_path, limit=0)
        else:
            connector = aiohttp.TCPConnector(limit=0, ssl=self._tls or True)
        # No limit in time: how long a command may take is the worker's to say.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, path: str, **query: str) -> Any:
        """GET it, as JSON."""
        async with self._request("GET", path, query) as response:
            try:
                return await _json(response)
            except ValueError as error:
                raise Unreadable(f"the engine at {self.url} answers what is no JSON: {error}") from None

    async def act(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> Any:
        """A request that changes something; raises InDoubt when the connection broke before the answer."""
        async with self._request(method, path, query or {}, body) as response:
            try:
                return await _json(response)
            except ValueError as error:
                raise InDoubt(f"the engine at {self.url} answers what is no JSON: {error}") from None

    async def stream(self, path: str, query: Mapping[str, str], method: str = "GET") -> AsyncGenerator[bytes, None]:
        """The answer's bytes as they come; nothing is read ahead of the caller but one buffer of 64 KB."""
        async with self._request(method, path, query) as response:
            while chunk := await response.content.readany():
                yield chunk

    async def converse(self, path: str, body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """POST it, and take over the connection: from then on its bytes are those of a program, both ways.

        Raises InDoubt when it broke before the answer.
        """
        version = self._version or await self._negotiate()
        data = json.dumps(body).encode()
        head = (
            f"POST /v{version}{path} HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(CONNECT_WITHIN):
                reader, writer = await self._connect()
        except (OSError, TimeoutError) as error:
            raise self._unreachable(error) from None
        try:
            writer.write(head.encode() + data)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode(errors="replace")
            status = int(answer.split(maxsplit=2)[1])
            if status in GATEWAY:
                raise self._doubt(f"a proxy says {status}")
            if status not in (101, 200):
                length = re.search(r"\r\ncontent-length: *(\d+)", answer, re.IGNORECASE)
                raise failure_of(status, await reader.readexactly(int(length[1])) if length else b"")
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError) as error:
            writer.close()
            raise self._doubt(error) from None
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._unix_path:
            return await asyncio.open_unix_connection(self._unix_path)
        address = URL(self._address)
        return await asyncio.open_connection(address.host, address.port, ssl=self._tls)

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, query: Mapping[str, str], body: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "open() first"
        version = self._version or await self._negotiate()
        target = f"{self._address}/v{version}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            url = URL(target, encoded=True)
            async with self._session.request(method, url, json=body, middlewares=(self._ask_once,)) as response:
                if response.status == 304:
                    raise Unchanged
                if response.status in GATEWAY and method != "GET":
                    raise self._doubt(f"a proxy says {response.status}")
                if response.status >= 400:
                    raise await _failure(response)
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise self._unreachable(error) from None
        except (aiohttp.ClientError, OSError) as error:
            if method == "GET":
                raise self._unreachable(error) from None
            raise self._doubt(error) from None

    async def _ask_once(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """The library would send a DELETE again, and its second answer (404) would hide that the first one removed."""
        try:
            return await handler(request)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            if request.method == "GET":
                raise
            raise self._doubt(error) from None

    async def _negotiate(self) -> str:
        """The engine's own version of the API: paths without one are deprecated, and a fixed one ages."""
        assert self._session is not None, "open() first"
        try:
            async with self._session.get(f"{self._address}/_ping") as response:
                if response.status >= 400:
                    raise await _failure(response)
                self._podman = response.headers.get("Libpod-Api-Version", "")
                self._version = response.headers.get("Api-Version", "1.41")
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from None
        return self._version

    def _unreachable(self, error: Exception) -> RuntimeFailure:
        return RuntimeFailure(f"the engine at {self.url} does not answer: {error}", StatusCode.UNAVAILABLE)

    def _doubt(self, why: object) -> InDoubt:
        return InDoubt(f"the engine at {self.url} broke off before it answered: {why}")


async def json_lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any], None]:
    """JSON documents, one a line, of any length; raises InDoubt when one is none."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                try:
                    document = json.loads(line)
                except ValueError as error:
                    raise InDoubt(f"the engine writes what is no JSON: {error}") from None
                yield document


def tls_from_environment() -> ssl.SSLContext | None:
    """As Docker's own tools: certificates in DOCKER_CERT_PATH when DOCKER_TLS_VERIFY is set."""
    if not os.environ.get("DOCKER_TLS_VERIFY"):
        return None
    folder = pathlib.Path(os.environ.get("DOCKER_CERT_PATH") or pathlib.Path.home() / ".docker")
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def _json(response: aiohttp.ClientResponse) -> Any:
    data = await response.read()
    return json.loads(data) if data.strip() else None


async def _failure(response: aiohttp.ClientResponse) -> RuntimeFailure:
    return failure_of(response.status, await response.read())


def failure_of(status: int, data: bytes) -> RuntimeFailure:
    """What the engine refused, in its own words."""
    try:
        words = str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        words = data.decode(errors="replace")
    words = words.strip() or f"the engine answered {status}"
    meanings = [code for part, code in MEANINGS.items() if status == 500 and part in words]
    return RuntimeFailure(words, meanings[0] if meanings else CODES.get(status, StatusCode.UNKNOWN))
