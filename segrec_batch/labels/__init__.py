"""Labelled images: pairs of image and mask."""
