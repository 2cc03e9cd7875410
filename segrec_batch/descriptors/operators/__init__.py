"""Arithmetic of the descriptors: pure functions of images, each with its source."""
