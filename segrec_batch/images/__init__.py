"""Decoding of images and masks to 8-bit RGB and labels, in a confined child process."""
