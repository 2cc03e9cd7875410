"""Asking an index: DuckDB views and functions, recommendations, contact sheets."""
