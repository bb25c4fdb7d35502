"""What an agent says when the engine dies under its hands."""

import asyncio
import json
import os
import pathlib
import signal
import time

import pytest

from lading.v1.agent_link_pb2 import ConnectRequest, Result
from lading.v1.commands_pb2 import COMMAND_STATE_FAILED, COMMAND_STATE_SUCCEEDED, ContainerSpec
from lading_agent.journal import Journal
from lading_agent.runtimes.docker import DockerRuntime
from lading_agent.witness import Witness
from lading_agent.worker import Worker
from tests.engine import engine_daemon
from tests.unit.agent.honest_log import AGENT, ORGANIZATION, HonestLog, command


@pytest.mark.engine
async def test_a_command_whose_engine_was_killed_is_settled_by_what_the_new_one_shows(tmp_path: pathlib.Path) -> None:
    with engine_daemon() as engine:
        runtime = DockerRuntime(engine.url)
        await runtime.open()
        script = ["sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"]
        await runtime.create("web", ContainerSpec(image=engine.image, command=script, network="none"))
        await runtime.start((await runtime.get("web")).id)
        journal = Journal(tmp_path)
        await journal.open()
        witness, log = Witness(ORGANIZATION, AGENT, journal), HonestLog()
        await witness.open()
        worker = Worker(witness, runtime, journal)
        sent: asyncio.Queue[ConnectRequest] = asyncio.Queue()
        worker.send = sent.put_nowait
        since_ns = time.time_ns()

        stop = command("stop")
        stop.arguments.grace.FromSeconds(600)
        await worker.receive(log.dispatch(stop, witness.size))
        async for event in runtime.events(since_ns):
            if event.action == "kill":
                break
        pid = json.loads(engine.request("GET", "/containers/web/json"))["State"]["Pid"]
        os.kill(engine.pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(engine.wait)
        start = command("start")
        await worker.receive(log.dispatch(start, witness.size))
        await asyncio.to_thread(engine.start)

        results: dict[str, Result] = {}
        while len(results) < 2:
            frame = await sent.get()
            if frame.HasField("result"):
                results[frame.result.command] = frame.result
        # The process ended meanwhile, and the engine that came back says when.
        assert results[stop.command].state == COMMAND_STATE_SUCCEEDED
        assert "FinishedAt" in results[stop.command].evidence
        assert results[start.command].state in (COMMAND_STATE_SUCCEEDED, COMMAND_STATE_FAILED)
        await worker.close()
        await journal.close()
        await runtime.close()
