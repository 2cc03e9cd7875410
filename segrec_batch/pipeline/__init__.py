"""The indexing job: resolve, plan, process with Ray Data, backfill, commit."""

import os

# Set before ray is imported: no usage reports, no progress bars beside ours, no token for a cluster
# without one, and no messages of Ray Data about its actors.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
