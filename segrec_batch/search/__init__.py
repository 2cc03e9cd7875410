"""Queries of an index: DuckDB views and functions, recommendations, feedback."""
