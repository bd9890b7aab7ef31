-- The wide look: one row for each mapped table ($1 schemas, $2 names) with a digest of each thing that DDL can change
-- without a word in the log; $3 is the publication. One statement is one snapshot. Only catalogs are read, and no function
-- that locks a table, so that this does not wait behind the very DDL that it looks for.
--
-- A change that is undone before the next look must show too. So everything that is made anew is named by its oid, and
-- where a row can be updated or has no oid, by the row's xmin, which differs after every update.
--
-- The last column is how long the server has worked on it by then, in seconds.
WITH RECURSIVE want AS (
    SELECT u.schema, u.name, u.n
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS u(schema, name, n)
), root AS (
    SELECT w.n, c.oid, c.relnamespace, s.xmin::text AS schema_version, c.reltype, concat_ws(' ', c.relrowsecurity::text, c.relforcerowsecurity::text) AS secured
    FROM want w
    JOIN pg_namespace s ON s.nspname = w.schema::name
    JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = w.name::name
), member(n, oid, link) AS (
    SELECT n, oid, '' FROM root
    UNION
    SELECT m.n, i.inhrelid, i.inhparent || '-' || i.xmin::text
    FROM member m
    JOIN pg_inherits i ON i.inhparent = m.oid
), below AS (
    SELECT m.n, m.oid, m.link, c.xmin::text AS version, c.relfilenode, c.relpersistence::text, c.relkind::text, c.relispartition, c.relreplident::text, (
               -- One, or none.
               SELECT string_agg(i.indexrelid || ' ' || i.indkey::text, ';')
               FROM pg_index i
               WHERE i.indrelid = m.oid
                 AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident)
           ) AS indexes
    FROM member m
    JOIN pg_class c ON c.oid = m.oid
    -- Sorted once, and not by each aggregate of each table.
    ORDER BY m.n, m.oid, m.link
), tree AS (
    SELECT n, array_agg(oid) FILTER (WHERE link <> '') AS below,
           string_agg(oid || ' ' || relfilenode || ' ' || relpersistence, ',') AS storage,
           -- That a mapped table is a partition is the table's own: what is above it is in no other row.
           string_agg(concat_ws(' ', oid, relkind, link, CASE WHEN link = '' THEN relispartition::text END), ',') AS shape,
           -- A mapped table's own identity comes with its rows. What a partition logs does not, so that it logged less
           -- for a moment has to show here: in the row of pg_class, which a GRANT on the partition updates as well.
           string_agg(concat_ws(' ', oid, relreplident, indexes, CASE WHEN link <> '' THEN version END), ',') AS identity
    FROM below
    GROUP BY n
), attribute AS MATERIALIZED (
    SELECT r.n, r.oid, a.attnum, a.xmin::text AS version, a.atttypid, a.attgenerated <> '' AS generated
    FROM root r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0
    ORDER BY r.n, a.attnum
), columns AS (
    SELECT n, string_agg(attnum || ' ' || version, ',') AS columns FROM attribute GROUP BY n
), type(n, oid) AS (
    -- The types that somebody has made, and what they are made of. None of the server's own changes.
    SELECT n, atttypid FROM attribute WHERE atttypid >= 16384
    UNION
    SELECT t.n, part.oid
    FROM type t
    JOIN pg_type y ON y.oid = t.oid
    CROSS JOIN LATERAL (
        SELECT y.typelem UNION ALL SELECT y.typbasetype
        UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = y.typrelid AND a.attnum > 0
        UNION ALL SELECT g.rngsubtype FROM pg_range g WHERE g.rngtypid = y.oid
        UNION ALL SELECT g.rngtypid FROM pg_range g WHERE g.rngmultitypid = y.oid
    ) part(oid)
    WHERE part.oid >= 16384
), reading AS (
    SELECT n, string_agg(entry, ',' ORDER BY entry) AS reading FROM (
        SELECT t.n, concat_ws(' ', 'enum', e.oid, e.xmin::text) FROM type t JOIN pg_enum e ON e.enumtypid = t.oid
        UNION ALL
        SELECT t.n, concat_ws(' ', 'field', a.attrelid, a.attnum, a.xmin::text)
        FROM type t JOIN pg_type y ON y.oid = t.oid JOIN pg_attribute a ON a.attrelid = y.typrelid AND a.attnum > 0
        UNION ALL
        SELECT a.n, concat_ws(' ', 'expression', d.oid, d.xmin::text)
        FROM attribute a JOIN pg_attrdef d ON d.adrelid = a.oid AND d.adnum = a.attnum WHERE a.generated
        UNION ALL
        SELECT r.n, concat_ws(' ', 'policy', p.oid, p.xmin::text) FROM root r JOIN pg_policy p ON p.polrelid = r.oid
    ) of(n, entry) GROUP BY n
), publication AS (
    SELECT oid, oid || ' ' || xmin::text AS itself FROM pg_publication WHERE pubname = $3
), listed AS (
    SELECT t.prrelid, concat_ws(' ', 'table', t.oid, t.xmin::text) AS entry
    FROM pg_publication_rel t JOIN publication b ON t.prpubid = b.oid
), listed_schema AS (
    SELECT n.pnnspid, concat_ws(' ', 'schema', n.oid, n.xmin::text) AS entry
    FROM pg_publication_namespace n JOIN publication b ON n.pnpubid = b.oid
)
SELECT w.n::int, coalesce(r.oid, 0)::oid, coalesce(t.below, '{}'),
       sha256(convert_to(t.storage, getdatabaseencoding())),
       sha256(convert_to(t.shape, getdatabaseencoding())),
       sha256(convert_to(o.columns, getdatabaseencoding())),
       sha256(convert_to(t.identity, getdatabaseencoding())),
       sha256(convert_to(concat_ws(' ', b.itself, l.entry, s.entry), getdatabaseencoding())),
       -- That the name stood for another table for a moment: to rename a table, or to put it into another schema, updates
       -- the row of its type too, which no GRANT does. A schema's own row is all there is of its names.
       sha256(convert_to(concat_ws(' ', r.secured, g.reading, 'named', y.xmin::text, r.schema_version), getdatabaseencoding())),
       extract(epoch FROM clock_timestamp() - transaction_timestamp())::float8
FROM want w
LEFT JOIN root r ON r.n = w.n
LEFT JOIN pg_type y ON y.oid = r.reltype
LEFT JOIN tree t ON t.n = w.n
LEFT JOIN columns o ON o.n = w.n
LEFT JOIN reading g ON g.n = w.n
LEFT JOIN publication b ON true
LEFT JOIN listed l ON l.prrelid = r.oid
LEFT JOIN listed_schema s ON s.pnnspid = r.relnamespace
ORDER BY w.n
