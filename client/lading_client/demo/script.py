"""What happens in a demo, all of it through the API by those who may: work, a refusal, failures, changes of access.

Each scene says what it must leave in the audit log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from lading.v1 import access_pb2, audit_log_pb2
from lading_client import errors
from lading_client.demo import engine
from lading_client.demo.stage import (
    ADMIN,
    AUDITOR,
    DEPLOY_BOT,
    HOSTS,
    OPERATOR,
    PROGRAM,
    TASK_SERVICE,
    VIEWER,
    Stage,
)

LABEL = "lading.demo"


@dataclass(frozen=True)
class Scene:
    """Who does what to what, and how it must end: by the name of the outcome, and of the gRPC code."""

    actor: str
    action: str
    target: str
    play: Callable[[], object]
    outcome: str = "SUCCESS"
    code: str = "OK"


class WrongEnd(Exception):
    """A scene did not end as it must."""


def perform(stage: Stage) -> Iterator[Scene]:
    """Play the scenes; each is given out when it is over. WrongEnd when one ends as it should not."""
    for scene in scenes(stage):
        code = "OK"
        try:
            scene.play()
        except errors.LadingError as error:
            code = error.code
            if code != scene.code:
                raise WrongEnd(f"{scene.action} {scene.target} by {scene.actor}: {code}: {error}") from None
        if code != scene.code:
            raise WrongEnd(f"{scene.action} {scene.target} by {scene.actor} should have been {scene.code}")
        yield scene


def scenes(stage: Stage) -> Iterator[Scene]:
    deploy, operator = stage.client(DEPLOY_BOT), stage.client(OPERATOR)
    viewer, admin, tasks = stage.client(VIEWER), stage.client(ADMIN), stage.client(TASK_SERVICE)
    auditor = stage.client(AUDITOR)
    web, api, worker, mailer = (stage.target(process) for process in HOSTS)

    owner = {"op": "add", "path": "/projects/shop", "value": {"owner": OPERATOR, "tier": "gold"}}
    create_project = partial(tasks.record, "project.create", ["project:shop"], diff=[owner], on_behalf_of=OPERATOR)
    yield Scene(TASK_SERVICE, "project.create", "shop", partial(create_project, reason="new customer"))
    for process in HOSTS:
        target = stage.target(process)
        yield Scene(DEPLOY_BOT, "container.create", target, partial(_create, stage, process))
        yield Scene(DEPLOY_BOT, "container.start", target, partial(deploy.start, target, reason="release 1.30"))
    yield Scene(OPERATOR, "container.restart", api, partial(operator.restart, api, reason="new certificate"))
    yield Scene(OPERATOR, "container.pause", worker, partial(operator.pause, worker, reason="look at the queue"))
    yield Scene(OPERATOR, "container.unpause", worker, partial(operator.unpause, worker))
    yield Scene(OPERATOR, "container.stop", web, partial(operator.stop, web, reason="INC-527 mitigation"))
    try_it = partial(viewer.stop, api, reason="just trying")
    yield Scene(VIEWER, "container.stop", api, try_it, "DENIED", "PERMISSION_DENIED")
    again = partial(operator.start, api, reason="is it up?")
    yield Scene(OPERATOR, "container.start", api, again, "FAILURE", "FAILED_PRECONDITION")
    missing = f"{HOSTS['web']}/no-such-container"
    yield Scene(OPERATOR, "container.start", missing, partial(operator.start, missing), "FAILURE", "NOT_FOUND")
    yield Scene(OPERATOR, "container.start", web, partial(operator.start, web, reason="INC-527 is over"))
    yield Scene(OPERATOR, "container.kill", mailer, partial(operator.kill, mailer, reason="INC-528: hangs"))
    done = {"op": "replace", "path": "/state", "value": "done", "was": "open"}
    mine = {"op": "replace", "path": "/assignee", "value": OPERATOR, "was": None}
    update_task = partial(tasks.record, "task.update", ["task:task-42", "project:shop"], diff=[done, mine])
    yield Scene(TASK_SERVICE, "task.update", "task-42", partial(update_task, on_behalf_of=OPERATOR))
    assign = access_pb2.AssignRoleRequest(subject=VIEWER, role=access_pb2.ROLE_OPERATOR, reason="on call this week")
    remove = access_pb2.RemoveRoleRequest(subject=VIEWER, role=access_pb2.ROLE_OPERATOR, reason="the week is over")
    yield Scene(ADMIN, "rbac.role.assign", VIEWER, partial(admin.access.AssignRole, assign))
    yield Scene(ADMIN, "rbac.role.remove", VIEWER, partial(admin.access.RemoveRole, remove))
    listing = audit_log_pb2.ListEventsRequest(page_size=20)
    yield Scene(AUDITOR, "container.list", "", lambda: list(auditor.list_containers()))
    yield Scene(AUDITOR, "audit.list", "", partial(auditor.audit.ListEvents, listing))


def _create(stage: Stage, process: str) -> None:
    target = stage.target(process)
    labels = {"app": process, "env": "demo", LABEL: stage.mark}
    deploy = stage.client(DEPLOY_BOT)
    if stage.on_engine(process):
        command = ["/bin/sh", "-c", PROGRAM.format(name=process)]
        deploy.create(target, engine.IMAGE, command=command, labels=labels, network="none", reason="release 1.30")
    else:
        deploy.create(target, process, labels=labels, reason="release 1.30")


def clear(stage: Stage) -> list[str]:
    """Remove the containers of this demo; what could not be removed, in sentences."""
    complaints = []
    operator = stage.client(OPERATOR)
    try:
        left = list(operator.list_containers(labels={LABEL: stage.mark}))
    except errors.LadingError as error:
        return [f"The containers of the demo could not be listed: {error}"]
    for container in left:
        try:
            operator.remove(container.name, force=True, reason="end of the demo")
        except errors.LadingError as error:
            complaints.append(f"{container.name} is left: {error}")
    if stage.engine:
        try:
            stage.engine.remove_image()
        except (engine.EngineFailed, OSError) as error:
            complaints.append(f"The image {engine.IMAGE} is left: {error}")
    return complaints
