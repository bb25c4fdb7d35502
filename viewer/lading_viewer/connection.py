"""The server that the viewer reads from, and one client per signed-in person."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from lading_client import Client

CLIENTS_MAX = 256
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Connection:
    """Where the server is, the certificates that may sign its own, and the folder for what was seen of its logs."""

    address: str
    ca: Path | None = None
    data: Path | None = None


class Clients:
    """Clients by token, so that a rerun of a page does not connect anew; those not used for longest go first."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, Client] = OrderedDict()

    def of(self, token: str) -> Client:
        with self._lock:
            client = self._clients.pop(token, None) or self.connect(token)
            self._clients[token] = client
            if len(self._clients) > CLIENTS_MAX:
                self._clients.popitem(last=False)[1].close()
            return client

    def forget(self, token: str) -> None:
        """The next call connects anew: at once, where gRPC would wait out its back-off."""
        with self._lock:
            if client := self._clients.pop(token, None):
                client.close()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            while self._clients:
                self._clients.popitem()[1].close()

    def connect(self, token: str) -> Client:
        """A client of one's own, to be closed."""
        connection = self.connection
        return Client(connection.address, token=token, ca=connection.ca, source="viewer", timeout=TIMEOUT_S)


_clients: Clients | None = None


def configure(connection: Connection) -> None:
    """Once per process, before the first page."""
    global _clients
    _clients = Clients(connection)


def clients() -> Clients:
    if _clients is None:
        raise RuntimeError("connection.configure was not called: start the viewer with `lading viewer run`")
    return _clients
