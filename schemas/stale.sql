-- Images whose sources could not be read in the last run: their rows are of an earlier run. Such a
-- source has a row in `images` and one in `failures`.
CREATE OR REPLACE VIEW stale AS
    SELECT f.image_id, f.uri, f.reason, f.run_id, f.failed_at
    FROM main.failures AS f SEMI JOIN main.images AS i USING (image_id);
