"""Upkeep of an index: compact, vacuum, purge, verify, rollback, history."""

import argparse
import datetime as dt
import logging
import sys
from collections.abc import Mapping
from typing import Any

from segrec_batch.cli.places import check_places
from segrec_batch.common import console, logs
from segrec_batch.common.errors import IndexStateError, InputError
from segrec_batch.sources import storage

log = logging.getLogger("segrec_batch.jobs")

EXAMPLES = """\
examples:
  python jobs/maintain.py --index indexes/streets history
  python jobs/maintain.py --index s3://bucket/index compact
  python jobs/maintain.py --index s3://bucket/index vacuum --retention-hours 168
  python jobs/maintain.py --index s3://bucket/index verify
  python jobs/maintain.py --index s3://bucket/index purge --uri s3://bucket/images/someone.jpg
  python jobs/maintain.py --index s3://bucket/index rollback --to 41

All of it is safe beside queries, and a crash leaves the index as it was. Of an indexing job and a
compact, purge or rollback at the same time, the one that commits second stops with an error.
"""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", required=True, metavar="INDEX", help="folder of the index")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    compact = commands.add_parser("compact", help="merge small parts, sorted for σ filters")
    compact.add_argument("--part-rows", type=int, metavar="N", help="images in a part")
    compact.set_defaults(run=run_compact)
    vacuum = commands.add_parser("vacuum", help="delete files that only old versions need")
    vacuum.add_argument("--retention-hours", type=float, default=168.0, metavar="H")
    vacuum.add_argument("--dry-run", action="store_true", help="only print what would be deleted")
    vacuum.add_argument(
        "--force",
        action="store_true",
        help="allow less than an hour, and tables that are ahead of the newest snapshot: for when "
        "no job is running and no log entry is lost",
    )
    vacuum.set_defaults(run=run_vacuum)
    purge = commands.add_parser("purge", help="remove sources from every retained version")
    purge.add_argument("--uri", nargs="+", default=[], metavar="URI")
    purge.add_argument("--uri-file", metavar="FILE", help="a text file with a URI a line")
    purge.add_argument(
        "--grace-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="how long queries on older snapshots may go on (default: 60)",
    )
    purge.set_defaults(run=run_purge)
    verify = commands.add_parser("verify", help="read all files again and check them")
    verify.add_argument("--version", type=int, metavar="N", help="an older version")
    verify.set_defaults(run=run_verify)
    rollback = commands.add_parser("rollback", help="make an older version the newest one")
    rollback.add_argument("--to", type=int, required=True, metavar="N")
    rollback.set_defaults(run=run_rollback)
    history = commands.add_parser("history", help="print the runs that made the index")
    history.set_defaults(run=run_history)
    return parser.parse_args()


def run_compact(a: argparse.Namespace) -> None:
    """Merge small parts."""
    from segrec_batch.index.snapshot import open_snapshot
    from segrec_batch.maintenance.compact import PART_ROWS, compact

    before = open_snapshot(a.index)
    after = compact(before, a.part_rows or PART_ROWS)
    counts = [sum(1 for _ in snapshot.all_files) for snapshot in (before, after)]
    console.show_line(
        f"{a.index}: version {after.version}, {counts[0]:,} files became {counts[1]:,}"
    )


def run_vacuum(a: argparse.Namespace) -> None:
    """Delete what no retained version needs."""
    from segrec_batch.maintenance.versions import vacuum

    retention = dt.timedelta(hours=a.retention_hours)
    doomed = vacuum(a.index, retention, a.dry_run, a.force)
    if a.dry_run:
        for uri, _ in doomed:
            console.show_line(uri)
    verb = "would be deleted" if a.dry_run else "deleted"
    console.show_line(
        f"{len(doomed):,} files, {sum(size for _, size in doomed) / 1e6:,.1f} MB, {verb}"
    )


def run_purge(a: argparse.Namespace) -> None:
    """Remove sources from every retained version."""
    from segrec_batch.maintenance.purge import purge

    uris = [*a.uri, *(_lines(a.uri_file) if a.uri_file else ())]
    if not uris:
        raise InputError("name the sources with --uri or --uri-file")
    done = purge(a.index, [storage.absolute(uri) for uri in uris], a.grace_seconds)
    for uri in done.unknown:
        log.info(f"not in any file: {uri}")
    console.show_line(
        f"{len(done.found):,} sources purged, {done.files:,} files; version {done.version}"
    )
    log.info("sources that are still below --images would be indexed again by the next run")


def _lines(uri: str) -> list[str]:
    try:
        return [line for line in storage.read_bytes(uri).decode().split("\n") if line]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{uri} cannot be read: {error}") from error


def run_verify(a: argparse.Namespace) -> None:
    """Check all files; the exit code says whether they are well."""
    from segrec_batch.index.snapshot import open_snapshot
    from segrec_batch.maintenance.verify import verify

    snapshot = open_snapshot(a.index, a.version)
    problems = verify(snapshot)
    for problem in problems:
        console.show_line(problem)
    if problems:
        raise IndexStateError(f"{a.index}: version {snapshot.version}, {len(problems)} problems")
    console.show_line(
        f"{a.index}: version {snapshot.version} is well, {snapshot.rows('images'):,} images"
    )


def run_rollback(a: argparse.Namespace) -> None:
    """Make an older version the newest one."""
    from segrec_batch.maintenance.versions import rollback

    after = rollback(a.index, a.to)
    console.show_line(f"{a.index}: version {after.version} is as version {a.to} was")


def run_history(a: argparse.Namespace) -> None:
    """Print the runs that made the index."""
    from segrec_batch.index.snapshot import history

    rows = [
        (str(entry.version), f"{entry.time:%Y-%m-%d %H:%M:%S}", *_told(entry.info.get("segrec")))
        for entry in history(a.index)
    ]
    header = ("version", "time (UTC)", "run", "indexed", "failed", "gone", "listed")
    console.show(console.table(a.index, header, rows))


def _told(info: Mapping[str, Any] | None) -> tuple[str, ...]:
    if not isinstance(info, Mapping):
        return ("made", "", "", "", "")
    if "operation" in info:
        rest = ", ".join(f"{k} {v}" for k, v in info.items() if k != "operation")
        return (f"{info['operation']} ({rest})", "", "", "", "")
    run = f"{info.get('run_id', '')}{' rebuild' if info.get('rebuild') else ''}"
    counts = [info.get(name, "") for name in ("indexed", "failed", "gone", "listed")]
    return (run, *(f"{n:,}" if isinstance(n, int) else str(n) for n in counts))


def main(a: argparse.Namespace) -> None:
    """Run a command."""
    reads = a.run in (run_history, run_verify)
    check_places(
        {} if reads else {"--index": a.index},
        {"--index": a.index, "--uri-file": vars(a).get("uri_file")},
    )
    a.index = storage.absolute(a.index)
    a.run(a)


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(logs.run_command(lambda: main(arguments)))
