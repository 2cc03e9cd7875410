"""Cost of planning and of snapshots as an index grows."""
