"""What an idle agent costs the server in memory, and whether a storm of them gets in."""

import contextlib
import datetime
import ipaddress
import pathlib
import signal
import time
from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench import machine, report
from bench.program import Program, started
from bench.server import BUSY_SECONDS
from lading_server import bootstrap
from lading_server.settings import Settings

TITLE = report.TITLES[2]
COUNTS, COUNTS_QUICK = (100, 1_000, 5_000), (100,)
TLS_COUNT, TLS_COUNT_QUICK = 1_000, 100
STORM, STORM_QUICK = 6_000, 300
WARM = 50
FLEETS = 2
AT_ONCE = 100
KB_MAX, KB_TLS_MAX = 60, 110
SETTLE_SECONDS = 3.0


def run(folder: pathlib.Path, *, quick: bool) -> None:
    """Measure, and keep the section."""
    load_before = machine.load()
    settings = Settings(folder / "data")
    bootstrap.initialize(settings, "acme", "ada", "", 24 * 3600)
    certificate = write_certificate(folder)
    rows, lines = [], []
    for count in COUNTS_QUICK if quick else COUNTS:
        row, kb = measure(settings.data, count, None)
        rows.append(row)
        lines.append(report.verdict(f"{count} agents, KB each", kb, KB_MAX, at_most=True, digits=0))
    row, kb = measure(settings.data, TLS_COUNT_QUICK if quick else TLS_COUNT, certificate)
    rows.append(row)
    lines.append(report.verdict("with TLS, KB each", kb, KB_TLS_MAX, at_most=True, digits=0))
    lines.append(storm(settings.data, STORM_QUICK if quick else STORM))
    head = ["agents", "RSS before MB", "RSS after MB", "KB per agent", "connecting s", "idle CPU %"]
    report.keep(TITLE, "\n\n".join([EXPLANATION, report.table(head, rows), "\n".join(lines)]), load_before, quick=quick)


EXPLANATION = f"""\
Server on SQLite, a new one for each row, with {WARM} agents before the first reading; each agent has its own TCP
connection, its session in the database and its STARTED event, and beats every 15 s. The clients are other processes."""


@contextlib.contextmanager
def fleet(address: str, data: pathlib.Path, first: int, count: int, at_once: int, *tls: str) -> Iterator[list[Program]]:
    """Agents in FLEETS processes, which have begun to connect."""
    share = count // FLEETS
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                started(
                    "bench.agents",
                    *(address, str(data), str(first + number * share), str(share), str(at_once), *tls),
                    core=machine.LOAD_CORE,
                )
            )
            for number in range(FLEETS)
        ]


def connected(programs: list[Program]) -> int:
    """How many agents have their Welcome, once each has it or has failed."""
    return sum(int(program.read_line().removeprefix("connected ")) for program in programs)


def measure(data: pathlib.Path, count: int, pair: tuple[str, str] | None) -> tuple[list[str], float]:
    """A row of the table, and KB for each agent."""
    tls, trusted = (("", *pair), pair[:1]) if pair else ((), ())
    with started("bench.server", "audited", str(data), *tls) as server:
        address = server.read_line()
        with fleet(address, data, 1_000_000, WARM, AT_ONCE, *trusted) as early:
            expect(connected(early), WARM)
            time.sleep(SETTLE_SECONDS)
            before = server.resident_bytes
            began = time.monotonic()
            with fleet(address, data, 0, count, AT_ONCE, *trusted) as programs:
                expect(connected(programs), count)
                seconds = time.monotonic() - began
                time.sleep(SETTLE_SECONDS)
                cpu, since = server.cpu_seconds, time.monotonic()
                time.sleep(2 * SETTLE_SECONDS)
                idle = (server.cpu_seconds - cpu) / (time.monotonic() - since)
                after = server.resident_bytes
    kb = (after - before) / count / 1024
    cells = [f"{before / 2**20:.0f}", f"{after / 2**20:.0f}", f"{kb:.1f}", f"{seconds:.1f}", f"{idle * 100:.1f}"]
    return [f"{count}{', TLS' if pair else ''}", *cells], kb


def storm(data: pathlib.Path, count: int) -> str:
    """All at once, while the event loop stands still: core must keep every one of them for us."""
    with started("bench.server", "busy", str(data)) as server:
        address = server.read_line()
        server.signal(signal.SIGUSR1)
        began = time.monotonic()
        with fleet(address, data, 0, count, count) as programs:
            welcome = connected(programs)
        seconds = time.monotonic() - began
    return report.verdict(
        f"{count} connecting at once while the loop stands still for {BUSY_SECONDS:g} s, welcome after {seconds:.0f} s",
        welcome,
        count,
        digits=0,
    )


def expect(found: int, wanted: int) -> None:
    """Raise RuntimeError unless each is there."""
    if found != wanted:
        raise RuntimeError(f"only {found} of {wanted} agents were let in")


def write_certificate(folder: pathlib.Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that nobody else signed, and its key: the files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    at = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(at - datetime.timedelta(hours=1))
        .not_valid_after(at + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(files[0]), str(files[1])
