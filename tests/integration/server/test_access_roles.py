"""Roles and organizations, changed over the wire and recorded with what changed, on both databases."""

import asyncio
import base64
from collections.abc import AsyncIterator

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError

from lading.v1 import access_pb2
from lading_server.event import Outcome
from lading_server.roles import Role
from lading_server.settings import Settings
from lading_server.store import access
from tests.integration.server.access_server import AccessServer, violations_of

ASSIGN, REMOVE = access_pb2.AssignRoleRequest, access_pb2.RemoveRoleRequest
VIEWER, OPERATOR, ADMIN = access_pb2.ROLE_VIEWER, access_pb2.ROLE_OPERATOR, access_pb2.ROLE_ADMIN


@pytest.fixture
async def server(any_settings: Settings) -> AsyncIterator[AccessServer]:
    async with AccessServer(any_settings) as running:
        yield running


async def test_caller_is_told_who_they_are(server: AccessServer) -> None:
    who = await server.call("WhoAmI", access_pb2.WhoAmIRequest())
    assert (who.actor.id, who.actor.email, who.actor.auth_method) == ("ada", "ada@acme.example", "token")
    assert (who.organization, list(who.roles)) == ("acme", [ADMIN])
    assert "access.admin" in who.permissions
    assert "organization.create" not in who.permissions
    assert who.expires_at.seconds > 0


async def test_assigned_role_holds_at_once_and_is_recorded_with_its_diff(server: AccessServer) -> None:
    bob = await server.issue("bob")
    assert (await server.refused("ListTokens", access_pb2.ListTokensRequest(), bob))[0] == StatusCode.PERMISSION_DENIED
    request = ASSIGN(subject="bob", role=access_pb2.ROLE_AUDITOR, reason="quarterly review")
    reply = await server.call("AssignRole", request)
    assert (reply.subject, reply.role, reply.created_by) == ("bob", access_pb2.ROLE_AUDITOR, "ada")
    assert len((await server.call("ListTokens", access_pb2.ListTokensRequest(), bob)).tokens) == 2
    event = next(event for event in await server.events() if event.action == "rbac.role.assign")
    assert (event.actor, event.target_type, event.target) == ("ada", "role", "bob")
    assert (event.reason, event.outcome, event.changes) == ("quarterly review", Outcome.SUCCESS, True)
    assert event.diff == [{"op": "add", "path": "/role_bindings/bob", "value": ["auditor"], "was": None}]


async def test_diff_says_all_roles_before_and_after(server: AccessServer) -> None:
    await server.assign("a/b~c", VIEWER)
    await server.assign("a/b~c", OPERATOR)
    await server.call("RemoveRole", REMOVE(subject="a/b~c", role=VIEWER))
    await server.call("RemoveRole", REMOVE(subject="a/b~c", role=OPERATOR))
    path = "/role_bindings/a~1b~0c"
    assert [event.diff for event in await server.events()] == [
        [{"op": "add", "path": path, "value": ["viewer"], "was": None}],
        [{"op": "replace", "path": path, "value": ["viewer", "operator"], "was": ["viewer"]}],
        [{"op": "replace", "path": path, "value": ["operator"], "was": ["viewer", "operator"]}],
        [{"op": "remove", "path": path, "was": ["operator"]}],
    ]


async def test_assigning_again_succeeds_and_changes_nothing(server: AccessServer) -> None:
    first = await server.assign("bob", VIEWER)
    assert await server.assign("bob", VIEWER) == first
    assert [event.diff == [] for event in await server.events()] == [False, True]
    listed = (await server.call("ListRoleBindings", access_pb2.ListRoleBindingsRequest())).bindings
    assert [(binding.subject, binding.role) for binding in listed] == [("ada", ADMIN), ("bob", VIEWER)]


async def test_removed_role_is_gone_at_once(server: AccessServer) -> None:
    bob = await server.issue("bob")
    await server.assign("bob", ADMIN)
    await server.call("ListTokens", access_pb2.ListTokensRequest(), bob)
    await server.call("RemoveRole", REMOVE(subject="bob", role=ADMIN))
    assert (await server.refused("ListTokens", access_pb2.ListTokensRequest(), bob))[0] == StatusCode.PERMISSION_DENIED


async def test_last_admin_stays(server: AccessServer) -> None:
    code, message = await server.refused("RemoveRole", REMOVE(subject="ada", role=ADMIN))
    assert (code, "last admin of acme" in message) == (StatusCode.FAILED_PRECONDITION, True)
    assert ADMIN in (await server.call("WhoAmI", access_pb2.WhoAmIRequest())).roles
    event = (await server.events())[0]
    assert (event.action, event.outcome, event.diff) == ("rbac.role.remove", Outcome.FAILURE, None)


async def test_of_two_admins_who_remove_each_other_one_stays(server: AccessServer) -> None:
    bob = await server.issue("bob")
    await server.assign("bob", ADMIN)
    answers = await asyncio.gather(
        server.call("RemoveRole", REMOVE(subject="bob", role=ADMIN)),
        server.call("RemoveRole", REMOVE(subject="ada", role=ADMIN), bob),
        return_exceptions=True,
    )
    assert sum(not isinstance(answer, AioRpcError) for answer in answers) == 1
    after = await server.reader.read(access.list_admins, "acme", 9)
    assert len(after) == 1


async def test_removing_what_is_not_there_is_not_found(server: AccessServer) -> None:
    code, message = await server.refused("RemoveRole", REMOVE(subject="bob", role=VIEWER))
    assert (code, message) == (StatusCode.NOT_FOUND, "bob has no role viewer in acme")


async def test_number_that_is_no_role_is_refused(server: AccessServer) -> None:
    for role in (0, 6, 99, -1):
        with pytest.raises(AioRpcError) as failure:
            await server.assign("bob", role)
        assert failure.value.code() == StatusCode.INVALID_ARGUMENT
        assert "role" in violations_of(failure.value)


async def test_subject_out_of_shape_is_refused(server: AccessServer) -> None:
    for subject in ("", "a\0b", "a\nb", "x" * 257):
        code, _ = await server.refused("AssignRole", ASSIGN(subject=subject, role=VIEWER))
        assert code == StatusCode.INVALID_ARGUMENT, subject


async def test_subject_with_sql_in_it_is_just_a_subject(server: AccessServer) -> None:
    subject = "x'); DROP TABLE role_bindings; --"
    assert (await server.assign(subject, VIEWER)).subject == subject
    assert (await server.call("RemoveRole", REMOVE(subject=subject, role=VIEWER))).subject == subject


async def test_roles_are_those_of_the_callers_organization(server: AccessServer) -> None:
    await server.call(
        "CreateOrganization", access_pb2.CreateOrganizationRequest(name="umbrella", admin="eve"), server.root
    )
    eve = await server.issue("eve", token=server.root, organization="umbrella")
    assert (await server.refused("RemoveRole", REMOVE(subject="ada", role=ADMIN), eve))[0] == StatusCode.NOT_FOUND
    listed = (await server.call("ListRoleBindings", access_pb2.ListRoleBindingsRequest(), eve)).bindings
    assert [binding.subject for binding in listed] == ["eve"]


# -- pages


async def test_pages_give_every_binding_once(server: AccessServer) -> None:
    for number in range(4):
        await server.assign(f"user-{number}", VIEWER)
        await server.assign(f"user-{number}", OPERATOR)
    found, token = [], ""
    while True:
        page = await server.call("ListRoleBindings", access_pb2.ListRoleBindingsRequest(page_size=2, page_token=token))
        found += [(binding.subject, binding.role) for binding in page.bindings]
        token = page.next_page_token
        if not token:
            break
    assert found == [("ada", ADMIN), *((f"user-{n}", role) for n in range(4) for role in (VIEWER, OPERATOR))]


FORGED_KEYS: tuple[str, ...] = (
    '["bindings"]',
    '["bindings","a","b"]',
    '["bindings","a",true]',
    '["bindings","a\\u0000",1]',
    "[]",
    "{}",
)
FORGED_KEYS += (
    '["tokens",1,"a"]',
    '["bindings","a",2e99]',
    '["bindings","a",99999999999999999999]',
    '["bindings",{},1]',
)
FORGED = [base64.urlsafe_b64encode(key.encode()).decode().rstrip("=") for key in FORGED_KEYS]


async def test_forged_page_token_is_refused(server: AccessServer) -> None:
    for token in ("x", "AAAA", "é", "'; DROP TABLE events; --", "a" * 10_000, *FORGED):
        request = access_pb2.ListRoleBindingsRequest(page_token=token)
        assert (await server.refused("ListRoleBindings", request))[0] == StatusCode.INVALID_ARGUMENT, token


async def test_page_sizes_are_bounded(server: AccessServer) -> None:
    negative = access_pb2.ListRoleBindingsRequest(page_size=-1)
    assert (await server.refused("ListRoleBindings", negative))[0] == StatusCode.INVALID_ARGUMENT
    huge = access_pb2.ListRoleBindingsRequest(page_size=2**31 - 1)
    assert len((await server.call("ListRoleBindings", huge)).bindings) == 1


# -- organizations


async def test_organization_begins_with_its_birth_and_its_admin(server: AccessServer) -> None:
    request = access_pb2.CreateOrganizationRequest(name="umbrella", admin="eve", reason="new customer")
    made = await server.call("CreateOrganization", request, server.root)
    assert made.name == "umbrella"
    eve = await server.issue("eve", token=server.root, organization="umbrella")
    who = await server.call("WhoAmI", access_pb2.WhoAmIRequest(), eve)
    assert (who.organization, list(who.roles)) == ("umbrella", [ADMIN])
    birth, token, _ = await server.events("umbrella")
    assert (birth.index, birth.action, birth.actor, birth.reason) == (0, "organization.create", "ada", "new customer")
    assert birth.diff == [
        {"op": "add", "path": "/organizations/umbrella", "value": {"name": "umbrella"}, "was": None},
        {"op": "add", "path": "/role_bindings/eve", "value": ["admin"], "was": None},
    ]
    assert (token.action, token.target) == ("token.issue", "eve")
    asked = next(event for event in await server.events("system") if event.action == "organization.create")
    assert (asked.diff, asked.operation) == (birth.diff, birth.parent)


async def test_existing_organization_is_not_made_again(server: AccessServer) -> None:
    for name in ("acme", "system"):
        request = access_pb2.CreateOrganizationRequest(name=name, admin="eve")
        code, message = await server.refused("CreateOrganization", request, server.root)
        assert (code, name in message) == (StatusCode.ALREADY_EXISTS, True)
    assert (await server.call("WhoAmI", access_pb2.WhoAmIRequest(), await server.issue("eve"))).roles == []


async def test_admin_of_an_organization_makes_no_other(server: AccessServer) -> None:
    request = access_pb2.CreateOrganizationRequest(name="umbrella", admin="ada")
    code, message = await server.refused("CreateOrganization", request)
    assert (code, "organization.create" in message) == (StatusCode.PERMISSION_DENIED, True)
    assert (await server.events())[0].outcome == Outcome.DENIED


async def test_name_out_of_shape_is_refused(server: AccessServer) -> None:
    for name in ["", "a/b", "../acme", "a b", "a\0", ".a", "x" * 64, "a'; DROP TABLE events; --"]:
        request = access_pb2.CreateOrganizationRequest(name=name, admin="eve")
        code, _ = await server.refused("CreateOrganization", request, server.root)
        assert code == StatusCode.INVALID_ARGUMENT, name


async def test_numbers_of_roles_are_those_of_the_wire() -> None:
    assert [int(role) for role in (VIEWER, OPERATOR, ADMIN)] == [Role.VIEWER, Role.OPERATOR, Role.ADMIN]
