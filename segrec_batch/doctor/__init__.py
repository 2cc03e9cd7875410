"""What this machine offers to segrec, how fast each engine is on it, and what may go wrong."""
