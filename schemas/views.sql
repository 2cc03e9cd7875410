-- The relations that the macros read: the views `images`, `regions` and `descriptors` with further
-- columns for queries. In a query cache they are tables.
CREATE SCHEMA IF NOT EXISTS segrec;

CREATE OR REPLACE VIEW segrec.images AS
    SELECT i.*, feature_error(i.feature, i.inv_norm) AS feature_error,
           list_value(*COLUMNS('^coverage_')) AS coverages, sign_words(i.sign_bits) AS sign_words
    FROM main.images AS i;

-- Column names are qualified, since a parameter `class` of a macro would hide the column `class`.
CREATE OR REPLACE VIEW segrec.regions AS
    SELECT r.*, feature_error(r.feature, r.inv_norm) AS feature_error
    FROM main.regions AS r;

CREATE OR REPLACE VIEW segrec.descriptors AS FROM main.descriptors;
