"""TLS: a server whose certificate the tests' own authority has signed."""

import asyncio
import dataclasses
import datetime
import ipaddress
import os
import pathlib
import sys
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc import StatusCode

from lading.v1 import access_pb2, access_pb2_grpc
from lading_client import AsyncClient
from lading_client.errors import LadingError
from lading_server.settings import InvalidSettings, Settings
from tests.integration.server.running import Running, bearer, running, sign

LADING = pathlib.Path(sys.executable).with_name("lading")


@dataclasses.dataclass(frozen=True)
class Authority:
    """A certificate authority with `ca.pem`, and what it has signed: `server.pem` and `server-key.pem`."""

    folder: pathlib.Path

    @property
    def ca(self) -> pathlib.Path:
        return self.folder / "ca.pem"

    def make(self) -> "Authority":
        key, name = ec.generate_private_key(ec.SECP256R1()), named("the tests' authority")
        ca = certificate(name, name, key.public_key(), key, x509.BasicConstraints(ca=True, path_length=0))
        own = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        signed = certificate(named("server"), name, own.public_key(), key, names)
        self.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        (self.folder / "server.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        (self.folder / "server-key.pem").write_bytes(
            own.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return self


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    at = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - datetime.timedelta(minutes=5))
        .not_valid_after(at + datetime.timedelta(hours=1))
        .add_extension(extension, critical=True)
        .sign(key, hashes.SHA256())
    )


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path).make()


@pytest.fixture
async def server(settings: Settings, authority: Authority) -> AsyncIterator[Running]:
    files = {
        name: authority.folder / file for name, file in (("tls_cert", "server.pem"), ("tls_key", "server-key.pem"))
    }
    tls = dataclasses.replace(settings, **files)
    tls.check()
    async with running(tls) as made:
        yield made


async def test_client_that_knows_the_authority_is_served(server: Running, authority: Authority) -> None:
    async with AsyncClient(server.address, token=sign(server.settings), ca=authority.ca) as client:
        assert (await client.access.WhoAmI(access_pb2.WhoAmIRequest())).actor.id == "ada"


async def test_of_several_servers_one_is_enough_and_the_first_names_the_certificate(
    server: Running, authority: Authority
) -> None:
    nobody = server.address.replace("127.0.0.1", "127.0.0.9")
    who = {"token": sign(server.settings), "ca": authority.ca}
    async with AsyncClient(f"{server.address},{nobody}", **who) as client:
        assert (await client.access.WhoAmI(access_pb2.WhoAmIRequest())).actor.id == "ada"
    async with AsyncClient(f"{nobody},{server.address}", **who, timeout=30) as client:
        with pytest.raises(LadingError, match=r"UNAVAILABLE|certificate|handshake|connect"):
            await client.access.WhoAmI(access_pb2.WhoAmIRequest())


async def test_command_line_takes_the_authority(server: Running, authority: Authority) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LADING_")}
    environment |= {"HOME": str(authority.folder), "LADING_TOKEN": sign(server.settings)}
    process = await asyncio.create_subprocess_exec(
        LADING, "whoami", "--server", server.address, "--ca", authority.ca,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert (process.returncode, b"ada" in output) == (0, True), output.decode()


async def test_client_that_does_not_know_the_authority_is_not_connected(
    server: Running, authority: Authority, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").make()
    async with AsyncClient(server.address, token=sign(server.settings), ca=stranger.ca, timeout=2) as client:
        with pytest.raises(LadingError):
            await client.access.WhoAmI(access_pb2.WhoAmIRequest())
    assert server.events(action="access.whoami") == []


async def test_plaintext_is_not_served_where_tls_is(server: Running) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = access_pb2_grpc.AccessStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.WhoAmI(access_pb2.WhoAmIRequest(), metadata=bearer(sign(server.settings)), timeout=30)  # type: ignore[misc]
    assert failure.value.code() is StatusCode.UNAVAILABLE
    assert server.events(action="access.whoami") == []


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:7443", "example.com:7443"])
def test_plaintext_on_another_address_than_loopback_is_refused(settings: Settings, listen: str) -> None:
    with pytest.raises(InvalidSettings, match="--tls-cert"):
        dataclasses.replace(settings, listen=listen).check()
