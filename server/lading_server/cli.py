"""The command group `lading server`."""

import os
import pathlib
import re
from typing import Any

import click

from lading_server import admission, errors, names
from lading_server.event import SYSTEM
from lading_server.settings import AUDIENCE, DATA, LISTEN, RECORD_EXEC_BYTES_MAX, InvalidSettings, Settings

# Whatever needs the database or grpc is imported by the command that uses it, so that `--help` is quick.

FAILED, USAGE, UNREACHABLE = 1, 2, 7
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LIFETIME_DAYS_MAX = 366
REASON_MAX = 1_000


class Commands(click.Group):
    """Says what went wrong in one sentence, and ends with the exit code for it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.Error as failure:
            click.echo(f"lading server: {failure.message}", err=True)
            if isinstance(failure, InvalidSettings):
                ctx.exit(USAGE)
            ctx.exit(UNREACHABLE if failure.code == errors.Code.UNAVAILABLE else FAILED)


class Lifetime(click.ParamType[int]):
    """`30d`, `12h`, `90m`, `45s`; the value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", str(value))
        seconds = int(found[1]) * UNITS[found[2]] if found else 0
        if not 0 < seconds <= LIFETIME_DAYS_MAX * UNITS["d"]:
            self.fail(f"{value!r} is not a duration like 30d or 12h, of at most {LIFETIME_DAYS_MAX}d", param, ctx)
        return seconds


def organization_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Refuse what is not the name of an organization."""
    if not names.ID.fullmatch(value) or len(value) > 63:
        raise click.BadParameter("must be 1 to 63 of a-z A-Z 0-9 _ . - and begin with a letter or digit")
    return value


def subject_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Refuse what cannot be the subject or e-mail of a token."""
    if not re.fullmatch(r"[^\x00-\x1f\x7f\ud800-\udfff]{0,256}", value):
        raise click.BadParameter("must be at most 256 characters, none of them a control character")
    return value


data_option = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default=DATA,
    envvar="LADING_DATA",
    show_default=True,
    show_envvar=True,
    help="Directory of the keys, and of the embedded database.",
)
database_option = click.option(
    "--database",
    metavar="URL",
    default="",
    envvar="LADING_DATABASE",
    show_envvar=True,
    help="postgresql://USER@HOST/NAME or sqlite:///FILE; without it lading.db in the data directory.",
)
audience_option = click.option(
    "--audience", default=AUDIENCE, show_default=True, help="Audience (aud) that tokens must name."
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": False})
def server() -> None:
    """The server: audits every call, and commands the agents.

    \b
    The first time:
      lading server init --org acme --admin ada --email ada@acme.example > ada.token
      lading server run
      LADING_TOKEN=$(cat ada.token) lading whoami
    """
    os.umask(0o077)  # keys and the log are for this user alone


@server.command(short_help="Make database, keys, organization and admin.")
@data_option
@database_option
@audience_option
@click.option("--org", required=True, callback=organization_name, help="Name of the first organization.")
@click.option("--admin", required=True, callback=subject_name, help="Id of its first admin, as in their tokens.")
@click.option("--email", default="", callback=subject_name, help="E-mail of the admin.")
@click.option("--lifetime", type=Lifetime(), default="30d", show_default=True, help="How long the token is valid.")
def init(data: pathlib.Path, database: str, audience: str, org: str, admin: str, email: str, lifetime: int) -> None:
    """Make database and keys, the first organization and its admin.

    Prints the admin's token on standard output, and nothing else. The admin is also admin of the organization
    `system`, whose admins make further organizations (`lading server token --org system`).

    \b
    Examples:
      lading server init --org acme --admin ada > ada.token
      lading server init --data /var/lib/lading --database postgresql://lading@db/lading --org acme --admin ada
    """
    from lading_server import bootstrap

    if org == SYSTEM:
        raise click.BadParameter(f"{SYSTEM} is Lading's own organization: choose another name", param_hint="'--org'")
    if not admin:
        raise click.BadParameter("must not be empty", param_hint="'--admin'")
    settings = _settings(data=data, database=database, audience=audience)
    click.echo(bootstrap.initialize(settings, org, admin, email, lifetime))
    # Not the URL itself: it may hold a password.
    where = " --database …" if database else ""
    click.echo(f"{data} is ready: lading server run --data {data}{where}", err=True)


@server.command(short_help="Serve until SIGTERM or SIGINT.")
@data_option
@database_option
@audience_option
@click.option("--listen", metavar="HOST:PORT", default=LISTEN, show_default=True, help="Port 0 takes a free one.")
@click.option("--tls-cert", type=click.Path(path_type=pathlib.Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=pathlib.Path), help="Its private key, PEM.")
@click.option("--issuer", default="", help="Accept tokens of this issuer too, by the keys in DATA/trusted-keys/*.pem.")
@click.option("--dev-identity", is_flag=True, help="Believe the header x-dev-user-id of callers on this machine.")
@click.option("--port-file", type=click.Path(path_type=pathlib.Path), help="Write HOST:PORT there once it serves.")
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(1, 64),
    default=1,
    help="So many processes on one address; PostgreSQL only. SIGHUP replaces them one by one.",
)
@click.option(
    "--replica-listen",
    metavar="HOST:PORT",
    default="",
    help="Where servers on other hosts reach this one; without it only those on this machine can.",
)
@click.option(
    "--connects-per-second",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    default=admission.PER_SECOND,
    show_default=True,
    help="Agents that each process lets in; more are told when their turn comes.",
)
@click.option(
    "--connects-burst",
    metavar="N",
    type=click.IntRange(1),
    default=admission.BURST,
    show_default=True,
    help="So many at once.",
)
@click.option(
    "--stream-lifetime",
    type=Lifetime(),
    default="60m",
    show_default=True,
    help="How long the stream of an agent lives, give or take a tenth, before it connects anew.",
)
@click.option(
    "--record-exec-bytes",
    metavar="N",
    type=click.IntRange(0, RECORD_EXEC_BYTES_MAX),
    default=0,
    show_default=True,
    help="Record the first N bytes that programs run by `lading exec` write; they can be erased.",
)
@click.option("--worker", type=int, default=0, hidden=True)
@click.pass_context
def run(
    ctx: click.Context,
    data: pathlib.Path,
    database: str,
    audience: str,
    listen: str,
    tls_cert: pathlib.Path | None,
    tls_key: pathlib.Path | None,
    issuer: str,
    dev_identity: bool,
    port_file: pathlib.Path | None,
    workers: int,
    replica_listen: str,
    connects_per_second: float,
    connects_burst: int,
    stream_lifetime: int,
    record_exec_bytes: int,
    worker: int,
) -> None:
    """Serve until SIGTERM or SIGINT; then let calls end and agents drain.

    Any number of servers may share a PostgreSQL database, on one host or on many. Each needs a data directory with the
    same keys: copy log-key.pem, log-name, token-key.pem and trusted-keys from the first one.

    \b
    Examples:
      lading server run
      lading server run --listen 0.0.0.0:7443 --tls-cert server.pem --tls-key server.key
      lading server run --data /var/lib/lading --database postgresql://lading@db/lading --workers 4
    """
    settings = _settings(
        data=data,
        listen=listen,
        database=database,
        tls_cert=tls_cert,
        tls_key=tls_key,
        development=dev_identity,
        issuer=issuer,
        audience=audience,
        replica_listen=replica_listen,
        connects_per_second=connects_per_second,
        connects_burst=connects_burst,
        stream_seconds=float(stream_lifetime),
        record_exec_bytes=record_exec_bytes,
        worker=worker,
    )
    if workers > 1:
        import asyncio

        from lading_server.workers import Workers

        ctx.exit(asyncio.run(Workers(settings, workers, options_of(ctx)).run(port_file)))
    from lading_server import bootstrap

    bootstrap.check(settings)
    from lading_server import root

    ctx.exit(root.run(settings, port_file))


@server.command()
@data_option
@database_option
def migrate(data: pathlib.Path, database: str) -> None:
    """Bring the database to this version's revision. Safe to repeat.

    \b
    Example:
      lading server migrate --database postgresql://lading@db/lading
    """
    from lading_server import bootstrap

    click.echo(f"the database is of revision {bootstrap.migrate(_settings(data=data, database=database))}", err=True)


@server.command()
@data_option
@database_option
@audience_option
@click.option("--org", required=True, callback=organization_name, help="Organization, `system` too.")
@click.option("--subject", required=True, callback=subject_name, help="Id of one of its admins.")
@click.option("--email", default="", callback=subject_name, help="E-mail of that admin.")
@click.option("--lifetime", type=Lifetime(), default="30d", show_default=True, help="How long the token is valid.")
def token(data: pathlib.Path, database: str, audience: str, org: str, subject: str, email: str, lifetime: int) -> None:
    """A new token for an admin, when the last one is lost. Recorded.

    It needs the data directory, not a running server. Everybody else gets tokens by `lading token create`.

    \b
    Example:
      lading server token --data /var/lib/lading --org acme --subject ada > ada.token
    """
    from lading_server import bootstrap

    settings = _settings(data=data, database=database, audience=audience)
    click.echo(bootstrap.issue_token(settings, org, subject, email, lifetime))


@server.command("accept-rollback", short_help="Go on with a database restored from a backup.")
@data_option
@database_option
@click.option("--org", required=True, callback=organization_name, help="Organization whose log went back.")
@click.option("--reason", required=True, help="Why; recorded.")
def accept_rollback(data: pathlib.Path, database: str, org: str, reason: str) -> None:
    """Go on with a database that was restored from a backup, after the newer one is lost for good. Recorded.

    The server refuses a log that does not extend what it signed of it. Stop the server first. Where the log `system`
    went back too, accept that first: what is accepted of others is recorded there.

    \b
    Examples:
      lading server accept-rollback --org system --reason 'disk of db-1 died'
      lading server accept-rollback --org acme --reason 'disk of db-1 died'

    Agents and people that saw the lost part refuse the log all the same, and say so: they cannot be told by the one
    whom they watch. Each goes on for itself:

    \b
      lading agent forget-log      an agent, on its host
      lading audit forget-log      a person who has verified the log
    """
    from lading_server import bootstrap

    if not reason.strip() or len(reason) > REASON_MAX:
        raise click.BadParameter(f"must have 1 to {REASON_MAX} characters", param_hint="'--reason'")
    size, signed = bootstrap.accept_rollback(_settings(data=data, database=database), org, reason)
    click.echo(f"the log of {org} goes on from {size} entries, although {signed} were signed", err=True)
    if org != SYSTEM:
        click.echo("who saw more refuses it until told: lading agent forget-log, lading audit forget-log", err=True)


def options_of(ctx: click.Context) -> list[str]:
    """What `run` was given on its command line, as its workers are to be given it."""
    options = []
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name in ("database", "listen", "port_file", "workers", "worker"):
            continue
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        value = ctx.params[name]
        text = f"{value}s" if isinstance(parameter.type, Lifetime) else str(value)
        options += [parameter.opts[0]] if value is True else [parameter.opts[0], text]
    return options


def _settings(**options: Any) -> Settings:
    settings = Settings(**options)
    settings.check()
    return settings
