-- Functions and table macros of segrec_batch, for DuckDB 2.0 or newer. `recommend` reads the views
-- `images` and `regions`, which `segrec_batch.connect()` makes.

-- Pearson correlation of two vectors of one length (Abdullah 2026, eq. 6) from sums in float64,
-- rounded to 14 places, so that 1 is 1. NULL where it is not defined: a constant vector, NaN, NULL.
-- Vectors of two lengths are an error. The products with max - min are there because the norm of a
-- constant vector may round to something other than 0.
CREATE OR REPLACE MACRO pearson(a, b) AS
    nullif(
        round(
            (len(a) * list_inner_product(a::DOUBLE[], b::DOUBLE[])
             - list_sum(a::DOUBLE[]) * list_sum(b::DOUBLE[]))
            / nullif(
                sqrt(greatest(len(a) * list_inner_product(a::DOUBLE[], a::DOUBLE[])
                              - list_sum(a::DOUBLE[]) ** 2, 0))
                * sqrt(greatest(len(b) * list_inner_product(b::DOUBLE[], b::DOUBLE[])
                                - list_sum(b::DOUBLE[]) ** 2, 0)), 0)
            + 0 * nullif(list_max(a) - list_min(a), 0) * nullif(list_max(b) - list_min(b), 0),
            14),
        'NaN'::DOUBLE);

-- What `recommend` does for a feature vector `query_feature`; `self` is an image_id to leave out.
CREATE OR REPLACE MACRO rank_by_pearson(
    query_feature, self, k, class_name, min_coverage, max_coverage
) AS TABLE
    WITH asked AS MATERIALIZED (  -- once: a macro's argument is put in wherever its name stands
        SELECT query_feature AS feature
    ),
    candidates AS (
        SELECT r.image_id, r.uri, r.coverage, r.feature
        FROM regions AS r
        WHERE r.class = class_name AND r.coverage BETWEEN min_coverage AND max_coverage
        UNION ALL
        SELECT i.image_id, i.uri, NULL, i.feature
        FROM images AS i
        WHERE class_name IS NULL
    ),
    scored AS (
        SELECT c.image_id, c.uri, c.coverage, pearson(c.feature, asked.feature) AS pearson
        FROM candidates AS c, asked
        WHERE asked.feature IS NOT NULL AND c.image_id IS DISTINCT FROM self
    )
    SELECT row_number() OVER (ORDER BY s.pearson DESC NULLS LAST, s.image_id) AS rank, s.*
    FROM scored AS s
    ORDER BY rank
    LIMIT k;

-- The k most similar images by Pearson correlation; ties by image_id, undefined ones last.
-- query: the image_id of an indexed image, or a feature vector.
-- class: compare the regions of this class (and only where its coverage σ lies in the window);
--        NULL compares whole images.
-- Columns: rank, image_id, uri, coverage (of the class; NULL for whole images), pearson.
-- No rows if the query image is not indexed or has no region of the class.
--   FROM recommend('9f3c…', k := 5, class := 'car', min_coverage := 0.29, max_coverage := 0.96);
CREATE OR REPLACE MACRO recommend(
    query VARCHAR, k := 10, class := NULL, min_coverage := 0, max_coverage := 1,
    exclude_self := true
) AS TABLE (
    FROM rank_by_pearson(
        (SELECT any_value(f.feature) FROM (
            SELECT r.feature FROM regions AS r WHERE r.image_id = query AND r.class = class
            UNION ALL
            SELECT i.feature FROM images AS i WHERE i.image_id = query AND class IS NULL
        ) AS f),
        if(exclude_self, query, NULL), k, class, min_coverage, max_coverage
    )
), (
    query FLOAT[], k := 10, class := NULL, min_coverage := 0, max_coverage := 1,
    exclude_self := true
) AS TABLE (
    FROM rank_by_pearson(query, NULL::VARCHAR, k, class, min_coverage, max_coverage)
);
