"""The commands of `segrec`."""
