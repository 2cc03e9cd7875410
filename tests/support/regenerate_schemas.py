"""Write the JSON snapshots of the index's Arrow schemas."""

import json
from pathlib import Path

import pyarrow as pa

from segrec_batch.index.schema import PARTITION, schemas

FOLDER = Path(__file__).parents[2] / "schemas"


def snapshots() -> dict[str, str]:
    """Return content by file name, for an index of the classes car, person and tree."""
    return {
        f"{table}.json": json.dumps(_describe(table, schema), indent=2) + "\n"
        for table, schema in schemas(("car", "person", "tree")).items()
    }


def _describe(table: str, schema: pa.Schema) -> dict[str, object]:
    return {
        "table": table,
        "partitioned_by": PARTITION.get(table),
        "columns": [{"name": f.name, "type": str(f.type), "nullable": f.nullable} for f in schema],
    }


if __name__ == "__main__":
    for name, content in snapshots().items():
        (FOLDER / name).write_text(content)
        print(f"written: schemas/{name}")
