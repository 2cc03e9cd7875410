"""Speed and precision of the engines."""
