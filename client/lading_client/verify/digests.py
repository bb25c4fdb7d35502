"""A set of texts that only grows, in 16 to 32 bytes for each: 64 bits of a hash by a key that nobody else knows."""

import secrets
from array import array
from hashlib import blake2b


class Digests:
    """Of n texts, two are taken for the same with a chance of n² / 2⁶⁵."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, text: str) -> bool:
        return self._slots[self._place(self._digest(text))] != 0

    def add(self, text: str) -> None:
        """Take it in."""
        digest = self._digest(text)
        place = self._place(digest)
        if self._slots[place] == 0:
            self._slots[place] = digest
            self._count += 1
            if self._count * 2 > len(self._slots):
                self._grow()

    def _digest(self, text: str) -> int:
        # 0 marks an empty slot.
        return int.from_bytes(blake2b(text.encode(), digest_size=8, key=self._key).digest(), "big") or 1

    def _place(self, digest: int) -> int:
        slots, last = self._slots, len(self._slots) - 1
        place = digest & last
        while slots[place] not in (0, digest):
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        before = self._slots
        self._slots = array("Q", bytes(8 * 2 * len(before)))
        for digest in before:
            if digest:
                self._slots[self._place(digest)] = digest
