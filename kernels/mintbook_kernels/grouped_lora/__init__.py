"""Grouped rows: many rows share an adapter (prefill, training)."""
