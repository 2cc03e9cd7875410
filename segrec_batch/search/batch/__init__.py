"""The most similar images of many queries at once: exact, by block matrix products."""
