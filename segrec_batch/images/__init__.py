"""Readers of image files beside Pillow's, and the way from many bits to eight."""
