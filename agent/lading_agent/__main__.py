"""`python -m lading_agent run …`, as `lading agent run …`."""

from lading_agent.cli import agent

agent(prog_name="lading agent")
