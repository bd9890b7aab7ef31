-- One row for each mapped table ($1 schemas, $2 names), then one for each table below it: partitions, and
-- children by inheritance. The catalogs are read directly and not through pg_partition_tree(), which locks the
-- tables and would wait behind somebody's DDL.
WITH RECURSIVE want AS (
    SELECT u.schema, u.name, u.n
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS u(schema, name, n)
), member(n, oid, root) AS (
    SELECT w.n, c.oid, true
    FROM want w
    JOIN pg_namespace s ON s.nspname = w.schema::name
    JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = w.name::name
    UNION
    SELECT m.n, i.inhrelid, false
    FROM member m
    JOIN pg_inherits i ON i.inhparent = m.oid
)
SELECT m.n::int, m.root, convert_to(s.nspname::text, getdatabaseencoding()), convert_to(c.relname::text, getdatabaseencoding()), c.relkind::text::bytea, c.relpersistence::text::bytea, c.relispartition, c.relreplident::text::bytea,
       ARRAY(SELECT convert_to(a.attname::text, getdatabaseencoding())
             FROM pg_index i
             CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(attnum, pos)
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
             -- A deferrable primary key is no identity; columns that an index only INCLUDEs are not part of one.
             WHERE i.indrelid = c.oid AND i.indisvalid AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
               AND k.pos <= i.indnkeyatts
               AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident)
             ORDER BY k.pos) AS identity,
       ARRAY(SELECT convert_to(a.attname::text, getdatabaseencoding()) FROM pg_attribute a
             WHERE m.root AND a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             ORDER BY a.attnum) AS columns,
       ARRAY(SELECT convert_to(a.attname::text, getdatabaseencoding()) FROM pg_attribute a
             WHERE m.root AND a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
               -- A stored one is sent by 18 if the publication says so, which the publication's columns show.
               AND (a.attgenerated = 'v' OR a.attgenerated = 's' AND current_setting('server_version_num')::int < 180000)
             ORDER BY a.attnum) AS unsendable
FROM member m
JOIN pg_class c ON c.oid = m.oid
JOIN pg_namespace s ON s.oid = c.relnamespace
ORDER BY m.n, m.root DESC, c.oid
