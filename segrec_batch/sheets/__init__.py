"""Contact sheets as HTML and PNG."""
