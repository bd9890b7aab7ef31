-- The short look: what fires no event trigger and leaves no trace in the log, such as TRUNCATE of one partition, and whether
-- the event trigger still announces the rest. $1 are the oids of the mapped tables. One row says when it was asked, by the
-- source's clock (the transaction began before its snapshot was taken), which transactions have ended, whether those of $4
-- can be seen (low halves of their ids, which the log has), and what of the event trigger there is; then comes one row for each mapped table that has others below it.
WITH RECURSIVE root AS (
    SELECT i.inhparent::bigint AS n, i.inhparent AS oid FROM pg_inherits i WHERE i.inhparent = ANY($1::oid[]) GROUP BY i.inhparent
), {{tree}}
SELECT 0::oid, transaction_timestamp(), pg_snapshot_xmin(pg_current_snapshot())::text, (
           SELECT coalesce(bool_and(pg_visible_in_snapshot((m + ((x - m + 2147483648) & 4294967295) - 2147483648)::text::xid8, s)), true)
           FROM (SELECT pg_current_snapshot() AS s) c, LATERAL (SELECT pg_snapshot_xmax(s)::text::bigint AS m) l, unnest($4::bigint[]) x), concat_ws('|',
           current_setting('event_triggers', true), (
           SELECT string_agg(e.oid || ' ' || e.xmin::text, ',' ORDER BY e.oid) FROM pg_event_trigger e), (
           SELECT string_agg(p.oid || ' ' || p.xmin::text, ',' ORDER BY p.oid) FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace
           WHERE p.proname = $2 AND s.nspname = $3)), NULL::bytea, NULL::bytea
UNION ALL
SELECT t.n::oid, NULL, NULL, NULL, NULL, t.storage, t.shape FROM tree t
