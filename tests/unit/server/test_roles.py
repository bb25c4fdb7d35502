"""What roles grant, against what the protos ask for."""

from lading.v1 import (  # noqa: F401
    access_pb2,
    access_pb2_grpc,
    agent_link_pb2,
    agents_pb2,
    audit_log_pb2,
    commands_pb2,
    containers_pb2,
    options_pb2,
    replicas_pb2,
)
from lading_server import roles
from lading_server.roles import Role

FILES = (access_pb2, agent_link_pb2, agents_pb2, audit_log_pb2, commands_pb2, containers_pb2, replicas_pb2)
ASKED_FOR = {
    permission
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if (permission := method.GetOptions().Extensions[options_pb2.audit].permission)
}
GRANTED = frozenset[str]().union(*roles.GRANTS.values()) | roles.OF_AGENTS | roles.OF_REPLICAS | roles.OF_SYSTEM_ADMINS


def test_somebody_may_call_every_method() -> None:
    assert ASKED_FOR <= GRANTED


def test_nothing_is_granted_that_no_method_asks_for() -> None:
    assert GRANTED <= ASKED_FOR


def test_roles_are_those_of_the_contract() -> None:
    assert {role.value: f"ROLE_{role.name}" for role in Role} == {
        number: name for name, number in access_pb2.Role.items() if number
    }


def test_admin_of_an_organization_may_do_all_but_what_agents_and_system_do() -> None:
    assert (
        roles.permissions({Role.ADMIN}, "acme")
        == GRANTED - roles.OF_AGENTS - roles.OF_REPLICAS - roles.OF_SYSTEM_ADMINS
    )


def test_only_admins_of_system_create_organizations() -> None:
    assert "organization.create" in roles.permissions({Role.ADMIN}, "system")
    for role in set(Role) - {Role.ADMIN}:
        assert "organization.create" not in roles.permissions({role}, "system")


def test_no_role_makes_an_agent() -> None:
    for organization in ("acme", "system"):
        assert "agent.connect" not in roles.permissions(set(Role), organization)


def test_viewer_changes_nothing() -> None:
    assert roles.permissions({Role.VIEWER}, "acme") == {
        "container.read",
        "container.logs",
        "command.read",
        "agent.read",
        "audit.read",
    }


def test_recorder_only_records() -> None:
    assert roles.permissions({Role.RECORDER}, "acme") == {"audit.record"}


def test_roles_add_up() -> None:
    both = roles.permissions({Role.AUDITOR, Role.OPERATOR}, "acme")
    assert both == roles.permissions({Role.AUDITOR}, "acme") | roles.permissions({Role.OPERATOR}, "acme")
    assert {"container.operate", "audit.export"} <= both


def test_without_roles_nothing_is_granted() -> None:
    assert roles.permissions((), "acme") == frozenset()
    assert roles.permissions((0, 99), "acme") == frozenset()
