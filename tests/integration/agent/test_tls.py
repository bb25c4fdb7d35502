"""The agent and a server that it knows by its certificate."""

import asyncio
import dataclasses
import datetime
import ipaddress
import pathlib

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lading_agent.daemon import Daemon
from tests.integration.agent.control_plane import control_plane, make_settings
from tests.unit.agent.fake_runtime import FakeRuntime


def make_certificate() -> tuple[bytes, bytes]:
    """Key and certificate, in PEM, of a server on loopback that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lading test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return secret, certificate.public_bytes(pem)


async def test_only_the_server_of_the_given_certificate_is_spoken_to(tmp_path: pathlib.Path) -> None:
    (key, certificate), (_, another) = make_certificate(), make_certificate()
    (tmp_path / "ca.pem").write_bytes(another)
    async with control_plane(credentials=grpc.ssl_server_credentials([(key, certificate)])) as plane:
        settings = dataclasses.replace(make_settings(plane.address, tmp_path / "data"), ca=tmp_path / "ca.pem")
        daemon = Daemon(settings, FakeRuntime("web"))
        running = asyncio.create_task(daemon.run())
        stranger = asyncio.create_task(plane.link())
        await asyncio.wait({stranger}, timeout=1)
        assert not stranger.done(), "the certificate is another's"
        # The file is read anew at each connection.
        (tmp_path / "ca.pem").write_bytes(certificate)
        link = await stranger
        await link.welcome(epoch=1)
        await link.next("inventory")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
