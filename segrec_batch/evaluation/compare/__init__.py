"""Two or more reports of one kind, compared."""
