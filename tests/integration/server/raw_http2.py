"""A gRPC client by hand, on HTTP/2 frames: for what no library would send."""

import asyncio
import struct
from collections.abc import Sequence

import h2.config
import h2.connection
import h2.errors
import h2.events


class Connection:
    """One connection to 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))

    async def __aenter__(self) -> "Connection":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._http.initiate_connection()
        await self._flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drop()

    async def begin(self, path: str | bytes, metadata: Sequence[tuple[str, str]] = ()) -> int:
        """Send the headers of a call; returns its stream. `path`: of bytes where it is to be no text."""
        stream = self._http.get_next_available_stream_id()
        headers: list[tuple[str, str | bytes]] = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", f"127.0.0.1:{self._port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata,
        ]
        self._http.send_headers(stream, headers)
        await self._flush()
        return stream

    async def send(self, stream: int, message: bytes, *, last: bool = False) -> None:
        """Send one message."""
        self._http.send_data(stream, b"\0" + struct.pack(">I", len(message)) + message, end_stream=last)
        await self._flush()

    async def half_close(self, stream: int) -> None:
        """Say that no message comes any more."""
        self._http.end_stream(stream)
        await self._flush()

    async def reset(self, stream: int) -> None:
        """Give the call up."""
        self._http.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        await self._flush()

    async def drop(self) -> None:
        """Close the connection without a word."""
        self._writer.close()
        await self._writer.wait_closed()

    async def status(self, stream: int) -> tuple[int, str]:
        """grpc-status and grpc-message of the call."""
        found: dict[str, str] = {}
        async with asyncio.timeout(30):
            while data := await self._reader.read(65_536):
                ended = False
                for event in self._http.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                        if event.stream_id == stream:
                            found |= {str(key): str(value) for key, value in event.headers or ()}
                    elif isinstance(event, h2.events.DataReceived):
                        self._http.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                        ended = ended or event.stream_id == stream
                await self._flush()
                if ended:
                    break
        return int(found.get("grpc-status", "-1")), found.get("grpc-message", "")

    async def _flush(self) -> None:
        self._writer.write(self._http.data_to_send())
        await self._writer.drain()
