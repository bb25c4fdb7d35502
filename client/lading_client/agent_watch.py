"""What a watch of the agents has shown, so that it goes on after a lost connection with what changed since. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lading.v1 import agents_pb2
from lading_client.resumption import Resumption


@dataclass
class AgentWatch(Resumption):
    """Each connection begins with every agent; only those that are not as shown are handed on."""

    shown: dict[str, agents_pb2.Agent] = field(default_factory=dict)

    def request(self) -> agents_pb2.WatchAgentsRequest:
        self.ask()
        return agents_pb2.WatchAgentsRequest()

    def take(self, answer: agents_pb2.Agent) -> Sequence[agents_pb2.Agent]:
        """The agent, or nothing when it is as it was."""
        self.hear()
        if self.shown.get(answer.name) == answer:
            return ()
        self.shown[answer.name] = answer
        return (answer,)
