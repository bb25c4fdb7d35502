"""Program: callers that restart one container after another, each of another agent.

`python -m bench.callers ADDRESS TOKEN AGENTS SECONDS RATE`: RATE calls a second at even distances; 0: as many as can be
with IN_FLIGHT at once. No call waits for its command's end (detach). Says one line of JSON: calls, failures, seconds.
"""

import asyncio
import itertools
import json
import sys
import time
from typing import Any

import grpc.aio
import uvloop

from bench.null_agents import CONTAINER
from lading.v1 import containers_pb2, containers_pb2_grpc

IN_FLIGHT = 128
CHANNELS = 4
TIMEOUT_SECONDS = 30.0


async def call(address: str, token: str, agents: int, seconds: float, rate: float) -> dict[str, Any]:
    """What came of it."""
    channels = [grpc.aio.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),)) for _ in range(CHANNELS)]
    stubs: list[Any] = [containers_pb2_grpc.ContainersStub(channel) for channel in channels]
    who, numbers = (("authorization", f"Bearer {token}"),), itertools.count()
    failures: dict[str, int] = {}
    done = 0
    begin = time.monotonic()

    async def one() -> None:
        nonlocal done
        number = next(numbers)
        name = f"agents/agent-{number % agents}/containers/{CONTAINER}"
        request = containers_pb2.RestartContainerRequest(name=name, detach=True, reason="bench")
        try:
            await stubs[number % CHANNELS].RestartContainer(request, metadata=who, timeout=TIMEOUT_SECONDS)
            done += 1
        except grpc.aio.AioRpcError as error:
            words = f"{error.code().name}: {error.details()}"
            failures[words] = failures.get(words, 0) + 1

    async def keep_calling() -> None:
        while time.monotonic() - begin < seconds:
            await one()

    if rate:
        async with asyncio.TaskGroup() as group:
            for number in range(int(seconds * rate)):
                await asyncio.sleep(begin + number / rate - time.monotonic())
                group.create_task(one())
    else:
        await asyncio.gather(*(keep_calling() for _ in range(IN_FLIGHT)))
    return {"calls": done, "failures": failures, "seconds": time.monotonic() - begin}


def main(address: str, token: str, agents: str, seconds: str, rate: str) -> None:
    print(json.dumps(uvloop.run(call(address, token, int(agents), float(seconds), float(rate)))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
