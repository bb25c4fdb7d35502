import json
import pathlib

import pytest

from lading.v1 import options_pb2
from lading_client.channel import SERVICES, Address, Endpoint, parse_addresses, service_config


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:7443", "127.0.0.1", 7443, True),
        ("127.9.9.9:1", "127.9.9.9", 1, True),
        ("localhost", "localhost", 7443, True),
        ("[::1]:80", "::1", 80, True),
        ("[fe80::1]", "fe80::1", 7443, False),
        ("lading.example.com:443", "lading.example.com", 443, False),
        ("10.0.0.5", "10.0.0.5", 7443, False),
        ("localhost.example.com", "localhost.example.com", 7443, False),
    ],
)
def test_addresses_are_read(text: str, host: str, port: int, loopback: bool) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, address.loopback) == (host, port, loopback)


@pytest.mark.parametrize("text", ["", ":7443", "host:", "host:0", "host:70000", "host:http", "https://host:1", "a/b:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("lading.example.com", "lading.example.com:7443"),
        ("10.0.0.1:1,10.0.0.2:2, 10.0.0.3", "ipv4:10.0.0.1:1,10.0.0.2:2,10.0.0.3:7443"),
        ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
    ],
)
def test_several_servers_are_one_target(text: str, target: str) -> None:
    assert Endpoint(parse_addresses(text)).target == target


@pytest.mark.parametrize("text", ["a.example:1,b.example:1", "127.0.0.1:1,localhost:2", "127.0.0.1:1,[::1]:1"])
def test_several_servers_have_ip_addresses_of_one_kind(text: str) -> None:
    with pytest.raises(ValueError, match="all IPv4 or all IPv6"):
        parse_addresses(text)


def test_plaintext_is_for_loopback_only() -> None:
    with pytest.raises(ValueError, match="loopback only"):
        Endpoint(parse_addresses("127.0.0.1:7443,10.0.0.5:7443"), tls=False)
    assert Endpoint(parse_addresses("10.0.0.5:7443")).credentials() is not None
    assert Endpoint(parse_addresses("127.0.0.1:7443")).credentials() is None
    assert Endpoint(parse_addresses("127.0.0.1:7443,127.0.0.2:7443")).credentials() is None
    assert Endpoint(parse_addresses("127.0.0.1:7443,10.0.0.5:7443")).credentials() is not None
    assert Endpoint(parse_addresses("127.0.0.1:7443"), tls=True).credentials() is not None


def test_a_missing_ca_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        Endpoint(parse_addresses("127.0.0.1:7443"), ca=tmp_path / "none").credentials()


def test_retried_is_what_changes_nothing_and_what_carries_a_key() -> None:
    (config,) = json.loads(service_config())["methodConfig"]
    retried = {(name["service"], name["method"]) for name in config["name"]}
    for service in SERVICES:
        for method in service.methods:
            changes = method.GetOptions().Extensions[options_pb2.audit].changes
            expected = not changes or "request_id" in method.input_type.fields_by_name
            assert ((service.full_name, method.name) in retried) == expected, method.full_name
