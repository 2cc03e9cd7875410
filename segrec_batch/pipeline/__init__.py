"""The indexing job: plan, the Ray Data chain, accounting, publication."""

import os

# Before ray is imported: no usage reports, no progress bars beside ours, no token asked of a
# cluster that never had one, and no report of how Ray Data starts its actors as an error of ours.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
