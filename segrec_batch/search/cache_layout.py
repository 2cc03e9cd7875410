"""Tables of a query cache, in its schema `segrec`, and views over them."""

import duckdb

from segrec_batch.index.schema import TABLES, coverage_column, schemas
from segrec_batch.model.spec import ModelSpec
from segrec_batch.search.sql.connection import open_connection
from segrec_batch.search.sql.views import create_functions, create_table_macros, identifier

SNAPSHOT = "snapshot"
"""Table of one row with index, version and model of the cache."""


def create_snapshot_table(connection: duckdb.DuckDBPyConnection, database: str) -> None:
    """Create the schema of an attached database, and the table SNAPSHOT without its row."""
    schema = f"{identifier(database)}.segrec"
    connection.execute(f"CREATE SCHEMA {schema}")
    connection.execute(
        f"CREATE TABLE {schema}.{SNAPSHOT} (index VARCHAR, version INTEGER, model_id VARCHAR, "
        "spec VARCHAR, recipe VARCHAR)"
    )


def create_tables(connection: duckdb.DuckDBPyConnection, database: str, spec: ModelSpec) -> None:
    """Create the functions in the database in use, and empty tables in an attached one."""
    create_functions(connection, spec)
    for table, schema in schemas(spec.classes).items():
        connection.register("empty_rows", schema.empty_table())
        columns = f"{column_sql(table, spec)}, NULL::VARCHAR AS part"
        name = f"{identifier(database)}.segrec.{table}"
        rows = f"SELECT {columns} FROM empty_rows"  # noqa: S608
        connection.execute(f"CREATE TABLE {name} AS {rows}")
        connection.unregister("empty_rows")


def create_cache_views(connection: duckdb.DuckDBPyConnection, spec: ModelSpec) -> None:
    """Create the views and table macros over `segrec` in the database in use."""
    for table, schema in schemas(spec.classes).items():
        names = ", ".join(f"t.{identifier(name)}" for name in schema.names)
        connection.execute(f"CREATE VIEW {table} AS SELECT {names} FROM segrec.{table} AS t")  # noqa: S608
    create_table_macros(connection, spec.classes)


def create_views_of_attached(
    connection: duckdb.DuckDBPyConnection, database: str, spec: ModelSpec
) -> None:
    """Create the views and macros in memory, over the tables of an attached cache.

    Nothing else of the cache is used. Call `create_tables` first: it runs `functions.sql`.
    """
    connection.execute("CREATE SCHEMA segrec")
    for table in TABLES:
        source = f"{identifier(database)}.segrec.{table}"
        connection.execute(f"CREATE VIEW segrec.{table} AS FROM {source}")
    create_cache_views(connection, spec)


def read_definitions(connection: duckdb.DuckDBPyConnection, database: str) -> dict[str, str]:
    """Return the definitions of the base tables in the schema of an attached database, by name.

    A definition is a text of DuckDB: columns, types, defaults, generated columns, constraints.
    """
    rows = connection.execute(
        "SELECT table_name, sql FROM duckdb_tables() "
        "WHERE database_name = $database AND schema_name = 'segrec'",
        {"database": database},
    )
    return dict(rows.fetchall())


def read_catalogue(connection: duckdb.DuckDBPyConnection, database: str) -> set[tuple[str, ...]]:
    """Return all objects that an attached database defines, as texts."""
    rows = connection.execute(_CATALOGUE, {"database": database}).fetchall()
    return {tuple(map(str, row)) for row in rows}


def read_expected_catalogue(spec: ModelSpec) -> set[tuple[str, ...]]:
    """Return all objects that a cache of this version defines."""
    with open_connection() as connection:
        connection.execute("ATTACH ':memory:' AS cache")
        connection.execute("USE cache")
        create_snapshot_table(connection, "cache")
        create_tables(connection, "cache", spec)
        create_cache_views(connection, spec)
        return read_catalogue(connection, "cache")


_CATALOGUE = """
SELECT 'table', schema_name, table_name, sql FROM duckdb_tables() WHERE database_name = $database
UNION ALL SELECT 'view', schema_name, view_name, sql FROM duckdb_views()
    WHERE database_name = $database AND NOT internal
UNION ALL SELECT function_type, schema_name, function_name,
                 concat_ws(' ', parameters, parameter_types, macro_definition)
    FROM duckdb_functions() WHERE database_name = $database AND NOT internal
UNION ALL SELECT 'type', schema_name, type_name, '' FROM duckdb_types()
    WHERE database_name = $database AND NOT internal
UNION ALL SELECT 'index', schema_name, index_name, sql FROM duckdb_indexes()
    WHERE database_name = $database
UNION ALL SELECT 'sequence', schema_name, sequence_name, sql FROM duckdb_sequences()
    WHERE database_name = $database
UNION ALL SELECT 'trigger', schema_name, trigger_name, '' FROM duckdb_triggers()
    WHERE database_name = $database
"""


def column_sql(table: str, spec: ModelSpec) -> str:
    """Return SQL for the columns of a cache table, computed from rows of the files."""
    derived = _derived_columns(table, spec)
    names = schemas(spec.classes)[table].names
    plain = [identifier(name) for name in names if name not in derived]
    return ", ".join([*plain, *(f"{sql} AS {name}" for name, sql in derived.items())])


def _derived_columns(table: str, spec: ModelSpec) -> dict[str, str]:
    """Return SQL by name for the columns of a cache that differ from the files."""
    if table not in ("images", "regions"):
        return {}
    # DuckDB reads single rows of an ARRAY column; macros accept lists and arrays
    columns = {
        "feature": f"feature::FLOAT[{spec.feature_length}]",
        "feature_error": "feature_error(feature, inv_norm)",
    }
    if table == "images":
        names = ", ".join(identifier(coverage_column(name)) for name in spec.all_classes)
        columns["coverages"] = f"[{names}]"
        columns["sign_words"] = "sign_words(sign_bits)"
    return columns
