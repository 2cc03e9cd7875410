"""What a query read: rows, row groups and bytes, as DuckDB's profiler counted them."""

import json
from dataclasses import dataclass

import duckdb

from segrec_batch.search.sql.connection import Settings


@dataclass(frozen=True)
class Work:
    """What all scans of one query read, and how long it took."""

    rows: int
    row_groups: int
    of_row_groups: int
    bytes_read: int
    """From files; what DuckDB had in memory already is not among them."""
    seconds: float

    def __str__(self) -> str:
        return (
            f"read {self.rows:,} rows of {self.row_groups:,} of {self.of_row_groups:,} row groups, "
            f"{self.bytes_read / 1e6:,.1f} MB from files, in {1000 * self.seconds:,.0f} ms"
        )


WATCHED: Settings = {"enable_profiling": "no_output"}
"""With these settings a connection counts, for `last_work`."""


def last_work(connection: duckdb.DuckDBPyConnection) -> Work:
    """Return what the last query read, on a connection with the settings WATCHED."""
    found = json.loads(connection.get_profiling_information())
    totals = found["query"]
    return Work(
        rows=totals["total_rows_scanned"],
        row_groups=totals["total_row_groups_scanned"],
        of_row_groups=totals["total_row_groups_to_scan"],
        bytes_read=found["io"]["total_bytes_read"],
        seconds=totals["total_time"],
    )
