-- What the macros read of the views `images` and `regions`: with columns for what a query needs.
CREATE SCHEMA IF NOT EXISTS segrec;

-- The most by which a score can be wrong, (x · q) · inv_norm in float32 with a query of unit length:
-- n + 8 roundings of at most 2^-24 (Higham 2002, eq. 3.5), times ‖x‖ · inv_norm.
CREATE OR REPLACE MACRO feature_error(feature, inv_norm) AS
    (len(feature) + 8) * 6e-8::DOUBLE * sqrt(list_inner_product(feature, feature)) * inv_norm;

CREATE OR REPLACE VIEW segrec.images AS
    SELECT i.image_id, i.uri, i.content_hash, i.feature, i.inv_norm,
           feature_error(i.feature, i.inv_norm) AS feature_error,
           list_value(*COLUMNS('^coverage_')) AS coverages, i.signature
    FROM main.images AS i;

-- Columns are named with their table: a macro with a parameter `class` would hide the column.
CREATE OR REPLACE VIEW segrec.regions AS
    SELECT r.image_id, r.uri, r.class, r.coverage, r.content_hash, r.feature, r.inv_norm,
           feature_error(r.feature, r.inv_norm) AS feature_error, r.mask_bits
    FROM main.regions AS r;
