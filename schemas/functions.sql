-- Functions of segrec_batch, for DuckDB 2.0 or newer. `segrec_batch.connect()` creates them over an
-- index, `segrec cache` in a query cache; the duckdb shell can `.read` this file.

-- Pearson correlation of two vectors of one length (Abdullah 2026, eq. 6) from sums in float64,
-- rounded to 14 places, so that 1 is 1. NULL where it is undefined: a constant vector, NaN, NULL.
-- Vectors of different lengths are an error. The factors with max - min make the result of a constant
-- vector NULL, since its norm may round to a number other than 0.
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

-- Similarity of two vectors by a metric, in float64, higher for more similar ones: 'cosine', rounded
-- to 14 places; 'dot', the inner product; 'euclidean', the negative distance. NULL if it is undefined:
-- cosine of a zero vector, NaN, NULL. Vectors of different lengths are an error.
CREATE OR REPLACE MACRO similarity(metric, a, b) AS
    nullif(
        CASE metric
            WHEN 'cosine' THEN round(list_cosine_similarity(a::DOUBLE[], b::DOUBLE[]), 14)
            WHEN 'dot' THEN list_inner_product(a::DOUBLE[], b::DOUBLE[])
            WHEN 'euclidean' THEN -list_distance(a::DOUBLE[], b::DOUBLE[])
            ELSE error('a metric is cosine, dot or euclidean; pearson compares features only')
        END,
        'NaN'::DOUBLE);

-- Whether a method is a metric of features; segrec_batch/search/similarity.py has the same METRICS.
CREATE OR REPLACE MACRO is_metric(method) AS method IN ('pearson', 'cosine', 'euclidean', 'dot');

-- The descriptor of a method, NULL for a metric of features; NAME and NAME-METRIC compare the vectors
-- of a descriptor, whose name may contain hyphens. The metric of a method; of NAME alone it is
-- 'euclidean'.
CREATE OR REPLACE MACRO method_descriptor(method) AS
    if(is_metric(method), NULL, regexp_replace(method, '-(pearson|cosine|euclidean|dot)$', ''));
CREATE OR REPLACE MACRO method_metric(method) AS
    if(is_metric(method), method,
       coalesce(nullif(regexp_extract(method, '-(pearson|cosine|euclidean|dot)$', 1), ''),
                'euclidean'));

-- Number of set bits in a list of 64-bit words.
CREATE OR REPLACE MACRO set_bits(words) AS
    list_sum(list_transform(words, lambda w: bit_count(w)::INTEGER));

-- `sign_words` converts sign bits, a list of 64-bit words, for `sign_distance`, the number of bits that
-- differ. segrec_batch replaces both by macros for the number of words of its model, which are 1.5 to
-- 3 times as fast.
CREATE OR REPLACE MACRO sign_words(bits) AS bits;
CREATE OR REPLACE MACRO sign_distance(a, b) AS
    list_sum(list_transform(a, lambda w, i: bit_count(xor(w, b[i]))::INTEGER));

-- Number of bits set in both of two lists; lists of different lengths are an error.
CREATE OR REPLACE MACRO shared_bits(a, b) AS
    if(len(a) <> len(b), error('masks of two sizes'),
       list_sum(list_transform(a, lambda w, i: bit_count(w & b[i])::INTEGER)));

-- Overlap of two bitmaps, cells in both / cells in either, in [0, 1] (the intersection over union
-- that Waqas 2023 re-ranks by). a, b: lists of 64-bit words, as `mask_bits`. NULL if both are empty.
CREATE OR REPLACE MACRO mask_iou(a, b) AS
    shared_bits(a, b) / nullif(set_bits(a) + set_bits(b) - shared_bits(a, b), 0)::DOUBLE;

-- Sum over the classes of |a - b|, in [0, 2] (Ouni 2020, eq. 1). a, b: coverage of every class and
-- the background in one order, as `coverages`.
CREATE OR REPLACE MACRO semantic_distance(a, b) AS
    if(len(a) <> len(b), error('coverages of different classes'),
       list_sum(list_transform(a, lambda share, i: abs(share::DOUBLE - b[i]::DOUBLE))));

-- Largest error of a score (x · q) · inv_norm in float32 with a query of unit length:
-- n + 8 roundings of at most 2^-24 (Higham 2002, eq. 3.5), times ‖x‖ · inv_norm.
CREATE OR REPLACE MACRO feature_error(feature, inv_norm) AS
    (len(feature) + 8) * 6e-8::DOUBLE * sqrt(list_inner_product(feature, feature)) * inv_norm;

-- (x - mean) / norm of a vector, in float64; NULL for a constant vector. Pearson of two vectors is
-- the inner product of these, so sums of them can be compared.
CREATE OR REPLACE MACRO centred(v) AS
    if(list_max(v) > list_min(v),
       list_transform(
           v::DOUBLE[],
           lambda x: (x - list_avg(v::DOUBLE[]))
                     / sqrt(list_inner_product(v::DOUBLE[], v::DOUBLE[])
                            - len(v) * list_avg(v::DOUBLE[]) ** 2)),
       NULL);

-- x / norm of a vector, in float64, for the cosine; NULL for a zero vector.
CREATE OR REPLACE MACRO unit(v) AS
    if(list_inner_product(v::DOUBLE[], v::DOUBLE[]) > 0,
       list_transform(v::DOUBLE[], lambda x: x / sqrt(list_inner_product(v::DOUBLE[], v::DOUBLE[]))),
       NULL);

-- The weighted mean of vectors; an error if the sum of the weights is not above 0.
CREATE OR REPLACE MACRO weighted_mean(vectors, weights) AS
    if(list_sum(weights) > 0,
       list_transform(
           vectors[1],
           lambda x, i: list_inner_product([v[i] for v in vectors], weights) / list_sum(weights)),
       error('what is not relevant weighs as much as all else: give a smaller gamma'));

-- A vector as a metric compares it: pearson, and the cosine, are the inner product of two of these.
CREATE OR REPLACE MACRO prepared(metric, v) AS
    CASE metric WHEN 'pearson' THEN centred(v) WHEN 'cosine' THEN unit(v) ELSE v::DOUBLE[] END;
