"""Attention of decode: one query row for each sequence, over a key-value cache in blocks."""
