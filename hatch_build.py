"""Generates the Python code of the contract before any build, editable ones too."""

import pathlib
import shutil
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = pathlib.Path(__file__).parent
PROTOS = ROOT / "protos"


def generate() -> None:
    """Run protoc over `protos/lading`; raises RuntimeError with protoc's exit code when it fails."""
    import grpc_tools
    from grpc_tools import protoc

    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    plugin_folder = pathlib.Path(sys.executable).parent
    plugins = []
    for name in ("protoc-gen-mypy_grpc", "protoc-gen-mypy"):
        path = shutil.which(name) or str(plugin_folder / name)
        plugins.append(f"--plugin={name}={path}")
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("lading/**/*.proto"))
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{include}",
            *plugins,
            f"--python_out={PROTOS}",
            f"--mypy_out=quiet:{PROTOS}",
            f"--grpc_python_out={PROTOS}",
            f"--mypy_grpc_out=quiet:{PROTOS}",
            *sources,
        ]
    )
    if code:
        raise RuntimeError(f"protoc failed with exit code {code}")


class GenerateContract(BuildHookInterface[Any]):
    """hatchling hook: see `generate`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate()


if __name__ == "__main__":
    generate()
