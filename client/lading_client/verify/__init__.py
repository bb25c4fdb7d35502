"""Checks of what a server says of its log, on the side of whoever reads it: whole logs, files, receipts.

Nothing here believes a server: it recomputes from entries, with `lading.transparency`, and with keys that it has seen
before.
"""
