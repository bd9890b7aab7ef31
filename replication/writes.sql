-- What decides whether the server takes an UPDATE or DELETE of the application's: one row for each mapped table
-- ($1 schemas, $2 names) and each partition below it, with its columns, its unique indexes, and every publication
-- that it is in, by itself, by an ancestor, by a schema or FOR ALL TABLES.
WITH RECURSIVE want AS (
    SELECT u.schema, u.name, u.n
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS u(schema, name, n)
), member(n, oid, root) AS (
    SELECT w.n, c.oid, true
    FROM want w
    JOIN pg_namespace s ON s.nspname = w.schema::name
    JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = w.name::name AND c.relkind IN ('r', 'p')
    UNION
    SELECT m.n, i.inhrelid, false
    FROM member m
    JOIN pg_inherits i ON i.inhparent = m.oid
    JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition AND c.relkind IN ('r', 'p')
), above(oid, ancestor, depth) AS (
    SELECT DISTINCT oid, oid, 0 FROM member
    UNION ALL
    SELECT a.oid, i.inhparent, a.depth + 1
    FROM above a
    JOIN pg_class c ON c.oid = a.ancestor AND c.relispartition
    JOIN pg_inherits i ON i.inhrelid = a.ancestor
), listed AS (
    SELECT a.oid, a.ancestor, a.depth, r.prpubid AS publication FROM above a JOIN pg_publication_rel r ON r.prrelid = a.ancestor
    UNION
    SELECT a.oid, a.ancestor, a.depth, n.pnpubid FROM above a JOIN pg_class c ON c.oid = a.ancestor JOIN pg_publication_namespace n ON n.pnnspid = c.relnamespace
    UNION
    SELECT m.oid, m.oid, 0, p.oid FROM member m CROSS JOIN pg_publication p WHERE p.puballtables
), published AS (
    -- The list and the filter are those of the topmost ancestor in the publication if that publishes via the root,
    -- and the table's own otherwise.
    SELECT l.oid, l.publication, CASE WHEN p.pubviaroot THEN (array_agg(l.ancestor ORDER BY l.depth DESC))[1] ELSE l.oid END AS entry
    FROM listed l JOIN pg_publication p ON p.oid = l.publication
    GROUP BY l.oid, l.publication, p.pubviaroot
)
SELECT m.n::int, m.root, convert_to(s.nspname::text, getdatabaseencoding()), convert_to(c.relname::text, getdatabaseencoding()), c.relkind::text::bytea, c.relpersistence::text::bytea, c.relreplident::text::bytea,
       convert_to(coalesce((SELECT jsonb_agg(jsonb_build_object('name', a.attname, 'not_null', a.attnotnull, 'generated', a.attgenerated::text) ORDER BY a.attnum)
                 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]')::text, getdatabaseencoding()),
       convert_to(coalesce((SELECT jsonb_agg(jsonb_build_object('name', x.relname, 'primary', i.indisprimary, 'identity', i.indisreplident,
                            'immediate', i.indimmediate, 'valid', i.indisvalid, 'partial', i.indpred IS NOT NULL, 'exclusion', i.indisexclusion,
                            -- An expression has no name.
                            'columns', (SELECT jsonb_agg(a.attname ORDER BY k.pos)
                                        FROM unnest(i.indkey) WITH ORDINALITY AS k(attnum, pos)
                                        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum AND k.attnum <> 0
                                        WHERE k.pos <= i.indnkeyatts)) ORDER BY i.indnkeyatts, x.relname)
                 FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                 WHERE i.indrelid = c.oid AND i.indisunique), '[]')::text, getdatabaseencoding()),
       convert_to(coalesce((SELECT jsonb_agg(jsonb_build_object('name', p.pubname, 'update', p.pubupdate, 'delete', p.pubdelete, 'stored', to_jsonb(p) ->> 'pubgencols' = 's',
                            'list', (SELECT jsonb_agg(a.attname ORDER BY a.attnum) FROM unnest(r.prattrs) AS k(attnum) JOIN pg_attribute a ON a.attrelid = b.entry AND a.attnum = k.attnum),
                            'filter', (SELECT jsonb_agg(DISTINCT a.attname)
                                       FROM regexp_matches(r.prqual::text, ':varattno ([0-9]+)', 'g') AS v(attnum)
                                       JOIN pg_attribute a ON a.attrelid = b.entry AND a.attnum = v.attnum[1]::int)) ORDER BY p.pubname)
                 FROM published b
                 JOIN pg_publication p ON p.oid = b.publication
                 LEFT JOIN pg_publication_rel r ON r.prpubid = b.publication AND r.prrelid = b.entry AND NOT p.puballtables
                 WHERE b.oid = c.oid), '[]')::text, getdatabaseencoding())
FROM member m
JOIN pg_class c ON c.oid = m.oid
JOIN pg_namespace s ON s.oid = c.relnamespace
ORDER BY m.n, m.root DESC, c.oid
