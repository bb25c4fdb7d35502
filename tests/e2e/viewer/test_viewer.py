"""The viewer in a browser, over a real server and agent."""

import csv
import json
import pathlib
import re
import sqlite3
from collections.abc import Callable
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from lading.v1.audit_log_pb2 import GetCheckpointRequest
from lading_client import Client
from tests.e2e.viewer.conftest import NASTY, Fleet
from tests.stack import Stack

SignIn = Callable[..., Page]
Screenshot = Callable[[Page, str], None]
COLUMNS = ["Timestamp", "User", "Action", "Target", "Reason", "Status"]
# As in the specification: light and dark.
COLOURS = {
    "light": {"START": "rgb(10, 122, 92)", "STOP": "rgb(196, 50, 10)", "DENIED": "rgb(122, 79, 191)"},
    "dark": {"START": "rgb(52, 208, 164)", "STOP": "rgb(255, 122, 89)", "DENIED": "rgb(196, 167, 255)"},
}


def row(page: Page, *words: str) -> Locator:
    """The first row that has these words in this order."""
    return page.get_by_role(
        "row", name=re.compile(".*".join(re.escape(word).replace("/", ".") for word in words))
    ).first


def rows(page: Page) -> Locator:
    return page.get_by_test_id("audit-row")


def parameters(page: Page) -> dict[str, str]:
    return parameters_of(page.url)


def parameters_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def url_has(page: Page, name: str, value: str | None) -> None:
    """Wait until the URL has this parameter, or none of this name: it may be written after the page is drawn."""
    page.wait_for_url(lambda url: parameters_of(url).get(name) == value, timeout=60_000)


def table_is_there(page: Page) -> None:
    expect(page.get_by_role("textbox", name="Search")).to_be_visible()
    expect(page.get_by_role("table", name="Audit events")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="events")).to_be_visible()


def test_person_with_a_token_sees_the_log_and_a_reload_keeps_the_session(sign_in: SignIn) -> None:
    page = sign_in("/?range=1h")
    table_is_there(page)
    assert page.get_by_role("columnheader").all_inner_texts() == COLUMNS
    assert parameters(page) == {"range": "1h"}
    page.reload()
    table_is_there(page)
    (cookie,) = [cookie for cookie in page.context.cookies() if cookie["name"] == "lading_session"]
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert page.evaluate("document.cookie").find("lading_session") == -1
    page.get_by_role("button", name="Account").click()
    for text in ("ada@acme.example", "acme", "admin"):
        expect(page.get_by_role("table", name="Account").get_by_text(text, exact=True)).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()


def test_wrong_token_shows_nothing(sign_in: SignIn, fleet: Fleet) -> None:
    page = sign_in(token=fleet.stack.admin_token[:-4] + "AAAA")
    expect(page.get_by_role("alert")).to_have_text("This token is not valid or has expired. Nothing was loaded.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_rows_say_who_did_what_to_what_why_and_how_it_ended(
    browser: Browser, fleet: Fleet, scheme: Literal["light", "dark"], screenshot: Screenshot
) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto(fleet.url + "/?range=15m")
    page.get_by_label("Token").fill(fleet.stack.admin_token)
    screenshot(page, f"sign-in-{scheme}")
    page.get_by_role("button", name="Sign in").click()
    table_is_there(page)
    expected = [
        ("ada@acme.example", "START", "dock-1/web", "INC-527 mitigation", "SUCCESS"),
        ("ada@acme.example", "STOP", "dock-1/web", "nightly maintenance", "SUCCESS"),
        ("ada@acme.example", "START", "dock-1/nope", "a typing error", "FAILURENOT_FOUND"),
        ("rita@acme.example", "START", "dock-1/web", "not hers to do", "DENIEDPERMISSION_DENIED"),
        ("ada@acme.example", "rbac.role.assign", "emi", "on call", "SUCCESS"),
    ]
    for user, action, target, reason, status in expected:
        word = re.split("NOT_|PERM", status)[0]
        found = rows(page).filter(has_text=target).filter(has_text=reason)
        expect(found).to_have_count(1)
        assert [cell.inner_text().replace("\n", "") for cell in found.get_by_role("cell").all()[1:]] == [
            user, action, target, reason, status,
        ]  # fmt: skip
        assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}Z", found.get_by_role("cell").first.inner_text())
        time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z"
        says = f"{user} {action} {target} {word} "
        assert re.fullmatch(re.escape(says) + time, found.get_attribute("aria-label") or "")
    for word, colour in COLOURS[scheme].items():
        chip = rows(page).get_by_text(word, exact=True).first
        expect(chip).to_have_css("color", colour)
        expect(chip.locator("svg")).to_be_visible()
    screenshot(page, f"audit-log-{scheme}")
    context.close()


def test_every_control_has_its_role_and_name(sign_in: SignIn) -> None:
    page = sign_in()
    table_is_there(page)
    for role, name in (
        ("textbox", "Search"),
        ("radiogroup", "Time range"),
        ("radiogroup", "Time zone"),
        ("switch", "Live"),
        ("heading", "Audit log"),
        ("table", "Audit events"),
        ("button", "Newer"),
        ("button", "Older"),
        ("button", "CSV"),
        ("button", "JSONL"),
        ("button", "Copy link"),
        ("button", "Hide reads"),
        ("button", "Account"),
    ):
        expect(page.get_by_role(role, name=name, exact=True)).to_have_count(1)  # type: ignore[arg-type]


def test_search_finds_while_one_types(sign_in: SignIn, screenshot: Screenshot) -> None:
    page = sign_in()
    table_is_there(page)
    page.keyboard.press("/")
    page.keyboard.type("action:container.stop -status:FAILURE bogus:1")
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_text("There is no field 'bogus'")).to_be_visible()
    url_has(page, "q", "action:container.stop -status:FAILURE bogus:1")
    page.get_by_role("textbox", name="Search").fill("nosuchthing")
    empty = page.get_by_test_id("empty-state")
    expect(empty).to_contain_text("No events match.")
    expect(page.get_by_role("button", name="CSV")).to_have_count(0)
    screenshot(page, "empty-light")
    empty.get_by_role("button", name="Clear 1 filter").click()
    expect(rows(page)).to_have_count(50)


def test_facets_add_take_away_and_exclude(sign_in: SignIn, screenshot: Screenshot) -> None:
    page = sign_in()
    table_is_there(page)
    page.get_by_test_id("facet-status-FAILURE").click()
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_role("textbox", name="Search")).to_have_value("status:FAILURE")
    page.get_by_test_id("facet-status-DENIED").click()
    expect(rows(page)).to_have_count(2)
    expect(page.get_by_test_id("facet-status-SUCCESS")).to_be_visible()
    screenshot(page, "facets-light")
    page.get_by_test_id("facet-status-FAILURE").click()
    expect(rows(page)).to_have_count(1)
    expect(row(page, "rita@acme.example", "DENIED")).to_be_visible()
    page.get_by_test_id("facet-status-DENIED").click()
    page.get_by_test_id("facet-action-task.update").click(modifiers=["Alt"])
    expect(page.get_by_role("textbox", name="Search")).to_have_value("-action:task.update")
    expect(row(page, "task.update")).to_have_count(0)
    page.get_by_role("button", name="Clear filters").click()
    expect(rows(page)).to_have_count(50)


def test_hidden_reads_can_be_shown(sign_in: SignIn) -> None:
    page = sign_in()
    table_is_there(page)
    expect(row(page, "audit.list")).to_have_count(0)
    page.get_by_role("button", name="Hide reads").click()
    expect(row(page, "ada@acme.example", "audit.list", "SUCCESS")).to_be_visible()
    url_has(page, "reads", "1")


def test_pages_turn_by_button_and_keyboard(sign_in: SignIn) -> None:
    page = sign_in("/?q=task.update")
    table_is_there(page)
    first = rows(page).first.get_attribute("data-id")
    expect(page.get_by_text("50 of 120 events")).to_be_visible()
    page.get_by_role("button", name="Older").click()
    expect(page.locator(f"[data-id='{first}']")).to_have_count(0)
    expect(rows(page)).to_have_count(50)
    page.keyboard.press("Alt+ArrowRight")
    expect(rows(page)).to_have_count(20)
    expect(page.get_by_role("button", name="Older")).to_be_disabled()
    page.keyboard.press("Alt+ArrowLeft")
    expect(rows(page)).to_have_count(50)
    page.get_by_role("button", name="Newer").click()
    expect(page.locator(f"[data-id='{first}']")).to_have_count(1)
    url_has(page, "cur", None)


def test_drag_over_the_histogram_zooms(sign_in: SignIn) -> None:
    page = sign_in("/?range=15m")
    table_is_there(page)
    plot = page.get_by_role("group", name="Events over time")
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 10, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 100, box["y"] + 20)
    page.mouse.move(box["x"] + 200, box["y"] + 20)
    page.mouse.up()
    page.wait_for_url(re.compile("win="))
    window = page.get_by_role("button", name=re.compile(r"\d\d-\d\d \d\d:\d\d – "))
    expect(window).to_be_visible()
    window.click()
    expect(window).to_have_count(0)
    expect(rows(page)).to_have_count(50)


def test_custom_range_is_a_window(sign_in: SignIn) -> None:
    page = sign_in("/?range=1h")
    table_is_there(page)
    page.get_by_role("button", name="Custom").click()
    expect(page.get_by_text("From (UTC)")).to_be_visible()
    page.get_by_role("button", name="Show", exact=True).click()
    page.wait_for_url(re.compile("win="))
    begins, ends = parameters(page)["win"].split("--")
    assert re.fullmatch(r"\d{8}T\d{6}Z", begins)
    assert begins < ends
    page.get_by_role("radio", name="24h").click()
    page.wait_for_url(re.compile("^(?!.*win=)"))


def test_drawer_opens_by_keyboard_and_the_row_has_the_focus_again(sign_in: SignIn, screenshot: Screenshot) -> None:
    page = sign_in("/?q=dock-1")
    table_is_there(page)
    page.get_by_role("heading", name="Audit log").click()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    first = rows(page).first
    expect(first).to_be_focused()
    page.keyboard.press("Enter")
    drawer = page.get_by_role("dialog", name="Event")
    expect(drawer).to_contain_text("asked to START dock-1/web; refused")
    url_has(page, "event", first.get_attribute("data-id"))
    screenshot(page, "event-denied-light")
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    expect(first).to_be_focused()
    url_has(page, "event", None)


def test_drawer_tells_all_of_a_command(sign_in: SignIn, screenshot: Screenshot) -> None:
    page = sign_in("/?q=dock-1")
    row(page, "STOP", "dock-1/web", "SUCCESS").click()
    drawer = page.get_by_role("dialog", name="Event")
    expect(drawer).to_contain_text("ada@acme.example asked to STOP dock-1/web; done after")
    steps = drawer.get_by_role("list", name="Time line").get_by_role("listitem")
    expect(steps).to_have_count(4)
    texts = [re.sub(r"\s+", " ", text) for text in steps.all_inner_texts()]
    for text, words in zip(
        texts,
        ("STOP recorded", "STOP accepted by the agent", "STOP ended on the agent SUCCESS", "STOP answered SUCCESS"),
        strict=True,
    ):
        assert words in text
    assert all(re.search(r"\+\d+ ms", text) for text in texts[1:])
    screenshot(page, "event-drawer-light")
    drawer.get_by_role("button", name="Show all events with this Operation id").click()
    expect(drawer).to_have_count(0)
    expect(rows(page)).to_have_count(1)
    page.wait_for_url(lambda url: parameters_of(url).get("q", "").startswith("cmd:"), timeout=60_000)


def test_change_is_shown_before_and_after(sign_in: SignIn) -> None:
    page = sign_in("/?q=task.update")
    rows(page).first.click()
    change = page.get_by_role("dialog", name="Event").get_by_role("table", name="Change")
    expect(change.get_by_role("row").nth(1)).to_have_text(re.compile("state.*− open.*\\+ done"))


def test_link_to_an_event_opens_it_and_back_closes_it(sign_in: SignIn, fleet: Fleet) -> None:
    event = json.loads(
        fleet.lading("audit", "ls", "action:rbac.role.assign", "target:emi", "-o", "jsonl").splitlines()[0]
    )
    page = sign_in(f"/?event={event['id']}")
    drawer = page.get_by_role("dialog", name="Event")
    expect(drawer).to_contain_text("asked to rbac.role.assign emi")
    drawer.get_by_role("button", name="Close").click()
    expect(drawer).to_have_count(0)
    rows(page).first.click()
    expect(drawer).to_be_visible()
    page.go_back()
    expect(drawer).to_have_count(0)


def test_event_of_another_organization_does_not_exist(sign_in: SignIn, fleet: Fleet, screenshot: Screenshot) -> None:
    where = ["--data", str(fleet.stack.folder / "server")]
    system = fleet.lading("server", "token", *where, "--org", "system", "--subject", "ada")
    fleet.lading("org", "create", "globex", "--admin", "hank", token=system)
    other = fleet.lading("server", "token", *where, "--org", "globex", "--subject", "hank")
    event = json.loads(fleet.lading("audit", "ls", "-o", "jsonl").splitlines()[0])
    page = sign_in(f"/?event={event['id']}", token=other)
    expect(page.get_by_text("There is no such event in your organization.")).to_be_visible()
    page.keyboard.press("Escape")
    expect(rows(page).first).to_be_visible()
    expect(page.get_by_text("dock-1")).to_have_count(0)
    expect(page.get_by_text("globex").first).to_be_visible()


def test_text_of_others_is_text(sign_in: SignIn) -> None:
    page = sign_in("/?q=evil.invalid")
    found = row(page, "RESTART", "dock-1/api")
    expect(found).to_contain_text(NASTY)
    found.click()
    expect(page.get_by_role("dialog", name="Event")).to_contain_text(NASTY)
    assert page.locator("img[src='x'], img[src*='evil']").count() == 0
    assert page.title() == "Audit log – Lading"


def test_zone_of_the_browser_and_utc(browser: Browser, fleet: Fleet) -> None:
    context = browser.new_context(timezone_id="Asia/Kolkata")
    page = context.new_page()
    page.goto(fleet.url)
    page.get_by_label("Token").fill(fleet.stack.admin_token)
    page.get_by_role("button", name="Sign in").click()
    time = rows(page).first.get_by_role("cell").first
    expect(time).to_have_text(re.compile(r"Z$"))
    expect(time).to_have_attribute("title", re.compile(r"\+0530$"))
    page.get_by_role("radio", name="Local").click()
    expect(time).to_have_text(re.compile(r"\+0530$"))
    url_has(page, "tz", "Local")
    context.close()


@pytest.mark.parametrize("name", ["CSV", "JSONL"])
def test_export_is_what_is_shown_and_is_recorded(
    sign_in: SignIn, fleet: Fleet, tmp_path: pathlib.Path, name: str
) -> None:
    page = sign_in("/?q=dock-1")
    table_is_there(page)
    ids = [found.get_attribute("data-id") for found in rows(page).all()]
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).click()
    assert re.fullmatch(
        rf"audit-acme-\d{{8}}T\d{{6}}Z-\d{{8}}T\d{{6}}Z\.{name.lower()}", download.value.suggested_filename
    )
    file = tmp_path / "export"
    download.value.save_as(file)
    with open(file, encoding="utf-8", newline="") as lines:
        exported = [line["id"] for line in (csv.DictReader(lines) if name == "CSV" else map(json.loads, lines))]
    assert exported == ids
    (record, *_) = (
        json.loads(line) for line in fleet.lading("audit", "ls", "audit.export", "-o", "jsonl").splitlines()
    )
    assert (record["actor"]["email"], record["request"]["format"]) == ("ada@acme.example", name.lower())


def test_role_that_may_not_export_or_read_is_told_so(sign_in: SignIn, fleet: Fleet, screenshot: Screenshot) -> None:
    page = sign_in(token=fleet.lading("token", "create", "rita", "--email", "rita@acme.example"))
    table_is_there(page)
    expect(page.get_by_role("button", name="CSV")).to_be_disabled()
    page.context.clear_cookies()
    sign_in(token=fleet.lading("token", "create", "norbert", "--email", "norbert@acme.example"))
    denied = page.get_by_test_id("error-denied")
    expect(denied).to_have_text("Your role does not allow reading the audit log. Ask an administrator of acme.")
    expect(page.get_by_role("textbox", name="Search")).to_have_count(0)
    screenshot(page, "denied-light")


def test_new_event_appears_while_live_is_on(sign_in: SignIn, fleet: Fleet) -> None:
    page = sign_in("/?live=true")
    table_is_there(page)
    expect(page.get_by_role("switch", name="Live")).to_be_checked()
    fleet.lading("restart", "dock-1/api", "--reason", "seen live")
    new = rows(page).filter(has_text="seen live")
    expect(new).to_have_count(1)
    expect(new).to_have_class(re.compile("new"))
    expect(new).to_contain_text("SUCCESS")
    page.get_by_role("button", name="Older").click()
    page.wait_for_url(re.compile("cur="))
    fleet.lading("restart", "dock-1/api", "--reason", "seen later")
    page.get_by_role("button", name=re.compile(r"^\d+ new events?$")).click()
    expect(rows(page).filter(has_text="seen later")).to_have_count(1)


def test_session_that_ends_keeps_what_is_shown_and_the_link(
    sign_in: SignIn, fleet: Fleet, screenshot: Screenshot
) -> None:
    short = fleet.lading("token", "create", "ada", "--email", "ada@acme.example", "--lifetime", "30s")
    page = sign_in("/?q=dock-1", token=short)
    expect(page.get_by_test_id("session-soon")).to_contain_text("Your session ends in 1 min.")
    ended = page.get_by_test_id("error-expired")
    expect(ended).to_contain_text("Sign in again to continue; this page's link is kept.")
    assert rows(page).count() > 1
    screenshot(page, "session-ended-light")
    ended.get_by_role("link", name="Sign in").click()
    page.get_by_label("Token").fill(fleet.stack.admin_token)
    page.get_by_role("button", name="Sign in").click()
    table_is_there(page)
    assert parameters(page) == {"q": "dock-1"}


def test_server_that_is_down_is_said_to_be_and_comes_back_by_itself(
    sign_in: SignIn, fleet: Fleet, screenshot: Screenshot
) -> None:
    page = sign_in("/?live=true")
    table_is_there(page)
    (server,) = [process for process in fleet.stack.processes if process.name == "server" and process.is_running]
    server.terminate()
    try:
        expect(page.get_by_text("Live paused: the server did not answer.")).to_be_visible()
        expect(rows(page)).to_have_count(50)
        page.get_by_role("radio", name="7d").click()
        down = page.get_by_test_id("error-down")
        expect(down).to_contain_text(
            "The control plane cannot be reached. Nothing is shown because nothing could be read."
        )
        expect(down).to_contain_text(fleet.stack.address)
        expect(down).to_contain_text("Last answer: ")
        expect(rows(page)).to_have_count(0)
        screenshot(page, "server-down-light")
    finally:
        fleet.stack.start_server()
    expect(rows(page)).to_have_count(50, timeout=60_000)


def test_badge_says_how_far_the_log_was_verified_and_an_event_has_its_proof(
    sign_in: SignIn, screenshot: Screenshot, tmp_path: pathlib.Path, fleet: Fleet
) -> None:
    page = sign_in("/?range=15m")
    badge = page.get_by_test_id("integrity-badge")
    expect(badge).to_have_text(re.compile(r"^Verified to #[\d\u00a0]+, \d+ s ago, "))
    table_is_there(page)
    screenshot(page, "integrity-badge")
    row(page, "START", "dock-1/web", "SUCCESS").click()
    proof = page.get_by_test_id("proof")
    expect(proof).to_have_text("In the log")
    proof.scroll_into_view_if_needed()
    screenshot(page, "integrity-proof")
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download proof").click()
    file = tmp_path / "event.tlog-proof"
    downloading.value.save_as(file)
    assert file.read_text().startswith("c2sp.org/tlog-proof@v1\n")
    page.get_by_role("button", name="Recheck now").click()
    expect(proof).to_have_text("In the log")
    expect(badge).to_have_text(re.compile("^Verified to #"))


def test_badge_leads_to_what_was_checked_and_by_which_key(
    sign_in: SignIn, screenshot: Screenshot, fleet: Fleet
) -> None:
    assert json.loads(fleet.lading("audit", "verify", "-o", "json"))["intact"]
    page = sign_in("/?range=15m")
    page.get_by_test_id("integrity-badge").get_by_role("link").click()
    expect(page.get_by_role("heading", name="Integrity")).to_be_visible()
    assert urlsplit(page.url).path == "/integrity"
    expect(page).to_have_title("Integrity – Lading")
    verdict = page.get_by_test_id("integrity-verdict")
    expect(verdict).to_have_text(re.compile(r"^Verified to #[\d\u00a0]+, \d+ s ago, 1 of 1 agents as witnesses"))
    facts = page.get_by_role("table", name="Log and key")
    with Client(fleet.stack.address, token=fleet.stack.admin_token) as client:
        key = client.audit.GetCheckpoint(GetCheckpointRequest()).log_key
    expect(facts).to_contain_text(key)
    expect(facts).to_contain_text("by ada@acme.example, the whole log")
    witnesses = page.get_by_role("table", name="Witnesses")
    expect(witnesses).to_contain_text("dock-1")
    expect(witnesses).to_contain_text(re.compile("behind|up to the last"))
    commands = page.get_by_role("table", name="Commands")
    expect(commands).to_contain_text(f"lading audit verify --server {fleet.stack.address}")
    screenshot(page, "integrity-page")
    page.get_by_role("button", name="Check again").click()
    expect(verdict).to_have_text(re.compile(r"^Verified to #"))
    page.reload()
    expect(verdict).to_have_text(re.compile(r"^Verified to #"))
    page.get_by_role("link", name="Audit log").click()
    table_is_there(page)


def test_steps_of_a_command_show_each_its_proof(sign_in: SignIn, screenshot: Screenshot) -> None:
    page = sign_in("/?range=15m")
    row(page, "START", "dock-1/web", "SUCCESS").click()
    steps = page.get_by_role("list", name="Time line").get_by_role("listitem")
    expect(steps).to_have_count(4)
    expect(page.get_by_role("img", name=re.compile("^In the log of "))).to_have_count(4)
    screenshot(page, "time-line-proofs")


def test_page_about_integrity_is_for_those_who_may_read(sign_in: SignIn, fleet: Fleet) -> None:
    page = sign_in("/integrity", token=fleet.lading("token", "create", "nora", "--email", "nora@acme.example"))
    expect(page.get_by_text("Your role does not allow reading the audit log.")).to_be_visible()
    expect(page.get_by_role("table", name="Log and key")).to_have_count(0)


def test_log_that_was_changed_is_red_and_the_page_says_what_to_do(
    browser: Browser, tmp_path: pathlib.Path, screenshot: Screenshot
) -> None:
    with Stack(tmp_path / "stack") as stack:
        stack.start_server()
        with Client(stack.address, token=stack.admin_token) as client:
            at = client.record("task.update", ["task:42"], reason="as it was")
        (path,) = stack.folder.rglob("lading.db")
        with sqlite3.connect(path) as database:
            database.execute("UPDATE events SET reason = 'as it never was' WHERE reason = 'as it was'")
        database.close()
        url = stack.start_viewer()
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.goto(url + "/?range=15m")
        page.get_by_label("Token").fill(stack.admin_token)
        page.get_by_role("button", name="Sign in").click()
        badge = page.get_by_test_id("integrity-badge")
        expect(badge).to_have_text(f"Broken at #{at}")
        badge.get_by_role("link").click()
        expect(page.get_by_test_id("integrity-verdict")).to_have_text(f"Broken at #{at}")
        broken = page.get_by_test_id("integrity-broken")
        expect(broken).to_contain_text(f"At event #{at}: reason is shown as something else than what was recorded.")
        expect(broken).to_contain_text("Change nothing: keep the database")
        page.get_by_role("button", name="Check again").click()
        expect(broken).to_be_visible()
        screenshot(page, "integrity-broken")
        broken.get_by_role("link", name="Open the event").click()
        expect(page.get_by_test_id("proof")).to_contain_text(f"Broken at #{at}")
        screenshot(page, "integrity-broken-event")
        with sqlite3.connect(path) as database:
            database.execute("UPDATE events SET reason = 'as it was' WHERE reason = 'as it never was'")
        database.close()
        page.goto(url + "/integrity")
        page.get_by_role("button", name="Check again").click()
        expect(page.get_by_test_id("integrity-verdict")).to_have_text(re.compile("^Verified to #"))
        context.close()
