-- Images whose sources could not be read in the last run: they have a row in `failures`, and their row
-- in `images` is of an earlier run.
CREATE OR REPLACE VIEW stale AS
    SELECT f.image_id, f.uri, f.reason, f.run_id, f.failed_at
    FROM main.failures AS f SEMI JOIN main.images AS i USING (image_id);
