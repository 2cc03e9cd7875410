#!/usr/bin/env python
"""Entry point of `segrec maintain`, for `ray job submit -- python jobs/maintain.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package lies beside jobs/

from segrec_batch.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["maintain", *sys.argv[1:]]))
