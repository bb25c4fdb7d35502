"""Program: a Lading server as the bench wants it, composed of the product's own parts.

`python -m bench.server KIND DATA [DATABASE [CERTIFICATE KEY]]`. Kinds: `audited` is the server as it is; `unaudited`
has the same chain, and records nothing; `unwritten` makes every event and writes none; `pool` and `engine` write them
the naive ways; `treeless` writes them without entries and without a tree; `busy` is as it is, and its event loop stands
still for BUSY_SECONDS after SIGUSR1.
"""

import asyncio
import pathlib
import signal
import sys
import time
from typing import Any

import uvloop

from bench.ledgers import EngineLedger, NaiveLedger, NoLedger, PoolLedger, fell
from lading_server.interceptors.audit import Audit
from lading_server.interceptors.methods import methods_of
from lading_server.ledger.ledger import Ledger
from lading_server.root import OTHERS, SERVICES, Server
from lading_server.settings import Settings
from lading_server.tuning import tune_collector, tune_polling

BUSY_SECONDS = 6.0


class Unaudited(Audit):
    """Ends every call as the audit does, and says nothing of it to anybody."""

    async def _record(self, call: Any, *_: Any, **__: Any) -> None:
        call.recorded = True


class Compared(Server):
    """The server with another audit, or with another ledger behind it."""

    def __init__(self, settings: Settings, kind: type[Audit], ledger: Ledger | None) -> None:
        super().__init__(settings)
        self._kind, self._other = kind, ledger

    def _make_audit(self) -> Audit:
        return self._kind(self._other or self._ledger, self._identity, methods_of((*SERVICES, *OTHERS)))

    async def start(self) -> None:
        await super().start()
        if isinstance(self._other, NaiveLedger):
            await self._other.open()


def compose(kind: str, settings: Settings) -> Server:
    """The server of that kind, not started."""
    if kind == "unaudited":
        return Compared(settings, Unaudited, None)
    if kind == "unwritten":
        return Compared(settings, Audit, NoLedger())
    if kind == "pool":
        return Compared(settings, Audit, PoolLedger(settings.database_url))
    if kind == "engine":
        return Compared(settings, Audit, EngineLedger(settings.database_url))
    return Server(settings)


async def serve(kind: str, settings: Settings) -> None:
    """Until SIGTERM."""
    tune_polling()
    server = compose(kind, settings)
    await server.start()
    if kind == "treeless":
        fell(server._ledger)
    tune_collector()
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    if kind == "busy":
        loop.add_signal_handler(signal.SIGUSR1, time.sleep, BUSY_SECONDS)
    print(server.address, flush=True)
    await end.wait()
    await server.stop(1.0)


def main(kind: str, data: str, database: str = "", *tls: str) -> None:
    certificate, key = (pathlib.Path(file) for file in tls) if tls else (None, None)
    settings = Settings(pathlib.Path(data), "127.0.0.1:0", database, tls_cert=certificate, tls_key=key)
    uvloop.run(serve(kind, settings))


if __name__ == "__main__":
    main(*sys.argv[1:])
