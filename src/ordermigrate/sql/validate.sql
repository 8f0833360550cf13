-- name: probe_md5
-- Whether this server may compute MD5 (one in FIPS mode may not).
SELECT md5('ordermigrate');

-- name: probe_byte_order
-- A hash that differs between servers of different byte orders.
SELECT hash_record_extended(ROW(record_send(ROW(1234567::integer, 'ordermigrate'::text))), 0) AS hash;
