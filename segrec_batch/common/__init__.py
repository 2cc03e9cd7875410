"""Parts that every other package uses: errors, text encoding, messages, limits."""
