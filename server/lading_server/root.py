"""The composition root: the one place that knows every part of a server, starts them in order, and stops them so that
nothing that was answered is lost."""

import asyncio
import contextlib
import functools
import logging
import pathlib
import signal
from collections.abc import Iterable
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lading.v1 import (
    access_pb2_grpc,
    agent_link_pb2_grpc,
    agents_pb2_grpc,
    audit_log_pb2_grpc,
    commands_pb2_grpc,
    containers_pb2_grpc,
    replicas_pb2_grpc,
    rollouts_pb2_grpc,
)
from lading_server import errors, signer, tokens
from lading_server.admission import Bucket
from lading_server.boots import Boot
from lading_server.clock import new_id, now
from lading_server.conductor import Conductor
from lading_server.dispatch import Dispatcher
from lading_server.identity import Identity, verifier_of
from lading_server.interceptors import repeats
from lading_server.interceptors.audit import Audit
from lading_server.interceptors.methods import methods_of
from lading_server.ledger import counts
from lading_server.ledger.checkpoints import Checkpoints
from lading_server.ledger.ledger import Ledger
from lading_server.relay import Relays
from lading_server.services.access import Access
from lading_server.services.agent_link import AgentLink
from lading_server.services.agents import Agents
from lading_server.services.audit_log import AuditLog
from lading_server.services.commands import Commands
from lading_server.services.containers import Containers
from lading_server.services.neighbours import Neighbours
from lading_server.services.openings import Openings
from lading_server.services.replicas import Replicas
from lading_server.services.resources import Frames, cancel_of, seal
from lading_server.services.rollouts import Rollouts, work_of
from lading_server.sessions import Sessions
from lading_server.settings import Settings, is_loopback, write_port
from lading_server.store import agents
from lading_server.store.database import open_engine
from lading_server.store.reader import Reader
from lading_server.store.tiles import Cache
from lading_server.store.wakeups import Topic, Wakeups
from lading_server.takeover import Takeover
from lading_server.tuning import tune_collector, tune_polling

log = logging.getLogger(__name__)

RECENT_MICROSECONDS = 600_000_000
"""Agents that were heard in the last ten minutes are expected back."""
STOP_SECONDS = 10.0
"""Calls that run get this long to end when the server stops."""
TAKEOVER_PAUSE_SECONDS = 0.5
"""Each look reads all agents of this process."""

SERVICES = (
    "lading.v1.AgentLink",
    "lading.v1.Containers",
    "lading.v1.Commands",
    "lading.v1.Rollouts",
    "lading.v1.Agents",
    "lading.v1.AuditLog",
    "lading.v1.Access",
)
PRIVATE = ("lading.v1.Replicas",)
OTHERS = ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")

OPTIONS = (
    # Above our own limit, so that what is too large is refused, and recorded, by us.
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_metadata_size", 32 * 1024),
    # Core's queue of calls that wait to be served: at its defaults a storm of reconnecting agents loses half of them,
    # unseen by any audit.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.server_max_unrequested_time_in_server", 120),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class CannotListen(errors.Error):
    """The server cannot listen on its address."""


class Server:
    """One server process: `start`, serve, `stop`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tasks: list[asyncio.Task[Any]] = []
        self._ending = contextlib.AsyncExitStack()
        """Ends what was begun, in the other order: no event comes after that of the stop."""
        self.address = ""
        """HOST:PORT it listens on, once started."""

    async def start(self) -> None:
        """Serve. Raises what `tokens.load_key` and `signer.load` raise, RolledBack, MissingRule, and CannotListen."""
        try:
            await self._start()
        except BaseException:
            await self._ending.aclose()
            raise

    async def _start(self) -> None:
        settings = self._settings
        key = tokens.load_key(settings.data)
        cache, log_signer = Cache(), signer.load(settings.data)
        engine = open_engine(settings.database_url)
        self._ending.callback(engine.dispose)
        self._reader = Reader(engine)
        self._ending.push_async_callback(asyncio.to_thread, self._reader.close)
        self._ledger = Ledger(engine, log_signer, boot_id=new_id(), cache=cache)
        self._ledger.start()
        self._ending.push_async_callback(self._ledger.close)
        await self._check_logs(log_signer)
        self._identity = Identity(verifier_of(settings, key), self._reader, development=settings.development)
        self._ledger.on_commit(self._identity.committed)
        sessions, relays = Sessions(), Relays()
        self._wakeups = wakeups = Wakeups(engine)
        dispatcher = Dispatcher(
            self._ledger, self._reader, sessions, seal, Frames(log_signer).show, cancel_of, tell=wakeups.send
        )
        takeover = Takeover(self._reader, sessions, self._ledger.boot_id)
        self._identity.changed = functools.partial(wakeups.send, Topic.ACCESS)
        sessions.expected = await self._reader.read(agents.count_seen, now() - RECENT_MICROSECONDS)
        neighbours = Neighbours(self._reader, self._ledger.boot_id, key, settings)
        self._ending.push_async_callback(neighbours.close)
        self._agent_link = AgentLink(
            self._ledger,
            dispatcher,
            sessions,
            relays,
            log_signer,
            neighbours,
            stream_seconds=settings.stream_seconds,
            connects_per_second=settings.connects_per_second,
        )
        self._audit = self._make_audit()
        self._grpc = grpc.aio.server(
            interceptors=(self._audit,), options=(*OPTIONS, ("grpc.so_reuseport", int(settings.worker > 0)))
        )
        agent_link_pb2_grpc.add_AgentLinkServicer_to_server(self._agent_link, self._grpc)
        containers_pb2_grpc.add_ContainersServicer_to_server(
            Containers(
                dispatcher,
                self._reader,
                Openings(sessions, relays, neighbours),
                record_exec_bytes=settings.record_exec_bytes,
            ),
            self._grpc,
        )
        commands_pb2_grpc.add_CommandsServicer_to_server(Commands(dispatcher, self._reader, sessions), self._grpc)
        conductor = Conductor(self._ledger, self._reader, dispatcher, sessions, work_of)
        rollouts_pb2_grpc.add_RolloutsServicer_to_server(Rollouts(self._reader, sessions, conductor), self._grpc)
        agents_pb2_grpc.add_AgentsServicer_to_server(Agents(self._reader, sessions, tell=wakeups.send), self._grpc)
        audit_log_pb2_grpc.add_AuditLogServicer_to_server(
            AuditLog(self._reader, self._ledger, log_signer, cache), self._grpc
        )
        access_pb2_grpc.add_AccessServicer_to_server(
            Access(self._reader, self._identity, key, settings.audience), self._grpc
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection((*SERVICES, *OTHERS), self._grpc)
        await self._identity.start()
        self._ending.push_async_callback(self._identity.close)
        self.address = self._listen(self._grpc, settings.listen)
        # Never by the main address: what the processes ask of each other is nobody else's business.
        self._private_audit = Audit(self._ledger, self._identity, methods_of(PRIVATE))
        self._private = grpc.aio.server(
            interceptors=(self._private_audit,), options=(*OPTIONS, ("grpc.so_reuseport", 0))
        )
        replicas_pb2_grpc.add_ReplicasServicer_to_server(Replicas(sessions, relays), self._private)
        alone = engine.dialect.name == "sqlite"
        private = "" if alone else self._listen(self._private, settings.replica_address)
        checkpoints = Checkpoints(self._ledger)
        self._ending.push_async_callback(checkpoints.sign)
        self._ending.push_async_callback(self._agent_link.cosignatures.write)
        boot = Boot(self._ledger, self._reader, alone=alone, address=private)
        await boot.begin()
        self._ending.push_async_callback(boot.end)
        await self._private.start()
        await self._grpc.start()
        wakeups.on(Topic.COMMANDS, dispatcher.look_for_work)
        wakeups.on(Topic.ENDS, dispatcher.look_for_ends)
        wakeups.on(Topic.ACCESS, self._identity.look)
        wakeups.on(Topic.AGENTS, takeover.hear, TAKEOVER_PAUSE_SECONDS)
        wakeups.start()
        self._ending.push_async_callback(wakeups.close)
        self._tasks = [
            asyncio.create_task(wakeups.hear()),
            asyncio.create_task(takeover.keep()),
            asyncio.create_task(boot.keep()),
            asyncio.create_task(checkpoints.keep()),
            asyncio.create_task(dispatcher.sweep()),
            asyncio.create_task(conductor.run()),
            asyncio.create_task(self._audit.watch()),
            asyncio.create_task(self._agent_link.upkeep.show_growth()),
            asyncio.create_task(self._agent_link.upkeep.go_round()),
            asyncio.create_task(self._agent_link.leases.keep()),
            asyncio.create_task(self._agent_link.cosignatures.keep()),
            asyncio.create_task(counts.keep(self._ledger, self._reader)),
            asyncio.create_task(repeats.forget(self._ledger)),
        ]
        await self._tell_health(health_pb2.HealthCheckResponse.SERVING)

    async def _check_logs(self, log_signer: signer.Signer) -> None:
        """Raise RolledBack when logs do not extend what was signed of them: then nothing is served."""
        behind = []
        for organization in log_signer.organizations():
            try:
                await self._ledger.commit((organization,), lambda _transaction: None)
            except signer.RolledBack as failure:
                behind.append(failure.message)
        if behind:
            raise signer.RolledBack("\n".join(behind), code=errors.Code.FAILED_PRECONDITION)

    def _make_audit(self) -> Audit:
        bucket = Bucket(self._settings.connects_per_second, self._settings.connects_burst)
        return Audit(self._ledger, self._identity, methods_of((*SERVICES, *OTHERS)), bucket=bucket)

    def _listen(self, server: Any, address: str) -> str:
        settings = self._settings
        host = address.rpartition(":")[0]
        private = server is not self._grpc and is_loopback(host)
        try:
            if settings.tls_cert is None or settings.tls_key is None or private:
                port = server.add_insecure_port(address)
            else:
                pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
                port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except (RuntimeError, OSError) as failure:
            raise CannotListen(
                f"cannot listen on {address}: is it taken, or are the TLS files no PEM pair? ({failure})"
            ) from failure
        return f"{host}:{port}"

    async def _tell_health(self, state: Any) -> None:
        for service in ("", *SERVICES):
            await self._health.set(service, state)

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Let agents drain and calls end for at most `seconds`, then cut the rest off, and commit every record."""
        await self._tell_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._agent_link.drain("the server stops")
        self._audit.stop_in(seconds)
        self._private_audit.stop_in(seconds)
        await asyncio.gather(self._grpc.stop(seconds), self._private.stop(seconds))
        await asyncio.gather(self._audit.drained(), self._private_audit.drained())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._ending.aclose()


def run(settings: Settings, port_file: pathlib.Path | None) -> int:
    """Serve until SIGTERM or SIGINT; a second one stops at once. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("alembic", "grpc", "sqlalchemy"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return uvloop.run(_serve(settings, port_file))


async def _serve(settings: Settings, port_file: pathlib.Path | None) -> int:
    tune_polling()
    server = Server(settings)
    await server.start()
    tune_collector()
    log.info("serving on %s, database %s", server.address, settings.database_url.rpartition("@")[2])
    if port_file is not None:
        write_port(port_file, server.address)
    if settings.worker:
        print(server.address, flush=True)  # to the parent
    await _signal((signal.SIGTERM, signal.SIGINT), orphaned=settings.worker > 0)
    log.info("stopping: calls that run have %.0f s to end; a second signal stops at once", STOP_SECONDS)
    stopping = asyncio.create_task(server.stop())
    again = asyncio.create_task(_signal((signal.SIGTERM, signal.SIGINT)))
    await asyncio.wait((stopping, again), return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        return 130
    again.cancel()
    await stopping
    log.info("stopped")
    return 0


async def _signal(signals: Iterable[signal.Signals], *, orphaned: bool = False) -> None:
    """Wait for one of them, or for the end of standard input where that says that the parent is gone."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    for one in signals:
        loop.add_signal_handler(one, came.set)
    if orphaned:
        loop.add_reader(0, came.set)
    await came.wait()
    if orphaned:
        loop.remove_reader(0)
