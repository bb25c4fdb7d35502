"""`python -m lading_server`: the command group `lading server`, as a parent starts its workers."""

from lading_server.cli import server

server(prog_name="lading server")
