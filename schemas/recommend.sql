-- Table macros of segrec_batch over the relations of `views.sql` or of a query cache.

-- Number of rows that `recommend` ranks exactly, and number of rows of the pool in `recommend_like`.
CREATE OR REPLACE MACRO ranked_rows(k, rerank, depth) AS if(rerank IS NULL, k, greatest(k, depth));
CREATE OR REPLACE MACRO pool_rows(n) AS greatest(256, 4 * n);

-- A score mapped to -1 to 1, with the same order.
CREATE OR REPLACE MACRO squashed(score) AS score / (1 + abs(score));

-- Number of cells of the grid of `mask_bits`.
CREATE OR REPLACE MACRO grid_cells() AS 1024;

-- `recommend` for a query as STRUCT(feature, category, coverages, masks, image_id, content_hash).
-- Images with this image_id or content_hash are left out.
--
-- Pearson is exact, but most rows are scored in float32 only. `upper_bound` is the score in float32
-- plus its largest possible error. The rows with the highest upper bounds are the pool. The n-th best
-- lower bound in the pool is a threshold that every row of the result reaches; only rows whose upper
-- bound reaches it are scored in float64. If rows outside the pool may reach it, all rows are compared
-- with it. For other methods the upper bound is the score in float64.
CREATE OR REPLACE MACRO recommend_like(
    query, k, class_name, min_coverage, max_coverage, epsilon, penalise, rerank, depth, scope,
    distinct_content, method
) AS TABLE
    WITH query_data AS MATERIALIZED (  -- a macro would compute `query` again at each use
        SELECT unnest(q),
               -- float32 has too few digits for the direction of a nearly constant vector
               if(variation > 1e-6 * square,
                  list_transform(q.feature::DOUBLE[], lambda x: (x - mean) / sqrt(variation))::FLOAT[],
                  NULL) AS unit_vector,
               if(rerank = 'foreground_iou',
                  grid_cells() - coalesce(set_bits(q.masks['background']), 0),
                  coalesce(list_sum(list_transform(map_values(q.masks), lambda m: set_bits(m))), 0))
                   AS mask_cells
        FROM (SELECT q, list_avg(q.feature::DOUBLE[]) AS mean,
                     list_inner_product(q.feature::DOUBLE[], q.feature::DOUBLE[]) AS square,
                     square - len(q.feature) * mean ** 2 AS variation
              FROM (SELECT query AS q))
        WHERE if(method_descriptor(method) IS NULL
                 OR EXISTS (FROM segrec.descriptors AS d
                            WHERE d.descriptor = method_descriptor(method))
                 OR error('no vectors of ' || method_descriptor(method) || ' in this index; a '
                          'method is a metric, NAME or NAME-METRIC, METRIC cosine, dot or euclidean'),
                 q.feature IS NOT NULL, false)
            AND (scope IN ('region', 'image') OR error('scope is ''region'' or ''image'''))
            AND (rerank IS NULL OR rerank IN ('mask_iou', 'foreground_iou')
                 OR error('rerank is NULL, ''mask_iou'' or ''foreground_iou'''))
            AND (rerank IS NULL OR q.masks IS NOT NULL OR error('rerank needs masks := …'))
            AND (epsilon IS NULL OR q.coverages IS NOT NULL OR error('epsilon needs coverages := …'))
    ),
    filtered_rows AS NOT MATERIALIZED (  -- only one of the five parts has rows
        SELECT r.image_id, r.uri, r.coverage, r.content_hash, r.feature::FLOAT[] AS feature, r.inv_norm,
               r.feature_error, NULL AS coverages
        FROM segrec.regions AS r
        WHERE r.class = class_name AND r.coverage BETWEEN min_coverage AND max_coverage
            AND scope = 'region' AND epsilon IS NULL AND method_descriptor(method) IS NULL
        UNION ALL
        SELECT r.image_id, r.uri, r.coverage, r.content_hash, r.feature::FLOAT[], r.inv_norm,
               r.feature_error, i.coverages
        FROM segrec.regions AS r JOIN segrec.images AS i USING (image_id)
        WHERE r.class = class_name AND r.coverage BETWEEN min_coverage AND max_coverage
            AND scope = 'region' AND epsilon IS NOT NULL AND method_descriptor(method) IS NULL
        UNION ALL
        SELECT i.image_id, i.uri, r.coverage, i.content_hash, i.feature::FLOAT[], i.inv_norm,
               i.feature_error, i.coverages
        FROM segrec.regions AS r JOIN segrec.images AS i USING (image_id)
        WHERE r.class = class_name AND r.coverage BETWEEN min_coverage AND max_coverage
            AND scope = 'image' AND method_descriptor(method) IS NULL
        UNION ALL
        SELECT i.image_id, i.uri, NULL, i.content_hash, i.feature::FLOAT[], i.inv_norm,
               i.feature_error, i.coverages
        FROM segrec.images AS i
        WHERE class_name IS NULL AND method_descriptor(method) IS NULL
        UNION ALL
        SELECT d.image_id, d.uri, r.coverage, d.content_hash, d.vector, NULL, 0, i.coverages
        FROM segrec.descriptors AS d
            JOIN query_data ON method <> 'localised' OR d.category = query_data.category
            JOIN segrec.images AS i ON i.image_id = d.image_id
            LEFT JOIN segrec.regions AS r ON r.image_id = d.image_id AND r.class = class_name
        WHERE d.descriptor = method_descriptor(method) AND d.vector IS NOT NULL
            AND (class_name IS NULL OR r.coverage BETWEEN min_coverage AND max_coverage)
    ),
    compared_rows AS NOT MATERIALIZED (
        SELECT m.* REPLACE (if(method = 'pearson', m.feature_error, 0) AS feature_error),
               query_data.unit_vector,
               if(method = 'pearson', NULL,
                  similarity(method_metric(method), m.feature, query_data.feature)) AS exact_score,
               if(epsilon IS NULL, NULL, semantic_distance(m.coverages, query_data.coverages))
                   AS distance
        FROM filtered_rows AS m, query_data
    ),
    candidates AS NOT MATERIALIZED (  -- rows beyond epsilon rank below all others
        SELECT j.image_id, j.uri, j.coverage, j.content_hash, j.feature, j.feature_error, j.distance,
               j.exact_score,
               if(method = 'pearson',
                  (list_inner_product(j.feature::FLOAT[], j.unit_vector) * j.inv_norm)::DOUBLE
                  + j.feature_error,
                  squashed(j.exact_score))
               - if(epsilon IS NULL, 0, if(j.distance > epsilon, 4, 0)) AS upper_bound
        FROM compared_rows AS j
        WHERE epsilon IS NULL OR penalise OR j.distance <= epsilon
    ),
    pool AS MATERIALIZED (
        FROM candidates
        ORDER BY upper_bound DESC NULLS LAST
        LIMIT pool_rows(ranked_rows(k, rerank, depth))
    ),
    lower_bounds AS (
        SELECT max(p.upper_bound - 2 * p.feature_error) AS lower_bound
        FROM pool AS p, query_data
        WHERE p.image_id IS DISTINCT FROM query_data.image_id
            AND (query_data.content_hash IS NULL OR p.content_hash <> query_data.content_hash)
        GROUP BY if(distinct_content, p.content_hash, p.image_id)
        ORDER BY lower_bound DESC NULLS LAST
        LIMIT ranked_rows(k, rerank, depth)
    ),
    pool_check AS MATERIALIZED (
        SELECT l.threshold,
               p.rows < pool_rows(ranked_rows(k, rerank, depth))
               OR coalesce(l.threshold > p.lowest_bound, false) AS is_sufficient
        FROM (SELECT count(*) AS rows, min(upper_bound) AS lowest_bound FROM pool) AS p,
             (SELECT if(count(lower_bound) = ranked_rows(k, rerank, depth), min(lower_bound), NULL)
                  AS threshold FROM lower_bounds) AS l
    ),
    full_scan AS MATERIALIZED (  -- join on a column: DuckDB skips the scan if the table is empty
        SELECT threshold, len(query_data.feature) AS feature_length
        FROM pool_check, query_data
        WHERE NOT is_sufficient
    ),
    scored_rows AS MATERIALIZED (
        SELECT c.image_id, c.uri, c.coverage, c.content_hash, c.distance,
               if(method = 'pearson', pearson(c.feature, query_data.feature), c.exact_score) AS score
        FROM (SELECT pool.* FROM pool, pool_check
              WHERE pool_check.is_sufficient AND (threshold IS NULL OR upper_bound >= threshold)
              UNION ALL
              SELECT candidates.* FROM candidates
                  JOIN full_scan ON full_scan.feature_length = len(candidates.feature)
              WHERE threshold IS NULL OR upper_bound >= threshold) AS c, query_data
        WHERE c.image_id IS DISTINCT FROM query_data.image_id
            AND (query_data.content_hash IS NULL OR c.content_hash <> query_data.content_hash)
    ),
    ordered_rows AS (
        SELECT *, row_number() OVER (
                   ORDER BY score IS NULL, coalesce(distance > epsilon, false), score DESC,
                            image_id) AS score_rank
        FROM scored_rows
    ),
    first_rows AS MATERIALIZED (
        FROM ordered_rows
        QUALIFY NOT distinct_content
            OR row_number() OVER (PARTITION BY content_hash ORDER BY score_rank) = 1
        ORDER BY score_rank
        LIMIT ranked_rows(k, rerank, depth)
    ),
    mask_overlaps AS (
        SELECT r.image_id,
               sum(coalesce(shared_bits(r.mask_bits, query_data.masks[r.class]), 0)) AS shared_cells,
               sum(set_bits(r.mask_bits)) AS mask_cells
        FROM segrec.regions AS r JOIN first_rows USING (image_id), query_data
        WHERE rerank = 'mask_iou'
            AND (r.class = class_name OR class_name IS NULL AND r.class <> 'background')
        GROUP BY r.image_id
        UNION ALL  -- the foreground: all cells that are not background
        SELECT f.image_id,
               query_data.mask_cells - coalesce(set_bits(r.mask_bits), 0)
               + coalesce(shared_bits(r.mask_bits, query_data.masks['background']), 0),
               grid_cells() - coalesce(set_bits(r.mask_bits), 0)
        FROM first_rows AS f
            LEFT JOIN segrec.regions AS r
                ON r.image_id = f.image_id AND r.class = 'background', query_data
        WHERE rerank = 'foreground_iou'
    ),
    first_with_iou AS (
        SELECT f.*, row_number() OVER (ORDER BY f.score_rank) AS first_rank,
               if(rerank IS NULL, NULL,
                  coalesce(s.shared_cells, 0)
                  / nullif(query_data.mask_cells + coalesce(s.mask_cells - s.shared_cells, 0), 0)::DOUBLE)
                   AS mask_iou
        FROM first_rows AS f LEFT JOIN mask_overlaps AS s USING (image_id), query_data
    )
    SELECT row_number() OVER (
               ORDER BY is_reranked DESC, if(is_reranked, coalesce(distance > epsilon, false), false),
                        if(is_reranked, mask_iou, NULL) DESC NULLS LAST, first_rank
           ) AS rank,
           image_id, uri, coverage, if(method_metric(method) = 'pearson', score, NULL) AS pearson,
           score, distance AS semantic_distance, mask_iou
    FROM (SELECT *, rerank IS NOT NULL AND first_rank <= depth AS is_reranked FROM first_with_iou)
    ORDER BY rank
    LIMIT k;

-- The vectors that a method compares: of images, of their regions of a class, or of a descriptor.
CREATE OR REPLACE MACRO method_vectors(class_name, scope, method) AS TABLE
    SELECT r.image_id, r.feature::FLOAT[] AS vector, r.content_hash, NULL AS category
    FROM segrec.regions AS r
    WHERE r.class = class_name AND scope = 'region' AND method_descriptor(method) IS NULL
    UNION ALL
    SELECT i.image_id, i.feature::FLOAT[], i.content_hash, NULL
    FROM segrec.images AS i
    WHERE (class_name IS NULL OR scope = 'image') AND method_descriptor(method) IS NULL
    UNION ALL
    SELECT d.image_id, d.vector, d.content_hash, d.category
    FROM segrec.descriptors AS d
    WHERE d.descriptor = method_descriptor(method);

-- The argument `query` of `recommend_like` for an image of the index; unused fields are NULL.
CREATE OR REPLACE MACRO indexed_query(
    id, class_name, epsilon, rerank, scope, exclude_self, distinct_content, method
) AS (
    SELECT {
        feature: any_value(f.vector),
        category: any_value(f.category),
        coverages: (SELECT any_value(i.coverages) FROM segrec.images AS i
                    WHERE i.image_id = id AND epsilon IS NOT NULL),
        masks: coalesce(
            (SELECT map(list(r.class), list(r.mask_bits)) FROM segrec.regions AS r
             WHERE r.image_id = id
                 AND (rerank = 'mask_iou'
                      AND (r.class = class_name OR class_name IS NULL AND r.class <> 'background')
                      OR rerank = 'foreground_iou' AND r.class = 'background')),
            MAP {}),
        image_id: if(exclude_self, id, NULL),
        content_hash: if(exclude_self AND distinct_content, any_value(f.content_hash), NULL)}
    FROM method_vectors(class_name, scope, method) AS f
    WHERE f.image_id = id
);

-- The argument `query` of `recommend_like` for a vector.
CREATE OR REPLACE MACRO vector_query(vector, coverages, masks, category, method) AS {
    feature: vector,
    category: if(method = 'localised' AND category IS NULL,
                 error('localised needs category := …'), category)::VARCHAR,
    coverages: coverages::FLOAT[],
    masks: masks::MAP(VARCHAR, BIGINT[]),
    image_id: NULL::VARCHAR,
    content_hash: NULL::VARCHAR
};

-- `query` after expansion (Chum 2007): its vector becomes the mean of itself, with weight 1, and of
-- `vectors` with the cubes of their `similarities` (Radenović 2018), as the metric compares them;
-- unchanged if there are none or `expand` is NULL.
CREATE OR REPLACE MACRO expanded_query(query, vectors, similarities, expand, method) AS (
    SELECT struct_update(
               q,
               feature := if(own IS NULL OR vectors IS NULL OR expand IS NULL, q.feature,
                             weighted_mean([own] || vectors,
                                           [1::DOUBLE] || [s ** 3 for s in similarities])::FLOAT[]))
    FROM (SELECT q, prepared(method_metric(method), q.feature) AS own FROM (SELECT query AS q))
    WHERE (expand IS NULL OR expand >= 1
           OR error('expand is a number of results, 1 or more, or NULL'))
        AND (expand IS NULL OR method_metric(method) IN ('pearson', 'cosine')
             OR error('expand weighs results by similarity: give method pearson, cosine or NAME-cosine'))
);

-- The first `expand` results of a query as one row of two lists, their vectors as the metric compares
-- them and their similarities above 0; NULL if there are none. They pass all filters.
CREATE OR REPLACE MACRO expansion_of(
    query, expand, class_name, min_coverage, max_coverage, epsilon, scope, distinct_content, method
) AS TABLE
    SELECT list(prepared(method_metric(method), v.vector) ORDER BY r.rank) AS vectors,
           list(r.score ORDER BY r.rank) AS similarities
    FROM recommend_like(query, greatest(expand, 1), class_name, min_coverage, max_coverage, epsilon,
                        false, NULL, 1, scope, distinct_content, method) AS r
        JOIN method_vectors(class_name, scope, method) AS v USING (image_id)
    WHERE r.score > 0;

-- The re-ranking of a query: the argument, or the default of the method.
CREATE OR REPLACE MACRO reranked_by(method, rerank) AS
    coalesce(rerank, if(method = 'localised', 'foreground_iou', NULL));

-- The k most similar images; ties by image_id, undefined scores last.
-- query: the image_id of an indexed image, or a vector of the kind that the method compares.
-- method: 'pearson' (Abdullah 2026), 'cosine', 'euclidean' and 'dot' compare features; the
--        name of a descriptor compares its vectors by Euclidean distance ('texture'), or by the
--        metric after the hyphen ('pca-cosine'). 'localised' is the pipeline of Waqas 2023: images of the
--        query's category, the first `depth` re-ranked by 'foreground_iou';
--        'localised-euclidean' is the same without re-ranking.
-- class: compare the regions of this class, and only where its coverage σ lies in the window from
--        min_coverage to max_coverage; NULL compares whole images. Descriptors describe whole images.
-- scope: 'image' compares whole images; the class, if there is one, filters them by its coverage.
-- epsilon: only images whose semantic distance from the query is at most this (Ouni 2020, eq. 1;
--        0.9 there); with penalise := true the others rank below the rest.
-- rerank: 'mask_iou' orders the first `depth` by the mask IoU with the query, of the class or, without
--        one, of all foreground classes; 'foreground_iou' by the IoU of the foreground as a whole.
--        Ties keep their order.
-- exclude_self: leave out the query's image. distinct_content: of images with the same bytes only
--        the first; if the query's image is left out, so are its copies.
-- Columns: rank, image_id, uri, coverage (of the class), pearson (NULL with other metrics), score
-- (see `similarity`), semantic_distance (NULL without epsilon), mask_iou (NULL without re-ranking).
-- No rows if the query image is not indexed or has no region of the class.
--   FROM recommend('9f3c…', k := 5, class := 'car', min_coverage := 0.29, max_coverage := 0.96);
-- With a vector as query, these replace the columns of an indexed image: coverages, a list like the
-- column, for epsilon; masks, a MAP from class to mask_bits, for rerank ('background' for
-- foreground_iou); category.
-- expand: rank again by the mean of the query and its first `expand` results, see `expanded_query`;
--        for methods by Pearson or cosine.
CREATE OR REPLACE MACRO recommend(
    query VARCHAR, k := 10, class := NULL, min_coverage := 0, max_coverage := 1, epsilon := NULL,
    penalise := false, rerank := NULL, depth := 100, scope := 'region', exclude_self := true,
    distinct_content := true, method := 'pearson'
) AS TABLE (
    FROM recommend_like(
        indexed_query(query, class, epsilon, reranked_by(method, rerank), scope, exclude_self,
                      distinct_content, method),
        k, class, min_coverage, max_coverage, epsilon, penalise, reranked_by(method, rerank), depth,
        scope, distinct_content, method)
), (
    query FLOAT[], k := 10, class := NULL, min_coverage := 0, max_coverage := 1, epsilon := NULL,
    penalise := false, rerank := NULL, depth := 100, scope := 'region', exclude_self := true,
    distinct_content := true, method := 'pearson', coverages := NULL, masks := NULL,
    category := NULL
) AS TABLE (
    FROM recommend_like(
        vector_query(query, coverages, masks, category, method),
        k, class, min_coverage, max_coverage, epsilon, penalise, reranked_by(method, rerank), depth,
        scope, distinct_content, method)
), (
    query VARCHAR, expand, k := 10, class := NULL, min_coverage := 0, max_coverage := 1,
    epsilon := NULL, penalise := false, rerank := NULL, depth := 100, scope := 'region',
    exclude_self := true, distinct_content := true, method := 'pearson'
) AS TABLE (
    WITH expansion AS MATERIALIZED (
        FROM expansion_of(
            indexed_query(query, class, epsilon, NULL, scope, true, distinct_content, method),
            expand, class, min_coverage, max_coverage, epsilon, scope, distinct_content, method)
    )
    FROM recommend_like(
        (SELECT expanded_query(
                    indexed_query(query, class, epsilon, reranked_by(method, rerank), scope,
                                  exclude_self, distinct_content, method),
                    vectors, similarities, expand, method)
         FROM expansion),
        k, class, min_coverage, max_coverage, epsilon, penalise, reranked_by(method, rerank), depth,
        scope, distinct_content, method)
), (
    query FLOAT[], expand, k := 10, class := NULL, min_coverage := 0, max_coverage := 1,
    epsilon := NULL, penalise := false, rerank := NULL, depth := 100, scope := 'region',
    exclude_self := true, distinct_content := true, method := 'pearson', coverages := NULL,
    masks := NULL, category := NULL
) AS TABLE (
    WITH expansion AS MATERIALIZED (
        FROM expansion_of(
            vector_query(query, coverages, NULL, category, method), expand, class, min_coverage,
            max_coverage, epsilon, scope, distinct_content, method)
    )
    FROM recommend_like(
        (SELECT expanded_query(vector_query(query, coverages, masks, category, method), vectors,
                               similarities, expand, method)
         FROM expansion),
        k, class, min_coverage, max_coverage, epsilon, penalise, reranked_by(method, rerank), depth,
        scope, distinct_content, method)
);

-- An approximation of `recommend` for whole images: it ranks by Pearson correlation only the `pool`
-- images whose sign bits differ least from those of the image `query`. In a query cache it reads a
-- tenth of the bytes that `recommend` reads.
CREATE OR REPLACE MACRO recommend_by_sign_bits(
    query, k := 10, pool := 1000, exclude_self := true, distinct_content := true
) AS TABLE
    WITH query_image AS MATERIALIZED (
        FROM segrec.images AS i WHERE i.image_id = query
    ),
    nearest AS MATERIALIZED (
        SELECT i.image_id
        FROM segrec.images AS i, query_image AS q
        ORDER BY sign_distance(i.sign_words, q.sign_words), i.image_id
        LIMIT pool
    ),
    pool_features AS MATERIALIZED (  -- without a join, which would copy all features
        SELECT i.image_id, i.uri, i.content_hash, i.feature
        FROM segrec.images AS i
        WHERE i.image_id IN (FROM nearest)
    ),
    scored_rows AS MATERIALIZED (
        SELECT f.image_id, f.uri, f.content_hash, pearson(f.feature, q.feature) AS pearson
        FROM pool_features AS f, query_image AS q
        WHERE NOT (exclude_self AND f.image_id = q.image_id)
            AND NOT (exclude_self AND distinct_content AND f.content_hash = q.content_hash)
    )
    SELECT row_number() OVER (ORDER BY pearson DESC NULLS LAST, image_id) AS rank,
           image_id, uri, pearson
    FROM (
        FROM scored_rows
        QUALIFY NOT distinct_content OR row_number() OVER (
            PARTITION BY content_hash ORDER BY pearson DESC NULLS LAST, image_id) = 1)
    ORDER BY rank
    LIMIT k;
