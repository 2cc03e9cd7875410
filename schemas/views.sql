-- What the macros read of the views `images`, `regions` and `descriptors`: with columns for what a
-- query needs. In a query cache these are tables.
CREATE SCHEMA IF NOT EXISTS segrec;

CREATE OR REPLACE VIEW segrec.images AS
    SELECT i.*, feature_error(i.feature, i.inv_norm) AS feature_error,
           list_value(*COLUMNS('^coverage_')) AS coverages,
           i.sign_bits[1] AS sign_1, i.sign_bits[2] AS sign_2, i.sign_bits[3] AS sign_3,
           i.sign_bits[4] AS sign_4, i.sign_bits[5] AS sign_5, i.sign_bits[6] AS sign_6,
           i.sign_bits[7] AS sign_7, i.sign_bits[8] AS sign_8
    FROM main.images AS i;

-- Columns are named with their table: a macro with a parameter `class` would hide the column.
CREATE OR REPLACE VIEW segrec.regions AS
    SELECT r.*, feature_error(r.feature, r.inv_norm) AS feature_error
    FROM main.regions AS r;

CREATE OR REPLACE VIEW segrec.descriptors AS FROM main.descriptors;
