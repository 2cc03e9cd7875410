"""Entry point of `python -m segrec_batch COMMAND`."""

import sys

from segrec_batch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
