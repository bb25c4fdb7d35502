"""How long to wait before connecting again: full jitter, so that a fleet does not come back all at once."""

import random
from dataclasses import dataclass, field

FLOOR = 0.25
CEILING = 30.0


@dataclass
class Backoff:
    """Waits in seconds: anywhere up to 0.25 s at first, up to twice that after each failure, up to 30 s in the end."""

    chance: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def next(self) -> float:
        """The wait after one more failure."""
        longest = min(CEILING, FLOOR * 2 ** min(self.failures, 16))
        self.failures += 1
        return self.chance.uniform(0, longest)

    def slow(self) -> float:
        """The wait after a refusal that will not pass by itself: never short."""
        return self.chance.uniform(CEILING / 2, CEILING)

    def reset(self) -> None:
        self.failures = 0
