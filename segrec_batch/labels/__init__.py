"""Labelled images: which mask belongs to which image."""
