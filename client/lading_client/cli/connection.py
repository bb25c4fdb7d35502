"""What is said of the connection of a command that goes on for ever: when the server is away, and when it is back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lading_client.cli import output

if TYPE_CHECKING:
    from lading_client.cli.invocation import Invocation
    from lading_client.errors import LadingError


@dataclass
class Connection:
    """`stream`: what the server serves, in a word. `greeting` is said when it begins to, `promise` with each loss."""

    invocation: Invocation
    stream: str
    greeting: str = ""
    promise: str = ""

    def begun(self) -> None:
        if self.greeting:
            self.invocation.say(self.greeting)
        self.greeting = ""

    def lost(self, failure: LadingError) -> None:
        # What gRPC itself says of a lost connection is for those who look for its cause.
        why = f"{failure.code}: {output.printable(str(failure))}" if failure.reason else failure.code
        away = failure.code == "UNAVAILABLE"
        what = "The server is away" if away else f"The server does not serve this {self.stream} now"
        until = "it is back" if away else "it does"
        self.invocation.say(f"{what} ({why}). Trying again until {until}{self.promise and '; ' + self.promise}.")
        self.greeting = "The server is back." if away else f"The server serves this {self.stream} again."
