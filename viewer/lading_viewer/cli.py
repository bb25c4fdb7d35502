"""`lading viewer`: see and search the audit log in a browser."""

import socket
import stat
from pathlib import Path
from typing import Any

import click

LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULT_LISTEN = "127.0.0.1:8501"
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
ANY_FILE = click.Path(dir_okay=False, path_type=Path)
CODE_HELP = "Two lines, a code and a token, mode 0600: /signin?code=CODE signs in once, and the file is deleted."


@click.group()
def viewer() -> None:
    """See and search the audit log in a browser."""


@viewer.command()
@click.option(
    "--server",
    default="127.0.0.1:7443",
    show_default=True,
    envvar="LADING_SERVER",
    metavar="HOST:PORT[,…]",
    help="Server to read from; of several with one database, the IP addresses.",
)
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, metavar="HOST:PORT", help="Port 0: a free one.")
@click.option("--ca", type=EXISTING, envvar="LADING_CA", help="Certificates (PEM) that may sign the server's.")
@click.option("--tls-cert", type=EXISTING, help="Certificate (PEM) of the viewer itself.")
@click.option("--tls-key", type=EXISTING, help="Its key (PEM).")
@click.option("--host-name", "names", multiple=True, metavar="NAME", help="Name it may be called by; repeatable.")
@click.option("--one-time-code-file", "code_file", type=ANY_FILE, help=CODE_HELP)
@click.option("--port-file", type=ANY_FILE, help="Gets HOST:PORT once the viewer answers.")
@click.option("--data", type=FOLDER, help="Where keys and last checkpoints of logs are kept; else in memory only.")
def run(
    server: str,
    listen: str,
    ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    names: tuple[str, ...],
    code_file: Path | None,
    port_file: Path | None,
    data: Path | None,
) -> None:
    """Serve the viewer until it is stopped.

    People sign in with a token of their own (`lading token create`). The viewer reads with that token and has no
    rights by itself. It speaks plaintext on loopback only.

    \b
    Examples:
      lading viewer run
      lading viewer run --server control.example:7443 --ca ca.pem
      lading viewer run --listen 0.0.0.0:443 --tls-cert cert.pem --tls-key key.pem --host-name audit.example
    """
    host, port = _checked(server, listen, tls_cert, tls_key, code_file)
    with _bind(host, port) as bound:
        where = f"{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"

        def ready() -> None:
            click.echo(f"Viewer of {server} on {'https' if tls_cert else 'http'}://{where}", err=True)
            if port_file:
                port_file.write_text(f"{where}\n", encoding="ascii")

        hosts = {*names, *LOOPBACK} if host in LOOPBACK else set(names)
        _serve(bound, ready, (server, ca, data), code_file, hosts, {"ssl_certfile": tls_cert, "ssl_keyfile": tls_key})


def _checked(
    server: str, listen: str, tls_cert: Path | None, tls_key: Path | None, code_file: Path | None
) -> tuple[str, int]:
    """Host and port to listen on."""
    from lading_client.channel import parse_addresses

    try:
        parse_addresses(server)
    except ValueError as problem:
        raise click.UsageError(f"--server: {problem}") from None
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise click.UsageError(f"--listen: {listen!r} is not HOST:PORT, as in {DEFAULT_LISTEN}.")
    if bool(tls_cert) != bool(tls_key):
        raise click.UsageError("--tls-cert and --tls-key belong together.")
    if host not in LOOPBACK and not tls_cert:
        raise click.UsageError(f"{listen} is not on loopback, and plaintext would show tokens: give --tls-cert.")
    if code_file and not code_file.is_file():
        raise click.UsageError(f"--one-time-code-file: {code_file} does not exist.")
    if code_file and stat.S_IMODE(code_file.stat().st_mode) & 0o077:
        raise click.UsageError(f"--one-time-code-file: others can read {code_file}. Run: chmod 600 {code_file}")
    return host, int(port)


def _bind(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as problem:
        raise click.ClickException(
            f"cannot listen on {host}:{port}: {problem.strerror}. Try another --listen."
        ) from None


def _serve(
    bound: socket.socket,
    ready: Any,
    where: tuple[str, Path | None, Path | None],
    code_file: Path | None,
    hosts: set[str],
    tls: dict[str, Any],
) -> None:
    # Late: Streamlit and uvicorn take a while to load, and `lading --help` should not.
    import uvicorn

    from lading_viewer import connection, web

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    connection.configure(connection.Connection(*where))
    app = web.app(one_time_code_file=code_file, hosts=hosts)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="websockets-sansio", server_header=False, **tls
    )
    Server(config).run(sockets=[bound])
    connection.clients().close()
