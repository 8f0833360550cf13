-- name: count_rows
-- How many rows a side has.
SELECT count(*) AS rows FROM {origin};
