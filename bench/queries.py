"""What the first page and a summary of 30 days cost on a log of a million events."""

import asyncio
import pathlib
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import sqlalchemy as sa

from bench import burst, events, machine, report
from bench.program import started
from lading.v1 import audit_log_pb2, audit_log_pb2_grpc
from lading_server import bootstrap, signer
from lading_server import call as calls
from lading_server.call import Call
from lading_server.clock import new_id, now
from lading_server.ledger.ledger import Ledger
from lading_server.services.audit_log import AuditLog
from lading_server.settings import Settings
from lading_server.store.database import migrate, open_engine
from lading_server.store.reader import Reader
from lading_server.store.tiles import Cache
from tests.postgres import Cluster

TITLE = report.TITLES[3]
EVENTS, EVENTS_QUICK = 1_000_000, 30_000
ASKED, ASKED_QUICK = 200, 50
WARM = 5
P95_MS_MAX = 50
ORGANIZATION = "acme"
LIST, SUMMARIZE = QUERIES = ("ListEvents, first page", "SummarizeEvents, 30 days")

Ask = Callable[[str, Any], Awaitable[Any]]


def run(folder: pathlib.Path, cluster: Cluster, *, quick: bool) -> None:
    """Measure, and keep the section."""
    load_before = machine.load()
    count, asked = (EVENTS_QUICK, ASKED_QUICK) if quick else (EVENTS, ASKED)
    rows, lines = [], []
    for name, database in (("SQLite", ""), ("PostgreSQL", cluster.fresh_database())):
        settings = Settings(folder / name.lower(), database=database)
        token = prepare(settings, count)
        with machine.pinned(machine.SERVER_CORE):
            served = asyncio.run(in_server(settings, asked))
        for where, measured in (
            ("in the server", served),
            ("by gRPC", asyncio.run(by_grpc(settings, token, asked))),
        ):
            for query in QUERIES:
                times = measured[query]
                p95 = burst.percentile(times, 0.95)
                rows.append([query, name, where, f"{statistics.median(times):.1f}", f"{p95:.1f}"])
                if where == "in the server":
                    lines.append(report.verdict(f"{query}, {name}, p95 ms", p95, P95_MS_MAX, at_most=True, digits=1))
    table = report.table(["query", "database", "where", "p50 ms", "p95 ms"], rows)
    said = f"{count:,} events over 30 days, each query {asked} times.\n{EXPLANATION}"
    report.keep(TITLE, "\n\n".join([said, table, "\n".join(lines)]), load_before, quick=quick)


EXPLANATION = """\
In the server is from the request message to the reply message, thread and pool included; by gRPC is what one caller
sees, its own audit event included. A page has 100 events."""


def prepare(settings: Settings, count: int) -> str:
    """A database with a full log; returns a token of its admin."""
    settings.data.mkdir(parents=True)
    engine = open_engine(settings.database_url)
    migrate(engine)
    events.fill(engine, ORGANIZATION, count)
    engine.dispose()
    return bootstrap.initialize(settings, ORGANIZATION, "ada", "", 24 * 3600)


def requests() -> dict[str, Any]:
    """A request of each query, as of now."""
    asked = audit_log_pb2.SummarizeEventsRequest()
    asked.filter.since.FromMicroseconds(now() - events.DAYS * events.DAY)
    return {LIST: audit_log_pb2.ListEventsRequest(), SUMMARIZE: asked}


async def repeat(ask: Ask, times: int) -> dict[str, list[float]]:
    """Milliseconds of each answer, by query."""
    measured: dict[str, list[float]] = {query: [] for query in QUERIES}
    for number in range(-WARM, times):
        for query, request in requests().items():
            began = time.perf_counter()
            reply = await ask(query, request)
            if number >= 0:
                measured[query].append((time.perf_counter() - began) * 1000)
            if not (reply.events if query == LIST else reply.total):
                raise RuntimeError(f"{query} found nothing")
    return measured


async def in_server(settings: Settings, times: int) -> dict[str, list[float]]:
    """By the service itself."""
    engine: sa.Engine = open_engine(settings.database_url)
    reader = Reader(engine)
    log_signer, cache = signer.load(settings.data), Cache()
    service = AuditLog(reader, Ledger(engine, log_signer, boot_id=new_id()), log_signer, cache)
    calls.enter(Call(new_id(), "", now(), organization=ORGANIZATION))
    methods: dict[str, Any] = {LIST: service.ListEvents, SUMMARIZE: service.SummarizeEvents}
    measured = await repeat(lambda query, request: methods[query](request, None), times)
    reader.close()
    engine.dispose()
    return measured


async def by_grpc(settings: Settings, token: str, times: int) -> dict[str, list[float]]:
    """By a server and a client."""
    with started("bench.server", "audited", str(settings.data), settings.database) as server:
        metadata = (("authorization", f"Bearer {token}"),)
        async with grpc.aio.insecure_channel(server.read_line()) as channel:
            stub: Any = audit_log_pb2_grpc.AuditLogStub(channel)
            methods = {LIST: stub.ListEvents, SUMMARIZE: stub.SummarizeEvents}
            return await repeat(lambda query, request: methods[query](request, metadata=metadata, timeout=20), times)
