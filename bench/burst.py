"""Short bursts of unary calls by h2load: a client in C, which leaves the cores to the servers."""

import pathlib
import shutil
import statistics
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

CONNECTIONS_MAX = 8
BURST_SECONDS_MAX = 120


@dataclass(frozen=True, slots=True)
class Burst:
    """`seconds`: from the first request to the last answer. `durations`: of each call, in milliseconds."""

    seconds: float
    durations: list[float]

    @property
    def rate(self) -> float:
        """Calls per second."""
        return len(self.durations) / self.seconds


def require() -> None:
    """Raise RuntimeError when h2load is not installed."""
    if shutil.which("h2load") is None:
        raise RuntimeError("h2load not found: apt-get install nghttp2-client")


def fire(address: str, path: str, request: bytes, token: str, calls: int, in_flight: int) -> Burst:
    """`calls` gRPC calls, so many in flight at any time. Raises RuntimeError unless each is answered.

    h2load sees HTTP's status, not gRPC's, which is in the trailers: count the events that they left.
    """
    connections = min(CONNECTIONS_MAX, in_flight)
    with tempfile.TemporaryDirectory(prefix="lading-bench-") as name:
        body, log = pathlib.Path(name, "body"), pathlib.Path(name, "log")
        body.write_bytes(struct.pack(">BI", 0, len(request)) + request)
        headers = ["te: trailers", "content-type: application/grpc", f"authorization: Bearer {token}"]
        command = ["h2load", f"-n{calls}", f"-c{connections}", f"-m{in_flight // connections}", f"-d{body}"]
        command += [f"--log-file={log}", *(f"-H{header}" for header in headers), f"http://{address}{path}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BURST_SECONDS_MAX)
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    if done.returncode or len(rows) != calls or any(row[1] != "200" for row in rows):
        raise RuntimeError(f"h2load did not get its {calls} answers:\n{done.stdout}{done.stderr}")
    starts = [int(row[0]) for row in rows]
    durations = [int(row[2]) for row in rows]
    ends = [start + duration for start, duration in zip(starts, durations, strict=True)]
    return Burst((max(ends) - min(starts)) / 1e6, [duration / 1000 for duration in durations])


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float]) -> str:
    """Median, and the range that holds the middle half: `0.93 (0.91-0.95)`."""
    if len(values) < 4:
        return f"{statistics.median(values):.2f}"
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.2f} ({low:.2f}-{high:.2f})"
