"""Evaluation of retrieval: methods of an index are compared on queries with ground truth."""
