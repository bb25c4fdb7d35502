"""The demo: server, agents and viewer as processes of this machine, and real work through the real API."""
