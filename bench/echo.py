"""Program: a bare grpc.aio server that answers one method with a message of the same size as ours: no interceptor, no
identity, no log. `python -m bench.echo PATH REPLY`, the reply in hexadecimal."""

import asyncio
import gc
import sys
from typing import Any

import grpc
import uvloop

from lading.v1 import access_pb2


async def serve(path: str, raw: bytes) -> None:
    """Until SIGTERM."""
    _, service, method = path.split("/")
    reply = access_pb2.WhoAmIResponse.FromString(raw)

    async def echo(_request: Any, _context: Any) -> Any:
        return reply

    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    handler = grpc.unary_unary_rpc_method_handler(
        echo, access_pb2.WhoAmIRequest.FromString, access_pb2.WhoAmIResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.collect()
    gc.freeze()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], bytes.fromhex(sys.argv[2])))
