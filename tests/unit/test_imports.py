"""Who may import whom. The tables are the rules of ARCHITECTURE.md; the tests walk the imports of every module."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# package: (its source root, which other packages of ours it may import)
PACKAGES: dict[str, tuple[str, set[str]]] = {
    "lading": ("protos", set()),
    "lading_client": ("client", {"lading"}),
    "lading_agent": ("agent", {"lading"}),
    "lading_viewer": ("viewer", {"lading", "lading_client"}),
    "lading_migrations": ("migrations", set()),
    "lading_server": ("server", {"lading", "lading_migrations"}),
}

# Layers of the server, from the top down: a module imports its own part and lower layers only. What is named nowhere
# here is a pure file, the lowest layer of all; pure files may import each other.
SERVER_LAYERS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"root", "workers"},
    {"interceptors", "services"},
    {"conductor"},
    {"bootstrap", "boots", "identity", "dispatch", "takeover"},
    {"growth", "orders", "reconciliation", "waiters"},
    {"arrears", "ends", "sessions"},
    {"call"},
    {"ledger"},
    {"store"},
]

# What comes from outside, and the only parts of the server that may import it.
SERVER_OUTSIDE: dict[str, set[str]] = {
    "grpc": {"cli", "root", "tuning", "interceptors", "services"},
    "grpc_status": {"cli", "root", "interceptors", "services"},
    "sqlalchemy": {"ledger", "store"},
    "alembic": {"store"},
    "lading.v1": {"cli", "root", "interceptors", "services"},
}

# Parts whose servicers do not import each other; what they share (how rows become messages) is beside them.
SERVER_SIBLINGS = {"services"}


def modules(package: str) -> dict[str, pathlib.Path]:
    """Every module of the package by its dotted name, generated ones left out."""
    root = ROOT / PACKAGES[package][0]
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((root / package).rglob("*.py"))
        if "_pb2" not in path.stem
    }


def imported(path: pathlib.Path) -> Iterator[str]:
    """Dotted names that the file imports, inside functions too; `from a import b` gives `a.b`: b may be a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the pages of the viewer cannot have them, so nobody has"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def part(module: str) -> str:
    """Of a module of the server, the file or folder directly below `lading_server`."""
    return module.split(".")[1] if "." in module else ""


def layer(name: str) -> int:
    """0 is the top; pure files are below all others."""
    return next((number for number, parts in enumerate(SERVER_LAYERS) if name in parts), len(SERVER_LAYERS))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_the_table_allows(package: str) -> None:
    allowed = PACKAGES[package][1] | {package}
    for module, path in modules(package).items():
        for name in imported(path):
            top = name.partition(".")[0]
            assert top not in PACKAGES or top in allowed, f"{module} imports {name}"


def test_server_imports_downwards_only() -> None:
    pure = len(SERVER_LAYERS)
    for module, path in modules("lading_server").items():
        here = part(module)
        for name in imported(path):
            there = part(name) if is_within(name, "lading_server") else here
            both_pure = layer(here) == layer(there) == pure
            assert there == here or both_pure or layer(there) > layer(here), f"{module} imports {name}"


@pytest.mark.parametrize("outside", SERVER_OUTSIDE)
def test_server_meets_the_outside_only_where_the_table_says(outside: str) -> None:
    for module, path in modules("lading_server").items():
        if part(module) not in SERVER_OUTSIDE[outside]:
            for name in imported(path):
                assert not is_within(name, outside), f"{module} imports {name}"


@pytest.mark.parametrize("folder", SERVER_SIBLINGS)
def test_services_do_not_import_each_other(folder: str) -> None:
    found = {name: path for name, path in modules("lading_server").items() if part(name) == folder}
    servicers = {module for module, path in found.items() if "Servicer):" in path.read_text()}
    assert len(servicers) >= 7
    for module, path in found.items():
        for name in imported(path):
            others = [other for other in servicers if other != module and is_within(name, other)]
            assert not others, f"{module} imports {name}"


def test_every_package_is_typed() -> None:
    for package, (root, _) in PACKAGES.items():
        assert (ROOT / root / package / "py.typed").exists(), f"{package} has no py.typed"
