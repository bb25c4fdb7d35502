"""A disk of a few megabytes, to be filled: a tmpfs of the test's own."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator

import pytest

SIZE_BYTES = 10 << 20


class SmallDisk:
    """`fill` it, and `free` it again."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._filling = folder / "others"

    def fill(self) -> None:
        """Not a byte is left; what others delete is taken too."""
        with open(self._filling, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def free(self) -> None:
        self._filling.unlink()


@contextlib.contextmanager
def small_disk(folder: pathlib.Path) -> Iterator[SmallDisk]:
    """Skips the test where nothing can be mounted, and fails instead where CI=true."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "lading-test", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        reason = f"a small disk cannot be mounted: {done.stderr.strip()}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
