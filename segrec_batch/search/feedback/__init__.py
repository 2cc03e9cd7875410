"""Relevance feedback: marks on what was shown, and what is shown next because of them."""
