"""Relevance feedback: sessions of marked results, and the rounds that follow from marks."""
