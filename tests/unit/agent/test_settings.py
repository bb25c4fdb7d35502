import base64
import json
import pathlib

import pytest

from lading_agent.errors import SettingsError
from lading_agent.link import target
from lading_agent.settings import Settings, agent_name, check_server, parse_labels, read_token


def make_token(subject: str, organization: str = "acme") -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"sub": subject, "org": organization}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


SEVERAL = "127.0.0.1:1,127.0.0.1:2"


@pytest.mark.parametrize("server", ["127.0.0.1:7443", "localhost:7443", "[::1]:7443", "127.8.9.1:1", SEVERAL])
def test_plaintext_is_allowed_on_this_machine(server: str) -> None:
    check_server(server, None)


@pytest.mark.parametrize("server", ["10.0.0.1:7443", "lading.example:7443", "0.0.0.0:7443", f"{SEVERAL},10.0.0.1:7443"])
def test_plaintext_elsewhere_is_refused_with_what_to_do(server: str) -> None:
    with pytest.raises(SettingsError, match="give --ca FILE"):
        check_server(server, None)


@pytest.mark.parametrize("server", ["localhost", "localhost:", ":7443", "localhost:http", f"{SEVERAL},"])
def test_a_server_without_host_or_port_is_refused(server: str) -> None:
    with pytest.raises(SettingsError, match="HOST:PORT"):
        check_server(server, None)


@pytest.mark.parametrize("server", ["127.0.0.1:1,localhost:2", "127.0.0.1:1,[::1]:2", "localhost:1,localhost:2"])
def test_several_servers_have_ip_addresses_of_one_kind(server: str) -> None:
    with pytest.raises(SettingsError, match="all IPv4 or all IPv6"):
        check_server(server, None)


def test_several_servers_are_tried_in_one_order_or_another() -> None:
    assert target(["lading.example:1"]) == "lading.example:1"
    found = {target(SEVERAL.split(",")) for _ in range(64)}
    assert found == {"ipv4:127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:2,127.0.0.1:1"}
    assert target(["[::1]:1", "[::1]:1"]) == "ipv6:[::1]:1,[::1]:1"


def test_the_name_is_the_subject_of_the_token() -> None:
    token = read_token(None, f" {make_token('dock-1')}\n")
    assert agent_name(token, None) == "dock-1"
    assert agent_name(token, "dock-1") == "dock-1"
    with pytest.raises(SettingsError, match="dock-1"):
        agent_name(token, "dock-2")


def test_a_token_that_became_anothers_is_not_presented(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "agent.token"
    settings = Settings("127.0.0.1:7443", "dock-1", "acme", tmp_path, token_file=file)
    file.write_text(make_token("dock-1"))
    assert settings.token() == make_token("dock-1")
    for other in (make_token("dock-2"), make_token("dock-1", "emca")):
        file.write_text(other)
        with pytest.raises(SettingsError, match="this agent is acme/dock-1"):
            settings.token()


@pytest.mark.parametrize("value", ["nonsense", "a.b.c", "a.e30.c", "a.MQ.c", "a.eyJzdWIiOiJhIn0.c"])
def test_what_is_no_token_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="not a JWT"):
        read_token(None, value)


def test_no_token_says_how_to_make_one() -> None:
    with pytest.raises(SettingsError, match="lading token create"):
        read_token(None, "")


def test_a_missing_token_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.token"):
        read_token(tmp_path / "gone.token", "")


def test_labels_are_pairs() -> None:
    assert parse_labels(("env=prod", "note=a=b")) == {"env": "prod", "note": "a=b"}
    with pytest.raises(SettingsError, match="KEY=VALUE"):
        parse_labels(("env",))
