"""A service of four methods, one of each kind, whose handlers end as the request tells them; behind the real audit."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2
from grpc.aio import EOF

from lading.v1 import options_pb2
from lading_server import errors, signer, tokens
from lading_server.call import Change
from lading_server.clock import new_id
from lading_server.identity import Identity, verifier_of
from lading_server.interceptors.audit import Audit
from lading_server.interceptors.methods import methods_of
from lading_server.ledger.ledger import Ledger
from lading_server.ledger.transaction import Transaction
from lading_server.root import OPTIONS
from lading_server.settings import Settings
from lading_server.store import database
from lading_server.store.reader import Reader
from tests.integration.server.running import Recorded, read_events
from tests.unit.server.messages import Field, field, register

SERVICE = "lading_test.endings.Endings"
KINDS = {"Unary": (False, False), "Lines": (False, True), "Sum": (True, False), "Talk": (True, True)}
"""Methods, and whether requests and responses are streams."""
MANY = 30_000


def method(name: str) -> descriptor_pb2.MethodDescriptorProto:
    requests, responses = KINDS[name]
    made = descriptor_pb2.MethodDescriptorProto(
        name=name,
        input_type=".lading_test.endings.Do",
        output_type=".lading_test.endings.Done",
        client_streaming=requests,
        server_streaming=responses,
    )
    made.options.Extensions[options_pb2.audit].CopyFrom(
        options_pb2.AuditRule(action=f"test.{name.lower()}", permission="container.read")
    )
    return made


MESSAGES = register(
    descriptor_pb2.FileDescriptorProto(
        name="lading_test/endings.proto",
        package="lading_test.endings",
        message_type=[
            descriptor_pb2.DescriptorProto(
                name="Do",
                field=[
                    field("how", 1, rule=options_pb2.FieldRule(format=options_pb2.FORMAT_ID)),
                    field("filler", 2, Field.TYPE_BYTES),
                ],
            ),
            descriptor_pb2.DescriptorProto(name="Done", field=[field("text", 1)]),
        ],
        service=[descriptor_pb2.ServiceDescriptorProto(name="Endings", method=[method(name) for name in KINDS])],
    )
)
Do: Any = MESSAGES["Do"]
Done: Any = MESSAGES["Done"]


class Handlers:
    """What each method does. `began` is set when a handler waits, or has sent its first message."""

    def __init__(self) -> None:
        self.began = asyncio.Event()

    async def act(self, how: str, context: Any) -> Any:
        """End as told; returns a reply where there is one."""
        match how:
            case "refuse":
                raise errors.NotFound("there is no such thing")
            case "abort":
                await context.abort(grpc.StatusCode.ABORTED, "somebody was faster")
            case "abort-ok":
                await context.abort(grpc.StatusCode.OK, "fine")
            case "swallow":
                with contextlib.suppress(Exception):
                    await context.abort(grpc.StatusCode.ABORTED, "somebody was faster")
            case "set-code":
                context.set_code(grpc.StatusCode.DATA_LOSS)
                context.set_details("half of it is gone")
            case "set-code-and-raise":
                context.set_code(grpc.StatusCode.DATA_LOSS)
                raise RuntimeError("password=hunter2")
            case "crash":
                raise RuntimeError("password=hunter2")
            case "cancelled":
                raise asyncio.CancelledError
            case "wrong":
                return "not a message"
            case "idle":
                self.began.set()
                await asyncio.Event().wait()
            case "spin":
                self.began.set()
                while True:  # noqa: ASYNC110 - it is to be busy
                    await asyncio.sleep(0)
        return Done(text=how)

    async def unary(self, request: Any, context: Any) -> Any:
        if request.how == "change":
            return Change(lambda _transaction: Done(text="changed"))
        if request.how == "change-refused":
            return Change(refuse)
        return await self.act(request.how, context)

    async def lines(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.how in ("late", "flood", "many"):
            async for message in self.messages(request.how):
                yield message
        else:
            reply = await self.act(request.how, context)
            if reply is not None:
                yield reply

    async def messages(self, how: str) -> AsyncIterator[Any]:
        if how == "many":
            for _ in range(MANY):
                yield Done(text="x")
            return
        yield Done(text="first")
        self.began.set()
        if how == "late":
            raise errors.NotFound("there is no more")
        while True:
            yield Done(text="x" * 1000)

    async def sum(self, requests: Any, context: Any) -> Any:
        first = await anext(requests)
        if first.how == "drain":
            self.began.set()
            async for _ in requests:
                pass
        return await self.act(first.how, context)

    async def talk(self, _requests: Any, context: Any) -> None:
        first = await context.read()
        if first is EOF:
            return
        if first.how in ("late", "flood", "many"):
            async for message in self.messages(first.how):
                await context.write(message)
            return
        if first.how == "drain":
            self.began.set()
            while await context.read() is not EOF:
                pass
        reply = await self.act(first.how, context)
        if reply is not None:
            await context.write(reply)


def refuse(transaction: Transaction) -> Any:
    raise errors.FailedPrecondition("not in this state")


class EndingsServer:
    """The service on a port of 127.0.0.1."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.handlers = Handlers()

    async def __aenter__(self) -> "EndingsServer":
        settings = self.settings
        self.engine = database.open_engine(settings.database_url)
        self.reader = Reader(self.engine)
        self.ledger = Ledger(self.engine, signer.load(settings.data), boot_id=new_id())
        self.ledger.start()
        self.identity = Identity(verifier_of(settings, tokens.load_key(settings.data)), self.reader)
        await self.identity.start()
        self.audit = Audit(self.ledger, self.identity, methods_of((SERVICE,)))
        self.server = grpc.aio.server(interceptors=(self.audit,), options=OPTIONS)
        self.server.add_generic_rpc_handlers((self._handlers(),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.stop(None)
        await self.identity.close()
        await self.ledger.close()
        self.reader.close()
        self.engine.dispose()

    async def stop(self, seconds: float | None) -> None:
        self.audit.stop_in(seconds or 0)
        await self.server.stop(seconds)
        await self.audit.drained()

    async def settled(self) -> None:
        """Wait until every call that came is over and recorded."""
        await self.audit.drained()
        await self.ledger.commit((), lambda _transaction: None)

    def connect(self) -> grpc.aio.Channel:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)

    def _handlers(self) -> grpc.GenericRpcHandler:
        make = {
            "Unary": grpc.unary_unary_rpc_method_handler,
            "Lines": grpc.unary_stream_rpc_method_handler,
            "Sum": grpc.stream_unary_rpc_method_handler,
            "Talk": grpc.stream_stream_rpc_method_handler,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: make[name](
                    getattr(self.handlers, name.lower()),
                    request_deserializer=Do.FromString,
                    response_serializer=Done.SerializeToString,
                )
                for name in KINDS
            },
        )

    def events(self) -> list[Recorded]:
        """Everything that was recorded since the database was born, in every log."""
        return [
            event
            for organization in ("acme", "globex", "system")
            for event in read_events(self.settings, organization)
            if event.actor != "lading-server"
        ]
