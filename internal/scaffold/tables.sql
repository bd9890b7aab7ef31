-- The tables that a mappings file could be for, with all that is known of them without reading a row or taking a
-- lock: estimates of the last ANALYZE, or of the statistics where there was none. $1: schemas, empty for all.
WITH RECURSIVE member(root, oid) AS (
    SELECT c.oid, c.oid
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND (cardinality($1::text[]) = 0 OR n.nspname::text = ANY ($1::text[]))
      -- An extension's tables are its own business.
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    UNION ALL
    SELECT m.root, i.inhrelid
    FROM member m
    JOIN pg_inherits i ON i.inhparent = m.oid
    JOIN pg_class p ON p.oid = i.inhrelid AND p.relispartition
), size AS (
    SELECT m.root, count(*) - 1 AS partitions,
           sum(CASE WHEN c.relkind = 'p' THEN 0 WHEN c.reltuples >= 0 THEN c.reltuples ELSE pg_stat_get_live_tuples(c.oid) END)::bigint AS rows,
           sum(CASE WHEN c.relkind = 'p' THEN 0 ELSE c.relpages + coalesce(t.relpages, 0) END)::bigint
               * current_setting('block_size')::bigint AS bytes,
           bool_and(c.relkind = 'p' OR c.reltuples >= 0) AS analyzed
    FROM member m
    JOIN pg_class c ON c.oid = m.oid
    LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
    GROUP BY m.root
)
SELECT c.oid, convert_to(n.nspname::text, getdatabaseencoding()), convert_to(c.relname::text, getdatabaseencoding()), convert_to(quote_ident(n.nspname) || '.' || quote_ident(c.relname), getdatabaseencoding()),
       c.relkind = 'p', c.relreplident::text::bytea, s.partitions::int, s.rows, s.bytes, s.analyzed,
       ARRAY(SELECT convert_to(a.attname::text, getdatabaseencoding()) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
       ARRAY(SELECT convert_to(quote_ident(a.attname), getdatabaseencoding()) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
       ARRAY(SELECT convert_to(a.attname::text, getdatabaseencoding()) FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> '' ORDER BY a.attnum),
       coalesce((SELECT min(i.inhparent::bigint) FROM pg_inherits i WHERE i.inhrelid = c.oid), 0)
FROM size s
JOIN pg_class c ON c.oid = s.root
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY n.nspname, c.relname
