"""Tokens over the wire: issued, listed, revoked; and every bad one refused and recorded, on both databases."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import grpc
import jwt
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode
from grpc.aio import AioRpcError

from lading.v1 import access_pb2, audit_log_pb2
from lading_server.event import ActorType, Outcome
from lading_server.settings import Settings
from tests.integration.server.access_server import AccessServer, violations_of
from tests.unit.server import test_tokens as bad

ISSUE, REVOKE, WHO = access_pb2.IssueTokenRequest, access_pb2.RevokeTokenRequest, access_pb2.WhoAmIRequest()
USER, SERVICE, AGENT = (audit_log_pb2.ACTOR_TYPE_USER, audit_log_pb2.ACTOR_TYPE_SERVICE, audit_log_pb2.ACTOR_TYPE_AGENT)
DAY = 24 * 3600


@pytest.fixture
async def server(any_settings: Settings) -> AsyncIterator[AccessServer]:
    async with AccessServer(any_settings) as running:
        yield running


async def test_issued_token_says_who_its_bearer_is(server: AccessServer) -> None:
    for kind in (USER, SERVICE, AGENT):
        reply = await server.call(
            "IssueToken", ISSUE(type=kind, subject="dock-1", email="d@acme.example", reason="setup")
        )
        assert (reply.token.type, reply.token.subject, reply.token.created_by) == (kind, "dock-1", "ada")
        assert reply.token.expires_at.seconds - reply.token.created_at.seconds == 30 * DAY
        who = await server.call("WhoAmI", WHO, reply.secret)
        assert (who.actor.type, who.actor.id, who.actor.credential) == (kind, "dock-1", reply.token.id)
        assert who.expires_at == reply.token.expires_at
        assert ("agent.connect" in who.permissions) == (kind == AGENT)


async def test_secret_is_neither_stored_nor_recorded(server: AccessServer) -> None:
    secret = await server.issue("billing", SERVICE)
    event = (await server.events())[0]
    assert secret.split(".")[2] not in repr(event.row)
    (operation,) = event.diff
    assert operation["op"] == "add"
    assert operation["path"] == f"/tokens/{jwt.decode(secret, options={'verify_signature': False})['jti']}"
    assert operation["value"].keys() == {"type", "subject", "expires_at"}


OUT_OF_SHAPE = [
    (ISSUE(subject="bob"), "type"),
    (ISSUE(type=audit_log_pb2.ACTOR_TYPE_ANONYMOUS, subject="bob"), "type"),
    (ISSUE(type=77, subject="bob"), "type"),  # type: ignore[arg-type]
    (ISSUE(type=USER), "subject"),
    (ISSUE(type=USER, subject="a\0b"), "subject"),
    (ISSUE(type=USER, subject="x" * 257), "subject"),
    (ISSUE(type=AGENT, subject="dock/1"), "subject"),
    (ISSUE(type=AGENT, subject="../../etc"), "subject"),
    (ISSUE(type=AGENT, subject="dock 1"), "subject"),
    (ISSUE(type=USER, subject="bob", lifetime=Duration(seconds=0)), "lifetime"),
    (ISSUE(type=USER, subject="bob", lifetime=Duration(seconds=-60)), "lifetime"),
    (ISSUE(type=USER, subject="bob", lifetime=Duration(seconds=367 * DAY)), "lifetime"),
    (ISSUE(type=USER, subject="bob", organization="a/b"), "organization"),
    (ISSUE(type=USER, subject="bob", reason="x" * 1001), "reason"),
]


async def test_token_out_of_shape_is_refused(server: AccessServer) -> None:
    for request, field in OUT_OF_SHAPE:
        with pytest.raises(AioRpcError) as failure:
            await server.call("IssueToken", request)
        assert failure.value.code() == StatusCode.INVALID_ARGUMENT, request
        assert field in violations_of(failure.value)


async def test_lifetime_that_is_no_duration_is_refused(server: AccessServer) -> None:
    request = ISSUE(type=USER, subject="bob", lifetime=Duration(seconds=2**62))
    assert (await server.refused("IssueToken", request))[0] == StatusCode.INVALID_ARGUMENT


async def test_longest_and_shortest_lifetimes_are_as_asked(server: AccessServer) -> None:
    for asked, seconds in ((Duration(seconds=366 * DAY), 366 * DAY), (Duration(nanos=1), 1)):
        token = (await server.call("IssueToken", ISSUE(type=USER, subject="bob", lifetime=asked))).token
        assert token.expires_at.seconds - token.created_at.seconds == seconds


async def test_only_system_issues_tokens_for_other_organizations(server: AccessServer) -> None:
    for organization in ("system", "umbrella"):
        request = ISSUE(type=USER, subject="ada", organization=organization)
        assert (await server.refused("IssueToken", request))[0] == StatusCode.PERMISSION_DENIED
    who = await server.call("WhoAmI", WHO, await server.issue("bob", token=server.root, organization="acme"))
    assert who.organization == "acme"
    issued = next(event for event in await server.events("acme") if event.action == "token.issue" and event.parent)
    assert (issued.actor, issued.target) == ("ada", "bob")
    request = ISSUE(type=USER, subject="bob", organization="nowhere")
    assert (await server.refused("IssueToken", request, server.root))[0] == StatusCode.NOT_FOUND


async def test_revoked_token_is_refused_at_once_and_the_refusal_says_whose_it_was(server: AccessServer) -> None:
    issued = await server.call("IssueToken", ISSUE(type=SERVICE, subject="billing"))
    await server.call("WhoAmI", WHO, issued.secret)
    revoked = await server.call("RevokeToken", REVOKE(id=issued.token.id, reason="leaked"))
    assert revoked.revoked_at.seconds > 0
    code, message = await server.refused("WhoAmI", WHO, issued.secret)
    assert (code, "was revoked" in message) == (StatusCode.UNAUTHENTICATED, True)
    event = next(event for event in await server.events() if event.action == "token.revoke")
    assert (event.target, event.reason) == (issued.token.id, "leaked")
    (operation,) = event.diff
    assert (operation["op"], operation["path"]) == ("add", f"/tokens/{issued.token.id}/revoked_at")
    (refused,) = await server.events("system")
    assert (refused.actor_type, refused.outcome) == (ActorType.ANONYMOUS, Outcome.DENIED)
    assert refused.details["presented"]["subject"] == "billing"


async def test_revoking_again_succeeds_and_changes_nothing(server: AccessServer) -> None:
    issued = await server.call("IssueToken", ISSUE(type=SERVICE, subject="billing"))
    first = await server.call("RevokeToken", REVOKE(id=issued.token.id))
    assert await server.call("RevokeToken", REVOKE(id=issued.token.id)) == first
    assert [event.diff for event in await server.events()][-1] == []


async def test_token_of_another_organization_is_not_found(server: AccessServer) -> None:
    foreign = await server.call("IssueToken", ISSUE(type=USER, subject="ada"), server.root)
    code, _ = await server.refused("RevokeToken", REVOKE(id=foreign.token.id))
    assert code == StatusCode.NOT_FOUND
    await server.call("WhoAmI", WHO, foreign.secret)
    listed = (await server.call("ListTokens", access_pb2.ListTokensRequest())).tokens
    assert foreign.token.id not in {token.id for token in listed}


async def test_token_id_out_of_shape_is_refused(server: AccessServer) -> None:
    for id in ("", "x", "01A20031-FFF3-7152-A093-2EA98B699285", "' OR 1=1 --"):
        assert (await server.refused("RevokeToken", REVOKE(id=id)))[0] == StatusCode.INVALID_ARGUMENT, id


async def test_tokens_are_listed_newest_first_page_by_page(server: AccessServer) -> None:
    for number in range(5):
        await server.issue(f"user-{number}")
    found, token = [], ""
    while True:
        page = await server.call("ListTokens", access_pb2.ListTokensRequest(page_size=2, page_token=token))
        found += [token.subject for token in page.tokens]
        token = page.next_page_token
        if not token:
            break
    assert found == ["user-4", "user-3", "user-2", "user-1", "user-0", "ada"]
    forged = access_pb2.ListTokensRequest(page_token="WyJ0b2tlbnMiLC0xLCJhIl0")
    assert (await server.refused("ListTokens", forged))[0] == StatusCode.INVALID_ARGUMENT


async def test_every_bad_token_is_refused_and_leaves_one_event_each(server: AccessServer) -> None:
    """The table of the unit test over the wire; what cannot be a header value is left out."""
    made = {case: make() for case, (make, _) in bad.BAD.items()}
    sent = {case: token for case, token in made.items() if token.isascii() and token.isprintable()}
    for case, token in sent.items():
        code, message = await server.refused("WhoAmI", WHO, token or " ")
        assert code == StatusCode.UNAUTHENTICATED, case
        assert message, case
        assert "Traceback" not in message, case
    events = await server.events("system")
    assert sum(event.count for event in events) == len(sent)
    assert {(event.action, event.outcome, event.code, event.actor) for event in events} == {
        ("access.whoami", Outcome.DENIED, StatusCode.UNAUTHENTICATED.value[0], "")
    }
    stored = repr([event.row for event in events])
    assert not [case for case, token in sent.items() if len(token) > 8 and token in stored]


async def test_token_signed_by_another_server_is_refused(server: AccessServer) -> None:
    code, message = await server.refused("WhoAmI", WHO, bad.signed())
    assert (code, "another server issued it" in message) == (StatusCode.UNAUTHENTICATED, True)


async def test_call_without_a_token_is_told_what_to_send(server: AccessServer) -> None:
    code, message = await server.refused("WhoAmI", WHO, "")
    assert (code, "authorization: Bearer" in message) == (StatusCode.UNAUTHENTICATED, True)


async def test_unknown_organization_is_refused(server: AccessServer) -> None:
    payload = {**jwt.decode(server.ada, options={"verify_signature": False}), "org": "nowhere"}
    code, message = await server.refused("WhoAmI", WHO, jwt.encode(payload, server.key, algorithm="EdDSA"))
    assert (code, "no organization 'nowhere'" in message) == (StatusCode.UNAUTHENTICATED, True)


async def test_token_of_a_trusted_issuer_has_the_roles_bound_here(any_settings: Settings) -> None:
    folder = any_settings.data / "trusted-keys"
    folder.mkdir(parents=True)
    (folder / "login.pem").write_bytes(bad.public_pem(bad.OIDC_KEY))
    async with AccessServer(dataclasses.replace(any_settings, issuer=bad.OIDC)) as server:
        held = bad.signed(bad.OIDC_KEY, "ES256", iss=bad.OIDC, sub="carol", jti=None)
        await server.assign("carol", access_pb2.ROLE_VIEWER)
        who = await server.call("WhoAmI", WHO, held)
        assert (who.actor.id, who.actor.auth_method, list(who.roles)) == ("carol", "oidc", [access_pb2.ROLE_VIEWER])
        assert who.actor.credential.startswith("sha256:")
        own = bad.signed(bad.OIDC_KEY, "ES256", iss="lading", sub="ada")
        assert (await server.refused("WhoAmI", WHO, own))[0] == StatusCode.UNAUTHENTICATED


async def test_developer_is_marked_as_such_in_every_event(any_settings: Settings) -> None:
    async with AccessServer(dataclasses.replace(any_settings, development=True)) as server:
        who = await server.stub.WhoAmI(
            WHO, metadata=(("x-dev-user-id", "ada"), ("x-dev-organization", "acme")), timeout=20
        )
        assert (who.actor.id, who.actor.auth_method, list(who.roles)) == ("ada", "development", [access_pb2.ROLE_ADMIN])
        (event,) = await server.events()
        assert event.details["actor"]["auth_method"] == "development"


async def test_developer_is_nobody_without_the_flag(server: AccessServer) -> None:
    with pytest.raises(AioRpcError) as failure:
        await server.stub.WhoAmI(WHO, metadata=(("x-dev-user-id", "ada"),), timeout=20)
    assert failure.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_callers_with_good_tokens_are_served_beside_a_flood_of_bad_ones(server: AccessServer) -> None:
    async def flood() -> None:
        await asyncio.gather(*(server.refused("WhoAmI", WHO, "x.y.z") for _ in range(300)))

    flooding = asyncio.create_task(flood())
    for _ in range(10):
        await server.call("WhoAmI", WHO)
    await flooding
    events = await server.events("system")
    assert sum(event.count for event in events) == 300
    assert len(events) < 300
