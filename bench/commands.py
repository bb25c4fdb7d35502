"""What a lifecycle command costs through Lading, recorded and proven durable on its way, over the engine's own API."""

import asyncio
import itertools
import pathlib
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import aiodocker
import grpc
from google.protobuf.duration_pb2 import Duration

from bench import burst, machine, report
from lading.v1 import commands_pb2, containers_pb2, containers_pb2_grpc
from tests.engine import Engine, engine_daemon, reason_without_engine
from tests.stack import Stack

TITLE = report.TITLES[1]
ROUNDS, ROUNDS_QUICK = 30, 4
SEED = 1
RATIO_MAX = 1.10
AGENT = "dock-1"
COMMAND = ["sleep", "1000"]
VERBS = ("create", "start", "pause", "unpause", "restart", "stop", "remove")
CALL_SECONDS = 60.0

Step = Callable[[], Awaitable[object]]
Times = dict[str, list[float]]
"""Milliseconds of each call, by verb, in the order of the rounds."""
PARTS = ("asked to intent", "to journalled by the agent", "to end at the server", "to answered")


def run(folder: pathlib.Path, *, quick: bool) -> None:
    """Measure, and keep the section."""
    if reason := reason_without_engine():
        raise RuntimeError(reason)
    load_before = machine.load()
    with engine_daemon() as engine, Stack(folder) as stack:
        stack.start_server()
        stack.start_agent(AGENT, docker_host=engine.url)
        ours, engines, parts = asyncio.run(compare(stack, engine, ROUNDS_QUICK if quick else ROUNDS))
    report.keep(TITLE, describe(ours, engines, parts), load_before, quick=quick)


async def compare(stack: Stack, engine: Engine, rounds: int) -> tuple[Times, Times, dict[str, list[list[float]]]]:
    """Whole lives of containers, through Lading and on the engine itself, in random order; and PARTS of ours."""
    ours: Times = defaultdict(list)
    engines: Times = defaultdict(list)
    parts: dict[str, list[list[float]]] = defaultdict(list)
    order = random.Random(SEED)
    async with grpc.aio.insecure_channel(stack.address) as channel, aiodocker.Docker(url=engine.url) as docker:
        stub = containers_pb2_grpc.ContainersStub(channel)
        credentials = stack.credentials()
        for number in range(-1, rounds):  # the first one warms up
            ways = [
                (ours, through_lading(stub, credentials, f"lading-{number + 1}", engine.image)),
                (engines, on_engine(docker, f"engine-{number + 1}", engine.image)),
            ]
            for times, steps in order.sample(ways, 2):
                for verb in VERBS:
                    began = time.time()
                    reply = await steps[verb]()
                    ended = time.time()
                    if number >= 0:
                        times[verb].append((ended - began) * 1000)
                        if isinstance(reply, commands_pb2.Command):
                            parts[verb].append(part(began, reply, ended))
    return ours, engines, parts


def part(began: float, command: commands_pb2.Command, ended: float) -> list[float]:
    """Milliseconds between the times that a command tells: all are of this machine's clock."""
    stamps = (command.created_at, command.acknowledged_at, command.settled_at)
    times = [began, *(stamp.ToMicroseconds() / 1e6 for stamp in stamps), ended]
    return [(later - earlier) * 1000 for earlier, later in itertools.pairwise(times)]


def through_lading(
    stub: "containers_pb2_grpc.ContainersAsyncStub", credentials: tuple[tuple[str, str]], name: str, image: str
) -> dict[str, Step]:
    """The steps of a container's life, as a service asks for them."""
    pb = containers_pb2
    full = f"agents/{AGENT}/containers/{name}"
    at_once = Duration()
    spec = commands_pb2.ContainerSpec(image=image, command=COMMAND, network="none")
    asks: dict[str, tuple[Any, Any]] = {
        "create": (stub.CreateContainer, pb.CreateContainerRequest(name=full, spec=spec)),
        "start": (stub.StartContainer, pb.StartContainerRequest(name=full)),
        "pause": (stub.PauseContainer, pb.PauseContainerRequest(name=full)),
        "unpause": (stub.UnpauseContainer, pb.UnpauseContainerRequest(name=full)),
        "restart": (stub.RestartContainer, pb.RestartContainerRequest(name=full, grace=at_once)),
        "stop": (stub.StopContainer, pb.StopContainerRequest(name=full, grace=at_once)),
        "remove": (stub.RemoveContainer, pb.RemoveContainerRequest(name=full)),
    }

    def step(verb: str) -> Step:
        method, request = asks[verb]
        request.reason = "bench"
        return lambda: method(request, metadata=credentials, timeout=CALL_SECONDS)

    return {verb: step(verb) for verb in asks}


def on_engine(docker: aiodocker.Docker, name: str, image: str) -> dict[str, Step]:
    """The same steps, asked of the engine."""
    container = docker.containers.container(name)
    config: dict[str, Any] = {
        "Image": image,
        "Cmd": COMMAND,
        "HostConfig": {"NetworkMode": "none", "RestartPolicy": {"Name": "no"}},
    }
    return {
        "create": lambda: docker.containers.create(config, name=name),
        "start": container.start,
        "pause": container.pause,
        "unpause": container.unpause,
        "restart": lambda: container.restart(t=0),
        "stop": lambda: container.stop(t=0),
        "remove": container.delete,
    }


def describe(ours: Times, engines: Times, parts: dict[str, list[list[float]]]) -> str:
    """The tables, by verb and for the whole life."""
    for times in (ours, engines):
        times["whole life"] = [sum(life) for life in zip(*(times[verb] for verb in VERBS), strict=True)]
    rows, lines = [], []
    for verb in (*VERBS, "whole life"):
        one, other = statistics.median(ours[verb]), statistics.median(engines[verb])
        ratios = [mine / its for mine, its in zip(ours[verb], engines[verb], strict=True)]
        cells = [f"{one:.1f}", f"{other:.1f}", f"{one / other:.2f}", burst.spread(ratios), f"{one - other:.1f}"]
        rows.append([verb, *cells, f"{burst.percentile(ours[verb], 0.95):.1f}"])
        lines.append(report.verdict(f"{verb}: median over median", one / other, RATIO_MAX, at_most=True))
    head = ["verb", "Lading p50 ms", "engine p50 ms", "ratio", "by round", "added ms", "Lading p95 ms"]
    columns = {verb: zip(*parts[verb], strict=True) for verb in VERBS}
    where = [[verb, *(f"{statistics.median(column):.1f}" for column in columns[verb])] for verb in VERBS]
    return "\n\n".join(
        [EXPLANATION, report.table(head, rows), WHERE, report.table(["verb", *PARTS], where), "\n".join(lines)]
    )


EXPLANATION = """\
`StartContainer` and the others by gRPC, server on SQLite and agent on one machine, against the same calls on the
engine's API by aiodocker: the same engine (a dockerd of the bench's own), busybox, network none, t=0. Whole lives of
containers in random order. Through Lading each command is committed before it leaves, journalled before it acts, and
its end is on disk, in the agent's journal and in the log, before the caller has its answer."""


WHERE = """\
Where the time of a command goes, medians in ms. The second part holds the commit of the intent, its checkpoint, the
agent's proof of it, its look at the container and one write of its journal; the third the engine's work and the
journal's second write; the last the commit of the end and that of the call."""
