"""Recommendations for everybody: the most similar images of each image of an index, as Parquet."""

import argparse
import sys

from segrec_batch.cli.places import check_places
from segrec_batch.common import console, logs

EXAMPLES = """\
examples:
  # for every image that has a car, by its car, where cars fill 29 to 96 % of the candidate
  python jobs/recommend.py --index s3://bucket/index --class car --coverage 0.29 0.96 -k 20 \\
      --output s3://bucket/similar-cars
  # whole images; only for some; no near-duplicates, and not all alike
  python jobs/recommend.py --index index --output similar --near-duplicates 0.98 --diversity 0.7 \\
      --queries "SELECT image_id FROM images WHERE coverage_car > 0.3"
  # on a cluster
  ray job submit --working-dir . -- python jobs/recommend.py --index s3://bucket/index \\
      --queries s3://bucket/ids.parquet --output s3://bucket/similar

Run it again after a crash: it does only the parts that are missing. Read the result with
  SELECT * FROM read_parquet('OUTPUT/*/*.parquet', hive_partitioning = true)
Credentials and endpoint of an object store come from the AWS_* environment; Ray from RAY_ADDRESS,
or it is started on this machine.
Exit code 0: every query is answered, or is in OUTPUT/unanswered.parquet with a reason. 1: the job
itself failed; finished parts stay.
"""
GIB = 2**30


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--index", required=True, metavar="INDEX", help="folder of the index (local or s3://)")
    add("--output", required=True, metavar="URI", help="folder of the result, made if missing")
    add("--version", type=int, metavar="N", help="snapshot of the index (default: the newest)")
    add(
        "--queries",
        metavar="SQL|FILE.parquet",
        help="images to recommend for: SQL on the index or a file with a column image_id "
        "(default: all)",
    )
    add("--class", dest="cls", metavar="NAME", help="compare regions of a class, not whole images")
    add(
        "--coverage",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="only candidates with this share of the class (default: 0 1)",
    )
    add(
        "-k",
        type=console.count,
        default=10,
        metavar="K",
        help="recommendations for each (default: 10)",
    )
    add(
        "--keep-copies",
        action="store_true",
        help="also images with the bytes of the query or of one before",
    )
    add(
        "--near-duplicates",
        type=float,
        metavar="P",
        help="leave out what has this Pearson or more with the query or one before",
    )
    add(
        "--diversity",
        type=float,
        metavar="LAMBDA",
        help="order by maximal marginal relevance, LAMBDA in (0, 1]: 1 is similarity alone",
    )
    add(
        "--pool",
        type=console.count,
        metavar="N",
        help="what --diversity chooses among (default: 5 K)",
    )
    add(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="auto takes the cluster's GPUs if it has any (default: auto)",
    )
    add(
        "--memory",
        type=_amount,
        default=1.0,
        metavar="GIB",
        help="of a worker, for scores and blocks (default: 1)",
    )
    add(
        "--part-size", type=console.count, default=4096, metavar="N", help="queries (default: 4096)"
    )
    add("--overwrite", action="store_true", help="delete what the output holds, and begin anew")
    return parser.parse_args()


def _amount(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return number


def main(a: argparse.Namespace) -> None:
    """Run the job."""
    # these import Ray and PyTorch, which --help need not wait for
    from segrec_batch.search.batch.choice import Choice
    from segrec_batch.search.batch.plan import Request
    from segrec_batch.search.batch.run import Execution, recommend_all
    from segrec_batch.search.filters import Criteria

    check_places({"--output": a.output}, {"--index": a.index, "--queries": a.queries})
    request = Request(Criteria(a.cls, tuple(a.coverage), a.k), a.queries)
    choice = Choice(a.k, not a.keep_copies, a.near_duplicates, a.diversity, a.pool)
    execution = Execution(a.device, int(a.memory * GIB))
    counts = recommend_all(
        a.index,
        request,
        choice,
        a.output,
        execution,
        version=a.version,
        part_size=a.part_size,
        overwrite=a.overwrite,
    )
    figures = {
        "queries": counts["queries"],
        "answered": counts["answered"],
        **{f"unanswered: {reason}": n for reason, n in counts["unanswered"].items()},
        "recommendations": counts["recommendations"],
    }
    rows = [[name, f"{count:,}"] for name, count in figures.items()]
    console.show(console.table(a.output, ("recommendations", ""), rows))


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
