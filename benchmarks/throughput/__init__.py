"""Speed of the whole indexing job and of descriptors."""
