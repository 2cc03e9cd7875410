"""Speed on one GPU."""
