"""What the agent is told at its start, checked before anything is touched."""

import base64
import binascii
import ipaddress
import json
import pathlib
from dataclasses import dataclass, field

from lading_agent.errors import SettingsError


@dataclass(frozen=True)
class Token:
    """The agent's JWT. Only read here, never verified: that is the server's part."""

    value: str
    subject: str
    organization: str


@dataclass(frozen=True)
class Settings:
    """How one agent runs. `token_file` is read anew at each connection, so that a token can be replaced in place."""

    server: str
    name: str
    organization: str
    data: pathlib.Path
    token_file: pathlib.Path | None = None
    token_value: str = field(default="", repr=False)
    labels: dict[str, str] = field(default_factory=dict)
    ca: pathlib.Path | None = None

    def token(self) -> str:
        """The token to present now; raises SettingsError when its file cannot be read or holds none of this agent."""
        token = read_token(self.token_file, self.token_value)
        if (token.organization, token.subject) != (self.organization, self.name):
            raise SettingsError(
                f"{self.token_file} holds the token of {token.organization}/{token.subject} now, "
                f"this agent is {self.organization}/{self.name}"
            )
        return token.value


def read_token(file: pathlib.Path | None, value: str) -> Token:
    """The token of the file, else the value; raises SettingsError when there is none or it is no JWT."""
    if file is not None:
        try:
            value = file.read_text()
        except OSError as error:
            raise SettingsError(f"cannot read the token file {file}: {error.strerror}") from None
    value = value.strip()
    if not value:
        raise SettingsError(
            "the agent has no token: give --token-file FILE or set LADING_TOKEN; "
            "an admin makes one with `lading token create --kind agent AGENT`"
        )
    try:
        payload = value.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        subject, organization = claims["sub"], claims["org"]
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        raise SettingsError(
            "the token is not a JWT with a subject and an organization: copy it again, whole and without quotes"
        ) from None
    return Token(value, str(subject), str(organization))


def agent_name(token: Token, asked: str | None) -> str:
    """The agent's name, which is the token's subject; raises SettingsError when another one was asked for."""
    if asked and asked != token.subject:
        raise SettingsError(
            f"this token is for the agent {token.subject!r}, not {asked!r}: leave out --name or use the other's token"
        )
    return token.subject


def check_server(server: str, ca: pathlib.Path | None) -> None:
    """Raises SettingsError unless it is HOST:PORT, by TLS or on this machine; or several with commas between, by IP
    addresses."""
    addresses = server.split(",")
    for address in addresses:
        host, separator, port = address.rpartition(":")
        if not separator or not host or not port.isdigit():
            raise SettingsError(f"--server must be HOST:PORT, as in 127.0.0.1:7443, not {address!r}")
        if ca is None and not is_loopback(host):
            raise SettingsError(
                f"{host} is not this machine, and the agent speaks without TLS only on the machine itself: "
                "give --ca FILE, the certificate that signed the server's"
            )
    if len(addresses) > 1 and {ip_version(address) for address in addresses} not in ({4}, {6}):
        raise SettingsError(f"--server {server}: several are given by IP addresses, all IPv4 or all IPv6, not by names")
    if ca is not None and not ca.is_file():
        raise SettingsError(f"--ca {ca}: there is no such file")


def is_loopback(host: str) -> bool:
    """Whether the address stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def ip_version(address: str) -> int:
    """Of HOST:PORT: 4 or 6, and 0 when the host is a name."""
    try:
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).version
    except ValueError:
        return 0


def parse_labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """`("env=prod",)` as a dict; raises SettingsError when one has no `=` or no key."""
    labels = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise SettingsError(f"--label must be KEY=VALUE, as in env=prod, not {pair!r}")
        labels[key] = value
    return labels
