"""Recommendations for many query images at once: exact, by block matrix products."""
