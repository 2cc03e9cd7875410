"""Arithmetic of the descriptors: pure functions of pictures, each with its source."""
