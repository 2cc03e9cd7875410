"""Arithmetic of the descriptors: pure functions of images."""
