"""Memory of an indexing run and of the model."""
