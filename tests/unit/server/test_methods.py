"""What is recorded of a request: its target, its reason, and no secret."""

import hashlib
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, duration_pb2, struct_pb2, timestamp_pb2

from lading.v1 import access_pb2, audit_log_pb2, commands_pb2, containers_pb2, options_pb2
from lading_server import errors
from lading_server.call import Call
from lading_server.interceptors import methods
from lading_server.root import OTHERS, SERVICES
from tests.unit.server.messages import Field, field, map_entry, register

WEB = "agents/dock-1/containers/web"
SECRET = "hunter2"
METHODS = methods.methods_of((*SERVICES, *OTHERS))

SECRETS = register(
    descriptor_pb2.FileDescriptorProto(
        name="lading_test/secrets.proto",
        package="lading_test.secrets",
        message_type=[
            descriptor_pb2.DescriptorProto(
                name="Login",
                field=[field("user", 1), field("password", 2, redacted=True)],
            ),
            descriptor_pb2.DescriptorProto(
                name="Everything",
                field=[
                    field("text", 1, redacted=True),
                    field("texts", 2, repeated=True, redacted=True),
                    field("raw", 3, Field.TYPE_BYTES, redacted=True),
                    field("number", 4, Field.TYPE_INT64, redacted=True),
                    field("whole", 5, of="lading_test.secrets.Login", redacted=True),
                    field("login", 6, of="lading_test.secrets.Login"),
                    field("logins", 7, of="lading_test.secrets.Login", repeated=True),
                    field("by_name", 8, of="lading_test.secrets.Everything.ByNameEntry", repeated=True),
                    field("env", 9, of="lading_test.secrets.Everything.EnvEntry", repeated=True, redacted=True),
                    field("vault", 10, of="lading_test.secrets.Everything.VaultEntry", repeated=True, redacted=True),
                    field("shown", 11),
                ],
                nested_type=[
                    map_entry("ByNameEntry", field("value", 2, of="lading_test.secrets.Login")),
                    map_entry("EnvEntry", field("value", 2)),
                    map_entry("VaultEntry", field("value", 2, of="lading_test.secrets.Login")),
                ],
            ),
        ],
    )
)


def described(path: str, request: Any) -> Call:
    call = Call("operation", path, 0)
    METHODS[path].describe(call, request, request.ByteSize())
    return call


def test_every_method_of_the_server_has_a_rule_with_an_action() -> None:
    assert len(METHODS) >= 40
    assert all("." in method.rule.action for method in METHODS.values())
    assert {path for path, method in METHODS.items() if method.public} <= set(methods.PUBLIC)


def test_method_without_a_rule_keeps_the_server_from_starting() -> None:
    register(
        descriptor_pb2.FileDescriptorProto(
            name="lading_test/ruleless.proto",
            package="lading_test.ruleless",
            message_type=[descriptor_pb2.DescriptorProto(name="Empty")],
            service=[
                descriptor_pb2.ServiceDescriptorProto(
                    name="Unruly",
                    method=[
                        descriptor_pb2.MethodDescriptorProto(
                            name="Act",
                            input_type=".lading_test.ruleless.Empty",
                            output_type=".lading_test.ruleless.Empty",
                        )
                    ],
                )
            ],
        )
    )
    with pytest.raises(methods.MissingRule, match=r"/lading_test\.ruleless\.Unruly/Act"):
        methods.methods_of(("lading_test.ruleless.Unruly",))


def test_target_agent_reason_and_request_are_noted() -> None:
    request = containers_pb2.StopContainerRequest(name=WEB, reason="disk full", detach=True)
    call = described("/lading.v1.Containers/StopContainer", request)
    assert call.targets == (("container", "dock-1/web"),)
    assert (call.agent, call.reason) == ("dock-1", "disk full")
    assert call.details["request"] == {"name": WEB, "reason": "disk full", "detach": True}


def test_environment_of_a_container_is_recorded_without_its_values() -> None:
    spec = commands_pb2.ContainerSpec(image="web", env={"DB_PASSWORD": SECRET})
    request = containers_pb2.CreateContainerRequest(name=WEB, spec=spec)
    call = described("/lading.v1.Containers/CreateContainer", request)
    assert call.details["request"]["spec"] == {"image": "web", "env": {"DB_PASSWORD": methods.REDACTED}}
    assert request.spec.env["DB_PASSWORD"] == SECRET, "the handler still needs it"


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.path)
def test_method_with_a_secret_in_its_request_has_a_redactor(method: methods.Method) -> None:
    holds_some = method.path.endswith(
        ("/CreateContainer", "/EraseEventDetails", "/ExecContainer", "/CreateRollout", "/Connect")
    )
    assert (method.redact is not None) == holds_some


def test_every_sort_of_marked_field_is_hidden() -> None:
    login = SECRETS["Login"](user="ada", password=SECRET)
    everything: Any = SECRETS["Everything"](
        text=SECRET,
        texts=[SECRET],
        raw=SECRET.encode(),
        number=4711,
        whole=login,
        login=login,
        logins=[login, login],
        by_name={"ada": login},
        env={"A": SECRET},
        vault={"A": login},
        shown="this",
    )
    redact = methods.redactor_of(everything.DESCRIPTOR)
    assert redact is not None
    hidden = redact(everything)
    assert SECRET not in str(hidden)
    assert "4711" not in str(hidden)
    assert hidden.shown == "this"
    assert hidden.text == hidden.login.password == hidden.logins[1].password == methods.REDACTED
    assert hidden.by_name["ada"].user == "ada"
    assert dict(hidden.env) == {"A": methods.REDACTED}
    assert everything.text == everything.by_name["ada"].password == SECRET, "the original is left alone"


def test_large_request_is_recorded_by_size_and_digest() -> None:
    request = containers_pb2.ListContainersRequest(states=["x" * 32] * 1000)
    call = described("/lading.v1.Containers/ListContainers", request)
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
    assert call.details["request"] == {"bytes": request.ByteSize(), "sha256": digest}


def test_large_request_with_secrets_is_recorded_by_size_alone() -> None:
    spec = commands_pb2.ContainerSpec(image="web", env={"A": SECRET * 5000})
    call = described(
        "/lading.v1.Containers/CreateContainer", containers_pb2.CreateContainerRequest(name=WEB, spec=spec)
    )
    assert list(call.details["request"]) == ["bytes"], "a digest of few possible secrets would tell them"


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (
            "/lading.v1.Containers/StreamContainerLogs",
            containers_pb2.StreamContainerLogsRequest(name=WEB, since=timestamp_pb2.Timestamp(seconds=2**60)),
        ),
        (
            "/lading.v1.Containers/StopContainer",
            containers_pb2.StopContainerRequest(name=WEB, grace=duration_pb2.Duration(seconds=2**60)),
        ),
        (
            "/lading.v1.AuditLog/RecordEvents",
            audit_log_pb2.RecordEventsRequest(
                events=[
                    audit_log_pb2.NewEvent(
                        details=struct_pb2.Struct(fields={"x": struct_pb2.Value(number_value=float("nan"))})
                    )
                ]
            ),
        ),
    ],
)
def test_value_that_json_cannot_say_is_refused(path: str, request_: Any) -> None:
    call = Call("operation", path, 0)
    with pytest.raises(errors.InvalidArgument):
        METHODS[path].describe(call, request_, request_.ByteSize())
    assert call.details["request"] == {"bytes": request_.ByteSize()}


def test_rule_of_an_option_is_what_the_interceptors_read() -> None:
    rule = METHODS["/lading.v1.Access/AssignRole"].rule
    assert (rule.action, rule.permission, rule.changes) == ("rbac.role.assign", "access.admin", True)
    call = described("/lading.v1.Access/AssignRole", access_pb2.AssignRoleRequest(subject="bob"))
    assert call.targets == (("role", "bob"),)
    assert options_pb2.audit.full_name == "lading.v1.audit"
