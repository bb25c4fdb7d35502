"""Checks of what a Lading server claims: entries, signed notes, proofs, tiles. Pure functions, no I/O.

This package shares no code with what builds the tree, so that a fault of one does not hide in the other. It needs the
standard library and `cryptography`, nothing else of Lading.
"""
