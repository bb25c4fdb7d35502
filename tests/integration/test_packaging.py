"""What is shipped: the wheel, built offline from a copy of the sources, and what a base install loads."""

import email.message
import email.parser
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator

import pytest

from tests.unit.test_imports import PACKAGES, ROOT

# What belongs to an extra: an agent's host and a person's machine never install it.
EXTRAS_ONLY = {"sqlalchemy", "alembic", "psycopg", "streamlit", "aiodocker", "uvloop", "pyjwt"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    sources = tmp_path_factory.mktemp("sources") / "lading"
    skipped = shutil.ignore_patterns(".git", ".venv", ".*_cache", "node_modules", "__pycache__", "*_pb2*", "tests")
    shutil.copytree(ROOT, sources, ignore=skipped)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", sources.parent, sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = sources.parent.glob("lading-*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.parser.Parser().parsestr(wheel.read(name).decode())


def test_wheel_holds_every_file_of_every_package(wheel: zipfile.ZipFile) -> None:
    shipped = set(wheel.namelist())
    for package, (root, _) in PACKAGES.items():
        for path in (ROOT / root / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT / root).as_posix() in shipped


def test_wheel_holds_generated_code_with_its_types(wheel: zipfile.ZipFile) -> None:
    shipped = set(wheel.namelist())
    contracts = sorted((ROOT / "protos/lading/v1").glob("*.proto"))
    assert contracts
    for contract in contracts:
        for ending in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"):
            assert f"lading/v1/{contract.stem}{ending}" in shipped
    assert "lading/v1/py.typed" in shipped


def test_wheel_holds_nothing_but_our_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_base_install_needs_nothing_of_the_extras(metadata: email.message.Message) -> None:
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert needed
    for line in needed:
        assert not any(line.lower().startswith(name) for name in EXTRAS_ONLY), line


@pytest.mark.parametrize("module", ["lading_client", "lading_client.cli", "lading_agent"])
def test_importing_loads_neither_sqlalchemy_nor_streamlit(module: str) -> None:
    check = f"import sys, {module}; print(*sorted({{'sqlalchemy', 'streamlit', 'lading_server'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_constraints_hold_exact_versions_and_no_hosts() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
    for name in ("grpcio", "grpcio-tools", "protobuf", "hatchling", "mypy-protobuf", "ruff", "mypy", "pytest"):
        assert any(line.startswith(f"{name}==") for line in lines), f"{name} is not pinned"


def test_build_tools_are_pinned_alike_in_both_places() -> None:
    pinned = set((ROOT / "constraints.txt").read_text().splitlines())
    project = (ROOT / "pyproject.toml").read_text()
    required = project.partition("requires = [")[2].partition("]")[0]
    for requirement in required.replace('"', "").split(","):
        assert requirement.strip() in pinned
