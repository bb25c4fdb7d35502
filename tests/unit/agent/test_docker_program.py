"""A program in an engine's container, at the end of its connection."""

import asyncio
import socket

from lading_agent.runtimes.docker_program import DockerProgram
from lading_agent.runtimes.engine import Engine


async def test_input_that_comes_after_it_was_hung_up_goes_nowhere() -> None:
    here, there = socket.socketpair()
    with there:
        reader, writer = await asyncio.open_unix_connection(sock=here)
        program = DockerProgram(Engine("unix:///nowhere"), "1", False, reader, writer)
        await program.write(b"first")
        await program.hang_up()
        await program.write(b"second")
        await program.end_input()
        await program.close()
        await writer.wait_closed()
        assert there.recv(100) + there.recv(100) == b"first"
