"""Resource names, and what becomes a target that is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading_server import names

UUID = "01990000-0000-7000-8000-000000000001"
NOT_IDS = [
    "",
    "a/b",
    "../etc",
    ".hidden",
    "-rf",
    "a b",
    "a\0",
    "web\n",
    "wéb",
    "x" * 129,
    "'; DROP TABLE agents; --",
]


@given(st.from_regex(names.ID, fullmatch=True), st.from_regex(names.ID, fullmatch=True))
def test_names_of_proper_ids_are_read_back(agent: str, container: str) -> None:
    assert names.agent_of(names.agent_name(agent)) == agent
    assert names.container_of(names.container_name(agent, container)) == (agent, container)


def test_name_of_a_command_is_read_back() -> None:
    assert names.command_of(names.command_name(UUID)) == UUID


@pytest.mark.parametrize("text", NOT_IDS)
def test_improper_id_names_nothing(text: str) -> None:
    assert names.agent_of(f"agents/{text}") == ""
    assert names.container_of(f"agents/dock-1/containers/{text}") == ("", "")
    assert names.container_of(f"agents/{text}/containers/web") == ("", "")
    assert names.command_of(f"commands/{text}") == ""


@given(st.text())
def test_any_text_is_a_name_or_is_not(text: str) -> None:
    assert names.agent_of(text) == "" or names.agent_name(names.agent_of(text)) == text
    agent, container = names.container_of(text)
    assert (agent, container) == ("", "") or names.container_name(agent, container) == text


@pytest.mark.parametrize(
    ("kind", "value", "target", "agent"),
    [
        ("container", "agents/dock-1/containers/web", "dock-1/web", "dock-1"),
        ("agent", "agents/dock-1", "dock-1", "dock-1"),
        ("command", f"commands/{UUID}", UUID, ""),
        ("role", "bob", "bob", ""),
        ("container", "agents/../containers/x", "agents/../containers/x", ""),
        ("container", "x" * 10_000, "x" * 512, ""),
    ],
)
def test_target_is_named_without_its_collection_and_kept_as_it_came_when_improper(
    kind: str, value: str, target: str, agent: str
) -> None:
    assert names.target_of(kind, value) == ((kind, target), agent)
