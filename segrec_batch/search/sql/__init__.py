"""DuckDB connections, and SQL of others under an allow-list."""
