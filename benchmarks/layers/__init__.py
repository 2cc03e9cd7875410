"""Segmentation quality of layer sets."""
