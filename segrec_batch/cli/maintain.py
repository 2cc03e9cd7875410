"""`segrec maintain`: compact, vacuum, purge, verify, roll back an index, or print its history."""

import argparse
import datetime as dt
import logging
from collections.abc import Callable, Mapping
from typing import Any

from segrec_batch.cli.options import HelpFormatter, add_index, describe, set_up
from segrec_batch.cli.output import check_places
from segrec_batch.common import console
from segrec_batch.common.errors import IndexStateError, InputError

log = logging.getLogger(__name__)

_DESCRIPTION = "Maintain an index: compact, vacuum, purge, verify, rollback, history."
_EXAMPLES = """\
examples:
  segrec maintain --index indexes/streets history
  segrec maintain --index s3://bucket/index compact
  segrec maintain --index s3://bucket/index vacuum --retention-hours 168
  segrec maintain --index s3://bucket/index verify
  segrec maintain --index s3://bucket/index purge --uri s3://bucket/images/someone.jpg
  segrec maintain --index s3://bucket/index rollback --to 41

All of it is safe beside queries, and a crash leaves the index as it was. Of an indexing job and a
compact, purge or rollback at the same time, the one that commits second stops with an error.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    describe(parser, _DESCRIPTION, _EXAMPLES)
    add_index(parser.add_argument_group("storage"), "folder of the index")
    commands = parser.add_subparsers(required=True, metavar="TASK")

    def task(
        name: str, run: Callable[[argparse.Namespace], None], summary: str
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=summary, formatter_class=HelpFormatter)
        text = f"{summary[0].upper()}{summary[1:]}."
        set_up(one, lambda a: _run(a, run), text, _EXAMPLES)
        return one

    add = task("compact", _compact, "merge small parts, sorted for σ filters").add_argument
    add("--part-rows", type=int, metavar="N", help="images in a part")
    add = task("vacuum", _vacuum, "delete files that only old versions need").add_argument
    add(
        "--retention-hours",
        type=float,
        default=168.0,
        metavar="H",
        help="keep versions of this time (default: 168)",
    )
    add("--dry-run", action="store_true", help="only print what would be deleted")
    add(
        "--force",
        action="store_true",
        help="allow less than an hour, and tables that are ahead of the newest snapshot: for when "
        "no job is running and no log entry is lost",
    )
    add = task("purge", _purge, "remove sources from every retained version").add_argument
    add("--uri", nargs="+", default=[], metavar="URI", help="sources")
    add("--uri-file", metavar="FILE", help="a text file with a URI a line")
    add(
        "--grace-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="how long queries on older snapshots may go on (default: 60)",
    )
    add = task("verify", _verify, "read all files again and check them").add_argument
    add("--version", type=int, metavar="N", help="an older version")
    add = task("rollback", _rollback, "make an older version the newest one").add_argument
    add("--to", type=int, required=True, metavar="N", help="the older version")
    task("history", _history, "print the runs that made the index")


def _run(a: argparse.Namespace, task: Callable[[argparse.Namespace], None]) -> None:
    from segrec_batch.sources import storage

    reads = task in (_history, _verify)
    check_places(
        {} if reads else {"--index": a.index},
        {"--index": a.index, "--uri-file": vars(a).get("uri_file")},
    )
    a.index = storage.absolute(a.index)
    task(a)


def _compact(a: argparse.Namespace) -> None:
    from segrec_batch.index.snapshot import open_snapshot
    from segrec_batch.maintenance.compact import PART_ROWS, compact

    before = open_snapshot(a.index)
    after = compact(before, a.part_rows or PART_ROWS)
    counts = [sum(1 for _ in snapshot.all_files) for snapshot in (before, after)]
    console.show_line(
        f"{a.index}: version {after.version}, {counts[0]:,} files became {counts[1]:,}"
    )


def _vacuum(a: argparse.Namespace) -> None:
    from segrec_batch.maintenance.versions import vacuum

    retention = dt.timedelta(hours=a.retention_hours)
    files = vacuum(a.index, retention, a.dry_run, a.force)
    if a.dry_run:
        for uri, _ in files:
            console.show_line(uri)
    verb = "would be deleted" if a.dry_run else "deleted"
    console.show_line(
        f"{len(files):,} files, {sum(size for _, size in files) / 1e6:,.1f} MB, {verb}"
    )


def _purge(a: argparse.Namespace) -> None:
    from segrec_batch.index.snapshot import open_snapshot
    from segrec_batch.maintenance.purge import purge
    from segrec_batch.pipeline.reference import log_drifts
    from segrec_batch.sources import storage

    uris = [*a.uri, *(_lines(a.uri_file) if a.uri_file else ())]
    if not uris:
        raise InputError("name the sources with --uri or --uri-file")
    done = purge(a.index, [storage.absolute(uri) for uri in uris], a.grace_seconds)
    for uri in done.unknown:
        log.info(f"not in any file: {uri}")
    console.show_line(
        f"{len(done.purged):,} sources purged, {done.files:,} files; version {done.version}"
    )
    log.info("sources that are still below --images would be indexed again by the next run")
    log_drifts(open_snapshot(a.index))


def _lines(uri: str) -> list[str]:
    from segrec_batch.sources import storage

    try:
        return [line for line in storage.read_bytes(uri).decode().split("\n") if line]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{uri} cannot be read: {error}") from error


def _verify(a: argparse.Namespace) -> None:
    from segrec_batch.index.snapshot import open_snapshot
    from segrec_batch.maintenance.verify import verify
    from segrec_batch.pipeline.reference import log_drifts

    snapshot = open_snapshot(a.index, a.version)
    problems = verify(snapshot)
    for problem in problems:
        console.show_line(problem)
    if problems:
        raise IndexStateError(f"{a.index}: version {snapshot.version}, {len(problems)} problems")
    console.show_line(
        f"{a.index}: version {snapshot.version} is well, {snapshot.rows('images'):,} images"
    )
    log_drifts(snapshot)


def _rollback(a: argparse.Namespace) -> None:
    from segrec_batch.maintenance.versions import rollback

    after = rollback(a.index, a.to)
    console.show_line(f"{a.index}: version {after.version} is as version {a.to} was")


def _history(a: argparse.Namespace) -> None:
    from segrec_batch.index.history import history

    rows = [
        (str(entry.version), f"{entry.time:%Y-%m-%d %H:%M:%S}", *_cells(entry.info.get("segrec")))
        for entry in history(a.index)
    ]
    header = ("version", "time (UTC)", "run", "indexed", "failed", "gone", "listed")
    console.show(console.table(a.index, header, rows))


def _cells(info: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the cells of a version that its commit information fills."""
    if not isinstance(info, Mapping):
        return ("made", "", "", "", "")
    if "operation" in info:
        rest = ", ".join(f"{k} {v}" for k, v in info.items() if k != "operation")
        return (f"{info['operation']} ({rest})", "", "", "", "")
    run = f"{info.get('run_id', '')}{' rebuild' if info.get('rebuild') else ''}"
    counts = [info.get(name, "") for name in ("indexed", "failed", "gone", "listed")]
    return (run, *(f"{n:,}" if isinstance(n, int) else str(n) for n in counts))
