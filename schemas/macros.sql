-- Functions and table macros of segrec_batch, for DuckDB 2.0 or newer.
-- They need the views `images` and `regions`; `segrec_batch.connect()` makes those first.

-- Pearson correlation of two vectors of the same length (Abdullah 2026, eq. 6), in float64.
-- NULL where it is not defined: a constant vector, NaN, NULL. Another length is an error.
-- The factors max - min turn a constant vector, whose norm rounds to nearly 0, into an exact NULL.
CREATE OR REPLACE MACRO pearson(a, b) AS (
    SELECT nullif(greatest(-1.0, least(1.0,
               (n * ab - sa * sb)
               / nullif(sqrt(n * aa - sa * sa) * sqrt(n * bb - sb * sb), 0)
               + 0 * nullif(ra, 0) * nullif(rb, 0)
           )), 'NaN'::DOUBLE)
    FROM (SELECT len(x) AS n,
                 list_sum(x) AS sa, list_sum(y) AS sb,
                 list_inner_product(x, y) AS ab,
                 list_inner_product(x, x) AS aa, list_inner_product(y, y) AS bb,
                 list_max(x) - list_min(x) AS ra, list_max(y) - list_min(y) AS rb
          FROM (SELECT a::DOUBLE[] AS x, b::DOUBLE[] AS y))
);
