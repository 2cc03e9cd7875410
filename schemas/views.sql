-- What the macros read of the views `images`, `regions` and `descriptors`: with columns for what a
-- query needs. In a query cache these are tables.
CREATE SCHEMA IF NOT EXISTS segrec;

CREATE OR REPLACE VIEW segrec.images AS
    SELECT i.*, feature_error(i.feature, i.inv_norm) AS feature_error,
           list_value(*COLUMNS('^coverage_')) AS coverages, sign_words(i.sign_bits) AS sign_words
    FROM main.images AS i;

-- Columns are named with their table: a macro with a parameter `class` would hide the column.
CREATE OR REPLACE VIEW segrec.regions AS
    SELECT r.*, feature_error(r.feature, r.inv_norm) AS feature_error
    FROM main.regions AS r;

CREATE OR REPLACE VIEW segrec.descriptors AS FROM main.descriptors;
