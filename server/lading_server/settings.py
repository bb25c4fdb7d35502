"""What the server is told at its start, checked before anything is touched."""

import ipaddress
import pathlib
from dataclasses import dataclass

from lading_server import errors

LISTEN = "127.0.0.1:7443"
DATA = "lading-data"
ISSUER = "lading"
"""Issuer of the tokens that the server signs itself."""
AUDIENCE = "lading"


class InvalidSettings(errors.Error):
    """The settings are not valid."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How one server runs.

    `database`: URL; empty for the embedded one in `data`. `development`: believe the headers `x-dev-user-*` of
    callers on this machine. `issuer`: another issuer whose tokens are accepted, by the keys in `data`/trusted-keys.
    """

    data: pathlib.Path
    listen: str = LISTEN
    database: str = ""
    tls_cert: pathlib.Path | None = None
    tls_key: pathlib.Path | None = None
    development: bool = False
    issuer: str = ""
    audience: str = AUDIENCE

    @property
    def database_url(self) -> str:
        """URL of the database, the embedded one where none is named."""
        return self.database or f"sqlite:///{self.data / 'lading.db'}"

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
        host, separator, port = self.listen.rpartition(":")
        if not separator or not host or not port.isdigit() or int(port) > 65535:
            raise InvalidSettings(f"--listen must be HOST:PORT, as in {LISTEN}, not {self.listen!r}")
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
        if self.development and not is_loopback(host):
            raise InvalidSettings("--dev-identity is for this machine alone: listen on 127.0.0.1")
        if self.database and not self.database.startswith(("sqlite:///", "postgresql://")):
            raise InvalidSettings("--database must be sqlite:///FILE or postgresql://USER@HOST/NAME")
        if not self.audience:
            raise InvalidSettings("--audience must not be empty")
        if self.issuer == ISSUER:
            raise InvalidSettings(f"--issuer names another issuer: {ISSUER} is this server itself")
        if self.issuer and not any(self.trusted_keys.glob("*.pem")):
            raise InvalidSettings(f"--issuer {self.issuer}: put its public keys into {self.trusted_keys}, as *.pem")


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
