-- name: count_by_status
-- Rows per status, as text and by its bytes, whatever the collation.
SELECT
    counted.status,
    count(*) AS rows
FROM (SELECT ({status})::text COLLATE "C" AS status FROM {origin}) AS counted
GROUP BY counted.status;

-- name: count_by_user
-- Rows per user, in the order of the user's bytes, so that both sides can be read side by side.
SELECT
    counted.image,
    counted.user_text,
    counted.rows
FROM (
    SELECT
        record_send(ROW(grouped.user_value)) AS image,
        grouped.user_value::text AS user_text,
        grouped.rows
    FROM (
        SELECT
            {user} AS user_value,
            count(*) AS rows
        FROM {origin}
        GROUP BY {user}
    ) AS grouped
) AS counted
ORDER BY counted.image;

-- name: read_latest
-- The newest rows: key, user, status, time. Ties are broken by the key's bytes.
-- $1: how many.
SELECT ARRAY[{shown}] AS shown
FROM {origin} AND {created} IS NOT NULL
ORDER BY {created} DESC, {key_image}
LIMIT $1::integer;

-- name: find_unknown_users
-- Which of these users the referenced table does not have.
-- $1: users as text.
SELECT wanted.user_text
FROM unnest($1::text[]) AS wanted (user_text)
WHERE NOT EXISTS (
    SELECT FROM {table} AS known WHERE known.{column} = wanted.user_text::{type}
);
