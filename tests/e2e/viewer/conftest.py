"""A real server with an agent and real history, a real viewer over it, and a browser."""

import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Page, expect

from lading.v1.access_pb2 import ROLE_RECORDER
from lading_client import Client
from tests.stack import Stack

SCREENSHOTS = pathlib.Path(__file__).parent / "screenshots"
SLEEP = ["sleep", "1000"]
TASKS = 120
NASTY = '![x](http://evil.invalid/b.png) <img src=x onerror="document.title=1"> =cmd()'
expect.set_options(timeout=60_000)


@dataclass
class Fleet:
    """What the tests look at: one server, one agent, one viewer."""

    stack: Stack
    url: str

    def lading(self, *arguments: str, token: str | None = None) -> str:
        """What the command prints."""
        done = self.stack.lading(*arguments, token=token)
        assert done.returncode in (0, 4, 5), done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Stack(tmp_path_factory.mktemp("fleet")) as stack:
        stack.start_server()
        stack.start_agent("dock-1", processes={"web": SLEEP, "api": SLEEP})
        fleet = Fleet(stack, "")
        tasks = stack.issue_token("task-tracker", roles=(ROLE_RECORDER,))
        with Client(stack.address, token=tasks, source="tasks") as client:
            for number in range(TASKS):
                diff = [{"op": "replace", "path": "/state", "value": "done", "was": "open"}]
                client.record("task.update", [f"task:{number}"], diff=diff, reason=f"sprint {number % 7}")
        reader = fleet.lading("token", "create", "rita", "--email", "rita@acme.example", "--role", "viewer")
        fleet.lading("start", "dock-1/web", "--reason", "INC-527 mitigation")
        fleet.lading("restart", "dock-1/api", "--reason", NASTY)
        fleet.lading("stop", "dock-1/web", "--reason", "nightly maintenance")
        fleet.lading("start", "dock-1/nope", "--reason", "a typing error")
        fleet.lading("start", "dock-1/web", "--reason", "not hers to do", token=reader)
        fleet.lading("role", "assign", "emi", "operator", "--reason", "on call")
        fleet.url = stack.start_viewer()
        yield fleet


@pytest.fixture
def sign_in(fleet: Fleet, page: Page) -> Iterator[Callable[..., Page]]:
    """Opens a page of the viewer as the admin, or with another token. No request may leave the viewer."""
    foreign: list[str] = []
    page.on("request", lambda request: foreign.append(request.url) if is_foreign(fleet.url, request.url) else None)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if "Content Security" in message.text else None)
    page.on("pageerror", lambda error: problems.append(str(error)))

    def sign_in(path: str = "/", token: str | None = None) -> Page:
        page.goto(fleet.url + path)
        page.get_by_label("Token").fill(token or fleet.stack.admin_token)
        page.get_by_label("Token").press("Enter")
        return page

    yield sign_in
    assert foreign == []
    assert problems == []


def is_foreign(viewer: str, url: str) -> bool:
    own = (viewer, viewer.replace("http:", "ws:"))
    return not url.startswith((*own, "data:", f"blob:{viewer}"))


@pytest.fixture
def screenshot() -> Callable[[Page, str], None]:
    """Keeps a picture, for people to look at."""

    def screenshot(page: Page, name: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")

    return screenshot
