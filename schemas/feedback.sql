-- Relevance feedback: the vector of a query moves towards relevant images and away from others.

-- The vectors of a list that are not NULL, in float64.
CREATE OR REPLACE MACRO non_null(vectors) AS
    list_filter(coalesce(vectors, [])::DOUBLE[][], lambda v: v IS NOT NULL);

-- The query after feedback (Rocchio 1971): the weighted mean of the query (alpha), of n relevant
-- vectors (beta / n each, somewhat relevant ones half of it) and of m that are not relevant
-- (-gamma / m each).
-- query: a vector; relevant, somewhat, not_relevant: lists of vectors, [] for none; for Pearson all
-- of them are `centred`. The default weights are those of Manning, Raghavan and Schütze 2008, §9.1.1.
CREATE OR REPLACE MACRO rocchio(
    query, relevant, somewhat, not_relevant, alpha := 1, beta := 0.75, gamma := 0.15
) AS
    weighted_mean(
        [query::DOUBLE[]]
        || non_null(relevant) || non_null(somewhat) || non_null(not_relevant),
        [alpha::DOUBLE]
        || [beta::DOUBLE / (len(non_null(relevant)) + len(non_null(somewhat)))
            for v in non_null(relevant)]
        || [beta::DOUBLE / 2 / (len(non_null(relevant)) + len(non_null(somewhat)))
            for v in non_null(somewhat)]
        || [-gamma::DOUBLE / len(non_null(not_relevant)) for v in non_null(not_relevant)]);

-- The vectors that a method compares, of whole images or of their regions of a class, as an unordered
-- list: `centred` for Pearson, `unit` for the cosine.
CREATE OR REPLACE MACRO compared(ids, class_name, scope, method) AS (
    SELECT list(prepared(method_metric(method), v.vector))
    FROM method_vectors(class_name, scope, method) AS v
    WHERE v.image_id IN (SELECT unnest(ids::VARCHAR[]))
);

-- The round after marks: `recommend` for the image `query`, whose vector `rocchio` moves towards
-- the images `relevant`, half as much towards `somewhat`, and away from `not_relevant` (lists of
-- image_ids). The image of the query is left out, and marked images too unless keep_marked; with
-- distinct_content also their copies. The other arguments are those of `recommend` and `rocchio`.
--   FROM recommend_again('9f3c…', relevant := ['02ab…', '77c0…'], not_relevant := ['5d1e…']);
CREATE OR REPLACE MACRO recommend_again(
    query, relevant := [], somewhat := [], not_relevant := [], k := 10, class := NULL,
    min_coverage := 0, max_coverage := 1, epsilon := NULL, penalise := false, rerank := NULL,
    depth := 100, scope := 'region', distinct_content := true, method := 'pearson',
    keep_marked := false, alpha := 1, beta := 0.75, gamma := 0.15
) AS TABLE
    WITH excluded AS MATERIALIZED (
        SELECT i.image_id, i.content_hash
        FROM segrec.images AS i
        WHERE i.image_id = query
            OR NOT keep_marked AND i.image_id IN (
                SELECT unnest((relevant || somewhat || not_relevant)::VARCHAR[]))
    ),
    results AS (
        FROM recommend(
            (SELECT rocchio(v.query_vectors[1], v.relevant_vectors, v.somewhat_vectors,
                            v.not_relevant_vectors,
                            alpha := alpha, beta := beta, gamma := gamma)
             FROM (SELECT compared([query], class, scope, method) AS query_vectors,
                          compared(relevant, class, scope, method) AS relevant_vectors,
                          compared(somewhat, class, scope, method) AS somewhat_vectors,
                          compared(not_relevant, class, scope, method) AS not_relevant_vectors) AS v)::FLOAT[],
            k := (SELECT k + count(*) FROM excluded), class := class, min_coverage := min_coverage,
            max_coverage := max_coverage, epsilon := epsilon, penalise := penalise,
            rerank := rerank, depth := depth, scope := scope, distinct_content := distinct_content,
            method := method,
            coverages := (SELECT i.coverages FROM segrec.images AS i WHERE i.image_id = query),
            masks := indexed_query(query, class, epsilon, reranked_by(method, rerank), scope, true,
                                   true, method).masks,
            category := indexed_query(query, class, epsilon, NULL, scope, true, true, method).category)
    )
    SELECT r.* REPLACE (row_number() OVER (ORDER BY r.rank) AS rank)
    FROM results AS r JOIN segrec.images AS i USING (image_id)
    WHERE NOT EXISTS (
        FROM excluded AS e
        WHERE e.image_id = r.image_id OR distinct_content AND e.content_hash = i.content_hash)
    ORDER BY r.rank
    LIMIT k;
