"""Gathered rows: each row has its own adapter (decode)."""
