"""Waiting for what the agent says in its log."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator


class _Listener(logging.Handler):
    def __init__(self, words: str) -> None:
        super().__init__()
        self.words, self.heard = words, asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self.words in record.getMessage():
            self.heard.set()


@contextlib.contextmanager
def listening(words: str) -> Iterator[asyncio.Event]:
    """An event that is set once a line with these words is logged."""
    listener = _Listener(words)
    logger = logging.getLogger("lading_agent")
    logger.addHandler(listener)
    try:
        yield listener.heard
    finally:
        logger.removeHandler(listener)
