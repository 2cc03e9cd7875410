"""`segrec recommend`: recommend images for each image of an index."""

import argparse

from segrec_batch.cli.options import (
    add_class_filter,
    add_cluster_device,
    add_expand,
    add_index,
    add_version,
    amount,
    set_up,
)
from segrec_batch.cli.output import check_places
from segrec_batch.common import console

_DESCRIPTION = "Write the most similar images of each image of an index to Parquet, on Ray."
_EXAMPLES = """\
examples:
  # for every image that has a car, by its car, where cars fill 29 to 96 % of the candidate
  segrec recommend --index s3://bucket/index --class car --coverage 0.29 0.96 -k 20 \\
      --output s3://bucket/similar-cars
  # whole images; only for some; no near-duplicates, and diverse results
  segrec recommend --index index --output similar --near-duplicates 0.98 --diversity 0.7 \\
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
_GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    storage = parser.add_argument_group("storage")
    add_index(storage)
    add_version(storage)
    add = storage.add_argument
    add("--output", required=True, metavar="URI", help="folder of the result, made if missing")
    add("--overwrite", action="store_true", help="delete what the output holds, and begin anew")
    filters = parser.add_argument_group("filters and method")
    add = filters.add_argument
    add(
        "--queries",
        metavar="SQL|FILE.parquet",
        help="images to recommend for: SQL on the index or a file with a column image_id "
        "(default: all)",
    )
    add_class_filter(filters, console.count)
    add_expand(filters)
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
        help="candidates that --diversity chooses among (default: 5 K)",
    )
    execution = parser.add_argument_group("execution")
    add_cluster_device(execution)
    add = execution.add_argument
    add(
        "--memory",
        type=amount,
        default=1.0,
        metavar="GIB",
        help="of a worker, for scores and blocks (default: 1)",
    )
    add(
        "--part-size", type=console.count, default=4096, metavar="N", help="queries (default: 4096)"
    )
    set_up(parser, run, _DESCRIPTION, _EXAMPLES)


def run(a: argparse.Namespace) -> None:
    """Run the command."""
    from segrec_batch.search.batch.choice import Choice
    from segrec_batch.search.batch.job import Execution, recommend_all
    from segrec_batch.search.batch.selection import Request
    from segrec_batch.search.filters import Filters

    check_places({"--output": a.output}, {"--index": a.index, "--queries": a.queries})
    request = Request(Filters(a.cls, tuple(a.coverage), a.k, expand=a.expand), a.queries)
    choice = Choice(a.k, not a.keep_copies, a.near_duplicates, a.diversity, a.pool)
    counts = recommend_all(
        a.index,
        request,
        choice,
        a.output,
        Execution(a.device, int(a.memory * _GIB)),
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
