"""What the server is told at its start, checked before anything is touched."""

import ipaddress
import pathlib
from dataclasses import dataclass

from lading_server import admission, errors

LISTEN = "127.0.0.1:7443"
REPLICA_LISTEN = "127.0.0.1:0"
DATA = "lading-data"
ISSUER = "lading"
"""Issuer of the tokens that the server signs itself."""
AUDIENCE = "lading"
RECORD_EXEC_BYTES_MAX = 32_768
STREAM_SECONDS = 3600.0


class InvalidSettings(errors.Error):
    """The settings are not valid."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How one server runs.

    `database`: URL; empty for the embedded one in `data`. `development`: believe the headers `x-dev-user-*` of
    callers on this machine. `issuer`: another issuer whose tokens are accepted, by the keys in `data`/trusted-keys.
    `replica_listen`: where the other processes of the same database reach this one; empty is a port of this machine.
    `worker`: number of this process among several on one address; 0 when it is alone there.
    `connects_per_second`, `connects_burst`: how fast agents are let in. `stream_seconds`: how long the stream of one
    lives, give or take a tenth, before it is asked to connect anew. `record_exec_bytes`: so much of what the program
    of an exec session writes goes into its record.
    """

    data: pathlib.Path
    listen: str = LISTEN
    database: str = ""
    tls_cert: pathlib.Path | None = None
    tls_key: pathlib.Path | None = None
    development: bool = False
    issuer: str = ""
    audience: str = AUDIENCE
    replica_listen: str = ""
    worker: int = 0
    connects_per_second: float = admission.PER_SECOND
    connects_burst: int = admission.BURST
    stream_seconds: float = STREAM_SECONDS
    record_exec_bytes: int = 0

    @property
    def database_url(self) -> str:
        """URL of the database, the embedded one where none is named."""
        return self.database or f"sqlite:///{self.data / 'lading.db'}"

    @property
    def replica_address(self) -> str:
        """HOST:PORT to listen on for the other processes of this database."""
        return self.replica_listen or REPLICA_LISTEN

    @property
    def trusted_keys(self) -> pathlib.Path:
        """Folder of the public keys of `issuer`, as *.pem."""
        return self.data / "trusted-keys"

    @property
    def tls(self) -> bool:
        """Whether the server speaks TLS."""
        return self.tls_cert is not None

    def check(self) -> None:
        """Raise InvalidSettings, with a sentence that says what to change."""
        host = host_of("--listen", self.listen)
        replica_host = host_of("--replica-listen", self.replica_address)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidSettings("--tls-cert and --tls-key go together: give both or none")
        for option, file in (("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key)):
            if file is not None and not file.is_file():
                raise InvalidSettings(f"{option} {file}: there is no such file")
        if not self.tls and not is_loopback(host):
            raise InvalidSettings(
                f"{host} is not this machine alone, and the server speaks without TLS only on the machine itself: "
                "give --tls-cert FILE and --tls-key FILE, or listen on 127.0.0.1"
            )
        if replica_host in ("0.0.0.0", "[::]"):
            raise InvalidSettings("--replica-listen must be an address by which the others reach this server")
        if not self.tls and not is_loopback(replica_host):
            raise InvalidSettings(
                f"--replica-listen {replica_host} is not this machine alone: give --tls-cert FILE and --tls-key FILE"
            )
        if self.development and not is_loopback(host):
            raise InvalidSettings("--dev-identity is for this machine alone: listen on 127.0.0.1")
        if self.database and not self.database.startswith(("sqlite:///", "postgresql://")):
            raise InvalidSettings("--database must be sqlite:///FILE or postgresql://USER@HOST/NAME")
        if self.connects_per_second <= 0 or self.connects_burst < 1 or self.stream_seconds <= 0:
            raise InvalidSettings("--connects-per-second, --connects-burst and --stream-lifetime must be above 0")
        if not 0 <= self.record_exec_bytes <= RECORD_EXEC_BYTES_MAX:
            raise InvalidSettings(f"--record-exec-bytes must be 0 to {RECORD_EXEC_BYTES_MAX}")
        if not self.audience:
            raise InvalidSettings("--audience must not be empty")
        if self.issuer == ISSUER:
            raise InvalidSettings(f"--issuer names another issuer: {ISSUER} is this server itself")
        if self.issuer and not any(self.trusted_keys.glob("*.pem")):
            raise InvalidSettings(f"--issuer {self.issuer}: put its public keys into {self.trusted_keys}, as *.pem")


def host_of(option: str, address: str) -> str:
    """The host of HOST:PORT. Raises InvalidSettings."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise InvalidSettings(f"{option} must be HOST:PORT, as in {LISTEN}, not {address!r}")
    return host


def write_port(file: pathlib.Path, address: str) -> None:
    """Write where a server serves, at once or not at all."""
    pending = file.with_name(file.name + ".new")
    pending.write_text(address + "\n")
    pending.replace(file)


def is_loopback(host: str) -> bool:
    """Whether an address, or the name `localhost`, stays on this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or (mapped is not None and mapped.is_loopback)
