"""Nodes, operators and functions that untrusted SQL may have. All others are refused."""

from functools import cache

from segrec_batch.search.sql.views import schema_file


def _set(names: str, prefix: str = "") -> frozenset[str]:
    return frozenset(prefix + name for name in names.split())


TABLE_FUNCTIONS = _set(
    """
    range generate_series unnest repeat_row json_each json_tree
    duckdb_columns duckdb_functions duckdb_tables duckdb_types duckdb_views
    """
)
"""Table functions that untrusted SQL may use."""


@cache
def allowed_functions() -> frozenset[str]:
    """Return the functions of DuckDB, beside table functions, that untrusted SQL may use."""
    lines = schema_file("sql_functions.txt").splitlines()
    return frozenset(n.lower() for line in lines if not line.startswith("# ") for n in line.split())


def list_functions(tabular: bool) -> frozenset[str]:
    """Return the functions allowed as a table, or those allowed elsewhere."""
    return TABLE_FUNCTIONS if tabular else allowed_functions()


INTERNAL_FUNCTIONS = frozenset(
    (
        "__cast",
        "__between",
        "IS DISTINCT FROM",
        "IS NOT DISTINCT FROM",
        "seq_scan",
        "list_aggr",
        "list_aggregate",
        "unpivot_list",
        "in_search_path",
    )
)
"""Functions that DuckDB puts into plans of operators, macros and SUMMARIZE."""

PARSE_NODES = _set(
    """
    SELECT_NODE SET_OPERATION_NODE CTE_NODE RECURSIVE_CTE_NODE
    BASE_TABLE SUBQUERY JOIN TABLE_FUNCTION EXPRESSION_LIST EMPTY PIVOT SHOW_REF
    LIMIT_MODIFIER LIMIT_PERCENT_MODIFIER ORDER_MODIFIER DISTINCT_MODIFIER
    ORDER_DEFAULT ASCENDING DESCENDING
    """
)
EXPRESSIONS = _set(
    """
    BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA LAMBDA_REF
    OPERATOR PARAMETER POSITIONAL_REFERENCE STAR SUBQUERY TYPE WINDOW
    """
)
OPERATORS = _set(
    """
    AGGREGATE_AND_GROUP_BY ANY_JOIN ASOF_JOIN CHUNK_GET COMPARISON_JOIN CROSS_PRODUCT CTE_REF
    DELIM_GET DELIM_JOIN DEPENDENT_JOIN DISTINCT DUMMY_SCAN EMPTY_RESULT EXCEPT EXPRESSION_GET
    FILTER GET INTERSECT JOIN LIMIT MATERIALIZED_CTE ORDER_BY PIVOT POSITIONAL_JOIN PROJECTION
    RECURSIVE_CTE SAMPLE TOP_N UNION UNNEST WINDOW
    """,
    "LOGICAL_",
)
BOUND_EXPRESSIONS = _set(
    """
    AGGREGATE BETWEEN CASE CAST COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA LAMBDA_REF OPERATOR
    REF UNNEST WINDOW
    """,
    "BOUND_",
)
