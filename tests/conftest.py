"""Fixtures: the real things that tests run against. What is not installed is skipped, and fails under CI=true."""

import os
import pathlib
import signal
from collections.abc import Generator, Iterator

import hypothesis
import pytest
from playwright.sync_api import Browser, Page

from tests import browser as browsers
from tests import postgres as clusters
from tests.engine import Engine, engine_daemon, podman_service
from tests.stack import Stack

# A machine that is busy is no finding.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

MARKERS = {"engine": "engine", "postgres": "postgres", "own_postgres": "postgres", "browser": "browser"}
FAILED = pytest.StashKey[bool]()


def pytest_configure() -> None:
    # A run that is terminated ends what it started, as one that is interrupted does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Nor does it matter how it was started: behind nohup or `&` what tests start would not hear these.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKERS:
                item.add_marker(MARKERS[fixture])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    excused = hasattr(report, "wasxfail") or item.get_closest_marker("beside")
    if report.skipped and not excused and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def postgres() -> Iterator[clusters.Cluster]:
    """A PostgreSQL cluster for all tests, which does not wait for the disk; do not stop it (see `own_postgres`)."""
    if clusters.programs() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with clusters.cluster(durable=False) as cluster:
        yield cluster


@pytest.fixture
def own_postgres() -> Iterator[clusters.Cluster]:
    """A PostgreSQL cluster for this test alone: it may be stopped, killed and paused."""
    if clusters.programs() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with clusters.cluster() as cluster:
        yield cluster


@pytest.fixture
def postgres_url(postgres: clusters.Cluster) -> str:
    """URL of a new, empty PostgreSQL database."""
    return postgres.fresh_database()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """URL of a new, empty database: the test runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'lading.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A Docker engine for all tests; do not stop it, and remove your containers."""
    with engine_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def podman() -> Iterator[Engine]:
    """Podman, which has Docker's API too; as `engine`."""
    with podman_service() as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for one module: no asyncio test may stand in it."""
    if browsers.program() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with browsers.chromium() as chromium:
        yield chromium


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page without cookies, 1440 × 900."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield context.new_page()
    context.close()


@pytest.fixture
def stack(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Stack]:
    """The real processes, nothing started yet; on SQLite unless the test also takes `database_url`."""
    url = request.getfixturevalue("database_url") if "database_url" in request.fixturenames else None
    with Stack(tmp_path / "stack", url) as processes:
        yield processes
        if request.node.stash.get(FAILED, False):
            processes.print_logs()
