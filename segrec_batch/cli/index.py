"""`segrec index`: index the images of a folder or bucket."""

import argparse
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segrec_batch.api.index import index_images
from segrec_batch.cli.options import (
    add_cluster_device,
    add_engine,
    add_index,
    defaults,
    set_up,
    usage_error,
)
from segrec_batch.cli.output import check_places
from segrec_batch.common import console, logs
from segrec_batch.common.limits import parse_limit

if TYPE_CHECKING:
    from segrec_batch.pipeline.run_stats import RunStats

log = logging.getLogger(__name__)

_DESCRIPTION = (
    "Index the images of a folder or bucket, on Ray: new and changed ones are segmented, "
    "deleted ones are removed."
)
_EXAMPLES = """\
examples:
  segrec index --images data/images --model models/streets --index indexes/streets
  # on a cluster, from and to a bucket
  ray job submit --working-dir . -- python jobs/index.py \\
      --images s3://bucket/images --model s3://bucket/model --index s3://bucket/index
  # on a cluster whose autoscaler starts GPU workers from none, up to 8 of them
  segrec index --images s3://bucket/images --model s3://bucket/model \\
      --index s3://bucket/index --gpus 8
  # print what a run would do
  segrec index --images data/images --model model --index index --dry-run
  # a new model: readers keep the old snapshot until the new one is complete
  segrec index --images s3://bucket/images --model s3://bucket/model2 \\
      --index s3://bucket/index --rebuild

Run it again at any time, also after a crash: it does only what is missing. It computes descriptors
that `segrec describe` has added to the model and the index lacks.
Credentials and endpoint of an object store come from the AWS_* environment; Ray from RAY_ADDRESS,
or it is started on this machine. A glob's * stands for any characters, / among them.
Every run tries unreadable images again; their rows stay in the index until then, and the view
`stale` lists them. A file without an extension is recognised by its content.

Exit code 0: every listed image is indexed, or recorded in `failures`. 1: more sources could not
be read than --max-read-failures (all that could be is published), or the job itself failed: the
index is as its last commit left it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    default = defaults(index_images)
    storage = parser.add_argument_group("storage")
    add = storage.add_argument
    add("--images", required=True, metavar="URI", help="folder of images (local or s3://)")
    add("--model", required=True, metavar="MODEL", help="model bundle made by segrec train")
    add_index(storage, "folder of the index, made if missing")
    add("--include", nargs="+", default=(), metavar="GLOB", help="only paths below URI like these")
    add("--exclude", nargs="+", default=(), metavar="GLOB", help="no paths below URI like these")
    add = parser.add_argument_group("scope").add_argument
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
        default=default["max_gone"],
        metavar="LIMIT",
        help="stop before anything is done if more of the index's sources are gone from URI: a "
        "share or a count (default: 50%%)",
    )
    add("--rebuild", action="store_true", help="index everything anew, also with another model")
    add("--drop-descriptors", action="store_true", help="allow a model with fewer descriptors")
    add("--dry-run", action="store_true", help="print what a run would do, and do nothing")
    execution = parser.add_argument_group("execution")
    add_cluster_device(execution)
    add = execution.add_argument
    add(
        "--gpus",
        type=console.count,
        metavar="N",
        help="run on N GPUs, which an autoscaler may start: the run begins with the first, others "
        "join it (default: those of the cluster at the start)",
    )
    add(
        "--wait",
        type=float,
        default=default["wait"],
        metavar="S",
        help="how long to wait for the first of --gpus (default: %(default)g)",
    )
    add_engine(execution)
    add(
        "--batch-size",
        type=console.count,
        default=default["batch_size"],
        metavar="N",
        help="images (default: %(default)s)",
    )
    add(
        "--commit-seconds",
        type=float,
        default=default["commit_seconds"],
        metavar="S",
        help="time between commits, the most that a crash loses (default: %(default)g)",
    )
    set_up(parser, run, _DESCRIPTION, _EXAMPLES)


def run(a: argparse.Namespace) -> None:
    """Run the command."""
    if a.rebuild and a.dry_run:
        usage_error(a, "--rebuild does everything; --dry-run has nothing to print")
    if a.gpus and a.device == "cpu":
        usage_error(a, "--gpus N and --device cpu exclude one another")
    check_places(
        {"--index": None if a.dry_run else a.index},
        {"--images": a.images, "--model": a.model, "--index": a.index},
    )
    if a.dry_run:
        _dry_run(a)
        return
    from segrec_batch.pipeline.plan import DEFAULT_MAX_READ_FAILURES
    from segrec_batch.pipeline.reference import log_drifts

    options = {name: vars(a)[name] for name in defaults(index_images)}
    stats, snapshot = index_images(a.images, a.model, a.index, **options)
    version, rows = snapshot.version, {table: snapshot.rows(table) for table in snapshot.files}
    if logs.writes_json():
        figures = {"index": snapshot.index, "version": version, "rows": rows}
        log.info("run ended", extra={"event": "ended", **stats.summary(), **figures})
    else:
        console.show(f"{_report(stats)}\n\n")
        console.show_line(
            f"{snapshot.index}: version {version}, {rows['images']:,} images, "
            f"{rows['regions']:,} regions, {rows['descriptors']:,} vectors, "
            f"{rows['failures']:,} failures, model {snapshot.model_id}"
        )
    log_drifts(snapshot)
    stats.check_read_failures(a.max_read_failures or DEFAULT_MAX_READ_FAILURES)


def _dry_run(a: argparse.Namespace) -> None:
    from segrec_batch.pipeline.plan import Request
    from segrec_batch.pipeline.run import dry_run

    globs = tuple(a.include), tuple(a.exclude)
    request = Request(a.images, *globs, a.limit, a.retry_failed, a.max_gone, a.max_read_failures)
    for status, uri in dry_run(request, a.model, a.index, a.drop_descriptors):
        console.show_line(status, uri)


def _report(stats: "RunStats") -> str:
    """Return counts, costs and reasons of failures as tables."""
    tables = [console.table(f"run {stats.run_id}", ("images", ""), _counts(stats))]
    if stats.processed:
        tables.append(console.table("", ("stage", "time", "share", "images/s"), _stages(stats)))
        tables.append(console.table("", ("all stages", ""), _totals(stats)))
    if stats.failed or stats.stale:
        tables.append(console.table("", ("failed", "because"), _frequencies(stats.reasons)))
    if stats.left_out:
        tables.append(console.table("", ("left out", "files"), _frequencies(stats.left_out)))
    return "\n\n".join(text.strip("\n") for text in tables)


def _frequencies(counts: Mapping[Any, int]) -> list[list[str]]:
    """Return the most frequent of some counts, most frequent first."""
    from segrec_batch.pipeline.tally import count_most_frequent

    return [[f"{n:,}", name] for name, n in count_most_frequent(counts).items()]


def _counts(stats: "RunStats") -> list[list[str]]:
    """Return the number of files by what became of them."""
    figures = {
        "files found": stats.found,
        "  of these, left out": stats.left_out.total(),
        "  of these, excluded": stats.excluded,
        "listed": stats.listed,
        "indexed": stats.indexed,
        "  of these, copied from equal bytes": stats.copied,
        "unchanged": stats.unchanged,
        "failed": stats.failed,
        "stale (not readable now, their rows stay)": stats.stale,
        "skipped (failed before)": stats.skipped,
        "skipped (beyond --limit)": stats.postponed,
        "gone": stats.gone,
        "vectors added to indexed images": stats.described,
    }
    always = ("files found", "listed", "indexed", "failed")
    return [[name, f"{n:,}"] for name, n in figures.items() if n or name in always]


def _stages(stats: "RunStats") -> list[list[str]]:
    """Return the cost of each stage; images/s of one worker while it is at this stage."""
    return [
        [
            stage.name,
            console.duration(stage.seconds),
            f"{stage.share:4.0%} {console.share_bar(stage.share)}",
            "–" if stage.rate is None else f"{stage.rate:,.1f}",
        ]
        for stage in stats.stages()
        if stage.seconds
    ]


def _totals(stats: "RunStats") -> list[list[str]]:
    """Return the speed of the run, and the share of time in which the model waited."""
    seconds, read = stats.seconds["process"], stats.cost["bytes_read"] / 1e6
    rows = [["images/s, Ray's start included", f"{stats.processed / seconds:,.1f}"]]
    if stats.engine:
        rows.append(["engine", str(stats.engine)])
    if stats.starved is not None:
        rows.append(["of its time the model waited", f"{stats.starved:.0%}"])
    rows.append(["read", f"{read:,.1f} MB, {read / seconds:,.1f} MB/s"])
    rows.append(["written", f"{stats.bytes_written / 1e6:,.1f} MB"])
    return rows
