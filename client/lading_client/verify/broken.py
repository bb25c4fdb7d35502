"""What is found when a log does not hold."""

from dataclasses import dataclass


@dataclass(eq=False)
class Broken(Exception):
    """The log does not hold. `index` and `event`: the first that is wrong; None and empty where it is no single one."""

    what: str
    index: int | None = None
    event: str = ""
    part: str = "tree"

    def __str__(self) -> str:
        if self.index is None:
            return f"BROKEN: {self.what}"
        event = f" (event {self.event})" if self.event else ""
        return f"BROKEN at #{self.index}{event}: {self.what}. Events before it are intact."


@dataclass(eq=False)
class Changed(Broken):
    """The log is not the one that this client saw before. `key`: that of the log is another too."""

    part: str = "checkpoint"
    key: bool = False
