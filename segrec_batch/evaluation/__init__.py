"""Offline evaluation: how well a model segments, and what an index answers."""
