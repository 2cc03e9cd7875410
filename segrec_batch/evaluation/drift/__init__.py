"""What a run changed in an index: two snapshots of it, compared."""
