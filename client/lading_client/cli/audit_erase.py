"""`lading audit erase`: personal data out of the log; what was proven stays proven."""

from __future__ import annotations

from collections.abc import Sequence

import click

from lading_client.cli import output
from lading_client.cli.invocation import Command, Invocation, pass_invocation


@click.command(cls=Command, examples="lading audit erase 0198c2de-… --reason 'request of 12 May, article 17'")
@click.argument("ids", nargs=-1, required=True, metavar="EVENT_ID…")
@pass_invocation
def erase(invocation: Invocation, ids: Sequence[str]) -> None:
    """Erase the details of events for ever: names, addresses, reasons, requests. The erasure itself is recorded.

    Who did what to which target, when, and how it ended stays in the log, and every proof stays valid.
    """
    from lading.v1 import audit_log_pb2 as pb

    if not invocation.reason:
        raise click.UsageError("Why? Give it by --reason; it is recorded.")
    count = output.plural(len(ids), "event")
    if not invocation.yes:
        click.confirm(f"Erase the details of {count} for ever?", abort=True, err=True)
    request = pb.EraseEventDetailsRequest(ids=ids, reason=invocation.reason)
    answer = invocation.client.audit.EraseEventDetails(request)
    output.show_one(invocation, answer, str(answer.erased), lambda: [f"Details of {answer.erased} of {count} erased."])
