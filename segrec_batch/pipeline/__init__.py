"""The indexing job: plan, the Ray Data chain, accounting, publication."""
