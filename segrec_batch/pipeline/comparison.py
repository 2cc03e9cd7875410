"""SQL that compares a listing with the rows of an index, in the database of a plan.

An image of the index has a row in `images`, in `failures`, or in both. An image with both is
*stale*: the last run could not read it, and its row in `images` is from an earlier run.
"""

CREATE_TABLES = """
CREATE TABLE listed (
    uri VARCHAR, source_size BIGINT, source_etag VARCHAR, problem VARCHAR, named BOOLEAN
);
CREATE TABLE old_failures (
    image_id VARCHAR, uri VARCHAR, source_size BIGINT, source_etag VARCHAR, stage VARCHAR,
    failed_at TIMESTAMPTZ, part VARCHAR
);
CREATE TABLE old (
    image_id VARCHAR, uri VARCHAR, source_size BIGINT, source_etag VARCHAR, content_hash VARCHAR,
    part VARCHAR, stage VARCHAR, failed_size BIGINT, failed_etag VARCHAR, failed_at TIMESTAMPTZ,
    failed_part VARCHAR
);
CREATE TABLE not_images (uri VARCHAR);
"""

COLUMNS = {  # columns to select from the tables of an index; the part is added
    "images": "image_id, uri, source_size, source_etag, content_hash",
    "failures": "image_id, uri, source_size, source_etag, stage, failed_at",
}

_FAILED = """stage, f.source_size AS failed_size, f.source_etag AS failed_etag, failed_at,
       f.part AS failed_part"""

INSERT_OLD_IMAGES = f"""
INSERT INTO old BY NAME
SELECT i.*, {_FAILED} FROM ({{rows}}) AS i LEFT JOIN old_failures AS f USING (uri)
"""  # noqa: S608

INSERT_OLD_FAILURES = f"""
INSERT INTO old BY NAME
SELECT f.image_id, f.uri, {_FAILED} FROM old_failures AS f ANTI JOIN old USING (uri)
"""  # noqa: S608

# globs of a request apply to the path below the listed folder
_EXCLUDED = """(
    (len($include::VARCHAR[]) > 0
     AND len(list_filter($include::VARCHAR[], lambda pattern: path GLOB pattern)) = 0)
    OR len(list_filter($exclude::VARCHAR[], lambda pattern: path GLOB pattern)) > 0
)"""

# listed files without a known extension that the index has not as images
UNRECOGNISED = f"""
WITH unnamed AS (
    SELECT *, uri[length($below) + 1:] AS path FROM listed WHERE NOT named
)
SELECT unnamed.uri, unnamed.source_size, problem
FROM unnamed LEFT JOIN old USING (uri)
WHERE NOT {_EXCLUDED} AND (old.uri IS NULL OR (old.part IS NULL AND stage = 'read'))
"""  # noqa: S608

DELETE_NOT_IMAGES = "DELETE FROM listed WHERE uri IN (FROM not_images)"

# outside: not below the listed folder, or not listed and excluded by globs
CREATE_PLAN = f"""
CREATE TABLE plan AS
WITH joined AS (
    SELECT
        coalesce(listed.uri, old.uri) AS uri,
        coalesce(listed.uri, old.uri)[length($below) + 1:] AS path,
        listed.source_size, listed.source_etag, problem,
        old.image_id, old.content_hash, old.part, old.stage, old.failed_at, old.failed_part,
        listed.uri IS NULL AS missing,
        listed.source_size <> coalesce(failed_size, old.source_size)
            OR listed.source_etag <> coalesce(failed_etag, old.source_etag) AS differs
    FROM listed FULL JOIN old ON listed.uri = old.uri
)
SELECT
    * EXCLUDE (path, missing, differs),
    CASE
        WHEN missing AND (NOT starts_with(uri, $below) OR {_EXCLUDED}) THEN 'outside'
        WHEN {_EXCLUDED} THEN 'excluded'
        WHEN missing THEN 'gone'
        WHEN image_id IS NULL THEN 'new'
        WHEN differs THEN 'changed'
        WHEN stage IS NULL THEN 'unchanged'
        WHEN stage = 'read' OR $retry_failed THEN 'retried'
        ELSE 'skipped'
    END AS status
FROM joined
"""  # noqa: S608

# The donor of an image is an indexed image that may have the same bytes: for a changed image its
# own row, for a new image one with the same size and ETag or time, because it may have been moved
# or copied. The hash decides when the bytes are read.
# Rows and donors are joined by rowid: LIMIT, row_number() and arg_min() of a struct need memory,
# while sorting, joining and min() spill to disk. Retried images come last, those with the oldest
# failure first, so that runs with a limit do not try the same unreadable images each time.
CREATE_WORK = """
CREATE TABLE work AS
WITH todo AS (
    FROM plan WHERE status IN ('new', 'changed', 'retried')
), donors AS (
    SELECT source_size, source_etag, 'new' AS status, min(rowid) AS donor_rowid
    FROM old SEMI JOIN (FROM todo WHERE status = 'new') USING (source_size, source_etag)
    WHERE content_hash IS NOT NULL
    GROUP BY ALL
)
SELECT
    todo.uri, todo.source_size, todo.source_etag, problem, todo.part AS old_part, todo.failed_part,
    CASE
        WHEN todo.content_hash IS NOT NULL THEN {
            'image_id': todo.image_id, 'content_hash': todo.content_hash, 'part': todo.part
        }
        WHEN donor_rowid IS NOT NULL THEN {
            'image_id': old.image_id, 'content_hash': old.content_hash, 'part': old.part
        }
    END AS donor,
    status
FROM todo
LEFT JOIN donors USING (source_size, source_etag, status)
LEFT JOIN old ON old.rowid = donor_rowid
ORDER BY if(status = 'retried', todo.failed_at, NULL) NULLS FIRST, todo.part NULLS FIRST, todo.uri
"""

COUNT_STATUS = """
SELECT status, count(*) AS n FROM plan GROUP BY status
"""

# number of images to process, of those that have rows in the index, and of rows that the run
# removes if all images can be read
COUNT_REPLACED = """
WITH affected AS (
    SELECT uri, old_part, failed_part, true AS listed FROM work
    UNION ALL SELECT uri, part, failed_part, false FROM plan WHERE status = 'gone'
)
SELECT
    count(*) FILTER (listed) AS todo,
    count(*) FILTER (listed AND (old_part IS NOT NULL OR failed_part IS NOT NULL)) AS replaced,
    count(old_part) AS images,
    count(failed_part) AS failures
FROM affected
"""

# number of images that are listed or indexed more than once: they occur several times after the
# join. Only an image that could not be read may be in both tables of the index
COUNT_DUPLICATES = """
SELECT
    (SELECT count(*) FROM plan WHERE source_size IS NOT NULL) - (SELECT count(*) FROM listed)
    + (SELECT count(*) FROM plan WHERE part IS NOT NULL AND stage <> 'read')
"""

GONE = """
FROM (
    SELECT part, 'images' AS kind, image_id FROM plan WHERE status = 'gone' AND part IS NOT NULL
    UNION ALL
    SELECT failed_part, 'failures', image_id FROM plan
    WHERE status = 'gone' AND failed_part IS NOT NULL
)
ORDER BY part
"""

# number of images of a superseded snapshot that are outside the request, covered by it, and gone
COUNT_SUPERSEDED = f"""
WITH published AS (
    SELECT uri, uri[length($below) + 1:] AS path FROM (SELECT DISTINCT uri FROM {{rows}})
), located AS (
    SELECT uri, NOT starts_with(uri, $below) OR {_EXCLUDED} AS outside FROM published
)
SELECT
    count(*) FILTER (outside) AS outside,
    count(*) FILTER (NOT outside) AS known,
    count(*) FILTER (NOT outside AND listed.uri IS NULL) AS gone
FROM located LEFT JOIN listed USING (uri)
"""  # noqa: S608
