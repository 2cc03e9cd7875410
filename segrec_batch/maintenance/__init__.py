"""Upkeep of an index: compact, vacuum, purge, verify, roll back."""
