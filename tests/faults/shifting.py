"""Program: `lading` with a clock that a test sets: `python -m tests.faults.shifting OFFSET ARGUMENT…`.

The file OFFSET holds seconds, read at each look at the clock. It shifts `time.time_ns`, by which server, journal and
runtimes know the time of day; not `time.time`, by which gRPC holds a call's time against a deadline that its C part
made, nor the times in an agent's frames (protobuf's GetCurrentTime). The monotonic clock is left alone, as a jump
leaves it.
"""

import os
import sys
import time


def main(offset: str, *arguments: str) -> None:
    file, real = os.open(offset, os.O_RDONLY), time.time_ns

    def shifted() -> int:
        return real() + int(float(os.pread(file, 32, 0) or b"0") * 1e9)

    time.time_ns = shifted
    from lading_client.cli import main as lading

    sys.argv = ["lading", *arguments]
    lading()


if __name__ == "__main__":
    main(*sys.argv[1:])
