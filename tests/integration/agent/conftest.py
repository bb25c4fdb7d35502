import pytest

from tests.engine import Engine


@pytest.fixture(params=["docker", "podman"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine whose API the docker runtime speaks; remove your containers."""
    found: Engine = request.getfixturevalue("engine" if request.param == "docker" else "podman")
    return found
