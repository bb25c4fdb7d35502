"""`lading audit forget-log`: how a person goes on with a log that is not the one this client saw."""

from __future__ import annotations

import click

from lading_client.cli import output
from lading_client.cli.audit_verify import known_pin, pin_name
from lading_client.cli.invocation import Command, Invocation, pass_invocation


@click.command("forget-log", cls=Command, examples="lading audit forget-log\nlading audit forget-log --with-key")
@click.option("--with-key", is_flag=True, help="Its key and its witnesses too: the next ones shown are believed.")
@pass_invocation
def forget_log(invocation: Invocation, with_key: bool) -> None:
    """Believe the next log that the server shows, whatever `audit verify` saw of it before.

    verify refuses a log that does not extend the one it saw: history was rewritten, or the database restored from a
    backup. Only when it was restored, and `lading server accept-rollback` has said so in the log (lading audit ls
    action:log.rollback.accept), is this the way on. Prints what this client knew, and changes nothing at the server.
    The log's key is not changed by a restore, and stays believed without --with-key.
    """
    from lading_client.verify import pins

    name, pin = pin_name(invocation), known_pin(invocation)
    if pin is None:
        invocation.say(f"Nothing is known of {name}.")
        return
    pins.write(name, None if with_key else pins.Pin(pin.key, witnesses=pin.witnesses))
    found = {"log": name, "size": pin.size, "root": pin.root, "key": pin.key, "key_forgotten": with_key}
    if invocation.format in ("json", "jsonl", "yaml"):
        output.show_document(invocation, found)
        return
    tree = f"the tree of {output.plural(pin.size, 'event')} of {name}, root {pin.root}" if pin.size else ""
    output.emit(
        output.fields(
            [
                ("forgotten", tree),
                ("forgotten" if with_key else "kept", f"its key {pin.key}"),
                ("next", "lading audit verify"),
            ]
        )
    )
