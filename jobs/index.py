"""Index the pictures in a folder or bucket: new and changed ones are segmented, gone ones leave."""

import argparse
import sys

from segrec_batch import console
from segrec_batch.pipeline.run import Account, index_pictures
from segrec_batch.store.index import Snapshot

EXAMPLES = """\
examples:
  python jobs/index.py --images data/images --model models/streets --index indexes/streets
  # on a cluster, from and to a bucket
  ray job submit --working-dir . -- python jobs/index.py \\
      --images s3://bucket/images --model s3://bucket/model --index s3://bucket/index

Run it again at any time: it does only what is missing. Credentials and endpoint of an object store
come from the AWS_* environment; Ray from RAY_ADDRESS, or it is started on this machine.
Exit code 0: every listed picture is indexed, or recorded in `failures`. 1: the job itself failed.
"""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", required=True, metavar="URI", help="folder of pictures (local or s3://)")
    add("--model", required=True, metavar="MODEL", help="model bundle made by jobs/train.py")
    add("--index", required=True, metavar="INDEX", help="folder of the index, made if missing")
    add(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="auto takes the cluster's GPUs if it has any (default: auto)",
    )
    add("--retry-failed", action="store_true", help="try pictures again that failed before")
    return parser.parse_args()


def main(a: argparse.Namespace) -> None:
    """Run the job."""
    account, snapshot = index_pictures(a.images, a.model, a.index, a.device, a.retry_failed)
    _print_summary(account, snapshot)


def _print_summary(account: Account, snapshot: Snapshot) -> None:
    figures = {
        "listed": account.listed,
        "indexed": account.indexed,
        "unchanged": account.unchanged,
        "failed": account.failed,
        "skipped (failed before)": account.skipped,
        "gone": account.gone,
    }
    rows = [[name, f"{count:,}"] for name, count in figures.items()]
    processed, seconds = account.indexed + account.failed, account.seconds.get("process")
    if seconds:
        rows.append(["images/s, Ray's start included", f"{processed / seconds:.1f}"])
    print(console.table(f"run {account.run_id}", ("pictures", ""), rows), end="")
    print(
        f"{snapshot.index}: version {snapshot.version}, {snapshot.rows('images'):,} images, "
        f"{snapshot.rows('regions'):,} regions, {snapshot.rows('failures'):,} failures, "
        f"model {snapshot.model_id}"
    )


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(console.run_command(lambda: main(arguments)))
