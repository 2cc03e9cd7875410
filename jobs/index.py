"""Index the images in a folder or bucket: new and changed ones are segmented, gone ones leave."""

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from segrec_batch.cli.options import add_engine_options, add_log_options
from segrec_batch.cli.places import check_places
from segrec_batch.common import console, logs
from segrec_batch.common.limits import parse_limit

if TYPE_CHECKING:  # it imports Ray, which --help need not wait for
    from collections.abc import Mapping

    from segrec_batch.pipeline.run_stats import Account

log = logging.getLogger("segrec_batch.jobs")

EXAMPLES = """\
examples:
  python jobs/index.py --images data/images --model models/streets --index indexes/streets
  # on a cluster, from and to a bucket
  ray job submit --working-dir . -- python jobs/index.py \\
      --images s3://bucket/images --model s3://bucket/model --index s3://bucket/index
  # on a cluster whose autoscaler starts GPU workers from none, up to 8 of them
  python jobs/index.py --images s3://bucket/images --model s3://bucket/model \\
      --index s3://bucket/index --gpus 8
  # what would be done?
  python jobs/index.py --images data/images --model model --index index --dry-run
  # a new model: readers keep the old snapshot until the new one is complete
  python jobs/index.py --images s3://bucket/images --model s3://bucket/model2 \\
      --index s3://bucket/index --rebuild

Run it again at any time, also after a crash: it does only what is missing. Of descriptors that
jobs/describe.py has switched on in the model, too, only those are computed that the index lacks.
Credentials and endpoint of an object store come from the AWS_* environment; Ray from RAY_ADDRESS,
or it is started on this machine. A glob's * stands for any characters, / among them.
What cannot be read is tried again by every run; the row that it has in the index stays until then,
and the view `stale` names it. Without an extension, a file is recognised by its content.

Exit code 0: every listed image is indexed, or recorded in `failures`. 1: more sources could not
be read than --max-read-failures (all that could be is published), or the job itself failed: the
index is as its last commit left it.
"""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", required=True, metavar="URI", help="folder of images (local or s3://)")
    add("--model", required=True, metavar="MODEL", help="model bundle made by jobs/train.py")
    add("--index", required=True, metavar="INDEX", help="folder of the index, made if missing")
    add("--include", nargs="+", default=(), metavar="GLOB", help="only paths below URI like these")
    add("--exclude", nargs="+", default=(), metavar="GLOB", help="no paths below URI like these")
    add(
        "--limit",
        type=console.count,
        metavar="N",
        help="process at most N images in this run, and no others",
    )
    add("--retry-failed", action="store_true", help="try images again that failed before")
    add(
        "--max-read-failures",
        type=parse_limit,
        metavar="LIMIT",
        help="exit with 1, after all is published, if more of what was to be read could not be: a "
        "share like 1%% or a count (default: 1%%; of images that --rebuild would lose: none)",
    )
    add(
        "--max-gone",
        type=parse_limit,
        default="50%",
        metavar="LIMIT",
        help="stop before anything is done if more of the index's sources are gone from URI: a "
        "share or a count (default: 50%%)",
    )
    add("--rebuild", action="store_true", help="index everything anew, also with another model")
    add("--drop-descriptors", action="store_true", help="allow a model with fewer descriptors")
    add("--dry-run", action="store_true", help="print what would be done, and do nothing")
    add(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="auto takes the cluster's GPUs if it has any (default: auto)",
    )
    add(
        "--gpus",
        type=console.count,
        metavar="N",
        help="run on N GPUs, also such as an autoscaler is still to start: the run begins with the "
        "first, others join it (default: those that the cluster has at the start)",
    )
    add(
        "--wait",
        type=float,
        default=1800.0,
        metavar="S",
        help="how long to wait for the first of --gpus (default: 1800)",
    )
    add_engine_options(parser)
    add("--batch-size", type=console.count, default=32, metavar="N", help="images (default: 32)")
    add(
        "--commit-seconds",
        type=float,
        default=300.0,
        metavar="S",
        help="time between commits, the most that a crash loses (default: 300)",
    )
    add_log_options(parser)
    parsed = parser.parse_args()
    if parsed.rebuild and parsed.dry_run:
        parser.error("--rebuild does everything; there is nothing for --dry-run to say")
    if parsed.gpus and parsed.device == "cpu":
        parser.error("--gpus N and --device cpu exclude one another")
    return parsed


def main(a: argparse.Namespace) -> None:
    """Run the job."""
    from segrec_batch.pipeline.plan import MOST_UNREAD, Request  # imports Ray: --help is quick
    from segrec_batch.pipeline.run import Execution, dry_run, index_images

    check_places(
        {"--index": None if a.dry_run else a.index},
        {"--images": a.images, "--model": a.model, "--index": a.index},
    )
    request = Request(
        a.images,
        tuple(a.include),
        tuple(a.exclude),
        a.limit,
        a.retry_failed,
        a.max_gone,
        a.max_read_failures,
    )
    if a.dry_run:
        for status, uri in dry_run(request, a.model, a.index, a.drop_descriptors):
            console.show_line(status, uri)
        return
    execution = Execution(
        a.device, a.batch_size, a.commit_seconds, a.gpus, a.wait, a.engine, a.precision
    )
    account, snapshot = index_images(
        request, a.model, a.index, execution, a.rebuild, a.drop_descriptors
    )
    version, rows = snapshot.version, {table: snapshot.rows(table) for table in snapshot.files}
    if logs.writes_json():
        figures = {"index": snapshot.index, "version": version, "rows": rows}
        log.info("run ended", extra={"event": "ended", **account.summary(), **figures})
    else:
        console.show(f"{report(account)}\n\n")
        console.show_line(
            f"{snapshot.index}: version {version}, {rows['images']:,} images, "
            f"{rows['regions']:,} regions, {rows['descriptors']:,} vectors, "
            f"{rows['failures']:,} failures, model {snapshot.model_id}"
        )
    account.check_read_failures(a.max_read_failures or MOST_UNREAD)


def report(account: "Account") -> str:
    """What became of the images, what it cost, and why some failed, as tables."""
    tables = [console.table(f"run {account.run_id}", ("images", ""), counts(account))]
    if account.processed:
        tables.append(console.table("", ("stage", "time", "share", "images/s"), stages(account)))
        tables.append(console.table("", ("all stages", ""), overall(account)))
    if account.failed or account.stale:
        tables.append(console.table("", ("failed", "because"), frequencies(account.reasons)))
    if account.left_out:
        tables.append(console.table("", ("left out", "files"), frequencies(account.left_out)))
    return "\n\n".join(text.strip("\n") for text in tables)


def frequencies(counts: "Mapping[str, int]") -> list[list[str]]:
    """The most frequent of some counts, most frequent first."""
    from segrec_batch.pipeline.tally import most_frequent

    return [[f"{n:,}", name] for name, n in most_frequent(counts).items()]


def counts(account: "Account") -> list[list[str]]:
    """What became of the files that were found."""
    figures = {
        "files found": account.found,
        "  of these, left out": account.left_out.total(),
        "  of these, excluded": account.excluded,
        "listed": account.listed,
        "indexed": account.indexed,
        "  of these, copied from equal bytes": account.copied,
        "unchanged": account.unchanged,
        "failed": account.failed,
        "stale (not readable now, their rows stay)": account.stale,
        "skipped (failed before)": account.skipped,
        "skipped (beyond --limit)": account.postponed,
        "gone": account.gone,
        "vectors added to indexed images": account.described,
    }
    always = ("files found", "listed", "indexed", "failed")
    return [[name, f"{n:,}"] for name, n in figures.items() if n or name in always]


def stages(account: "Account") -> list[list[str]]:
    """What each stage cost; images/s of one worker, while it is at this stage."""
    return [
        [
            stage.name,
            console.duration(stage.seconds),
            f"{stage.share:4.0%} {console.share_bar(stage.share)}",
            "–" if stage.rate is None else f"{stage.rate:,.1f}",
        ]
        for stage in account.stages()
        if stage.seconds
    ]


def overall(account: "Account") -> list[list[str]]:
    """The speed of the run, and whether the model had enough to do."""
    seconds, read = account.seconds["process"], account.cost["bytes_read"] / 1e6
    rows = [["images/s, Ray's start included", f"{account.processed / seconds:,.1f}"]]
    if account.engine:
        rows.append(["engine", str(account.engine)])
    if account.starved is not None:
        rows.append(["of its time the model waited", f"{account.starved:.0%}"])
    rows.append(["read", f"{read:,.1f} MB, {read / seconds:,.1f} MB/s"])
    rows.append(["written", f"{account.bytes_written / 1e6:,.1f} MB"])
    return rows


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments), arguments.log_format, arguments.quiet))
