-- The short look: what fires no event trigger and leaves no trace in the log, such as TRUNCATE of one partition, and whether
-- the event trigger still announces the rest. $1 are the oids of what stands below mapped tables, as the last wide look has
-- found them: what puts others there is announced. $4 are transactions that announced DDL (low halves of their ids, which
-- the log has). The one row says when it was asked, by the source's clock (the transaction began before its snapshot was
-- taken), which transactions have ended, whether those of $4 can be seen, what of the event trigger there is, and a
-- digest of what stands below.
SELECT transaction_timestamp(), pg_snapshot_xmin(pg_current_snapshot())::text, (
           SELECT coalesce(bool_and(pg_visible_in_snapshot((m + ((x - m + 2147483648) & 4294967295) - 2147483648)::text::xid8, s)), true)
           FROM (SELECT pg_current_snapshot() AS s) c, LATERAL (SELECT pg_snapshot_xmax(s)::text::bigint AS m) l, unnest($4::bigint[]) x), concat_ws('|',
           current_setting('event_triggers', true), (
           SELECT string_agg(e.oid || ' ' || e.xmin::text, ',' ORDER BY e.oid) FROM pg_event_trigger e), (
           SELECT string_agg(p.oid || ' ' || p.xmin::text, ',' ORDER BY p.oid) FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace
           WHERE p.proname = $2 AND s.nspname = $3)), (
           SELECT sha256(convert_to(string_agg(c.oid || ' ' || c.relfilenode || ' ' || c.xmin::text, ',' ORDER BY c.oid), getdatabaseencoding()))
           FROM pg_class c WHERE c.oid = ANY($1::oid[]))
