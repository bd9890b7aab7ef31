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
    SELECT w.n, c.oid, c.relnamespace
    FROM want w
    JOIN pg_namespace s ON s.nspname = w.schema::name
    JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = w.name::name
), {{tree}}, identities AS (
    SELECT m.n, string_agg(m.oid || ' ' || c.relreplident::text || ' ' || coalesce(x.indexes, ''), ',' ORDER BY m.oid) AS identity
    FROM member m
    JOIN pg_class c ON c.oid = m.oid
    LEFT JOIN LATERAL (
        SELECT string_agg(i.indexrelid || ' ' || i.indkey::text, ';' ORDER BY i.indexrelid) AS indexes
        FROM pg_index i
        WHERE i.indrelid = m.oid
          AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident)
    ) x ON true
    GROUP BY m.n
)
SELECT w.n::int, coalesce(r.oid, 0)::oid, coalesce(t.below, false),
       t.storage, t.shape,
       sha256(convert_to((
           SELECT string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attisdropped, a.attgenerated::text, a.xmin::text), ',' ORDER BY a.attnum)
           FROM pg_attribute a WHERE a.attrelid = r.oid AND a.attnum > 0), getdatabaseencoding())),
       sha256(convert_to(p.identity, getdatabaseencoding())),
       sha256(convert_to(concat_ws('|', (
           SELECT concat_ws(' ', b.oid, b.xmin::text, (
               SELECT concat_ws(' ', 'table', t.oid, t.xmin::text)
               FROM pg_publication_rel t WHERE t.prpubid = b.oid AND t.prrelid = r.oid), (
               SELECT concat_ws(' ', 'schema', n.oid, n.xmin::text)
               FROM pg_publication_namespace n WHERE n.pnpubid = b.oid AND n.pnnspid = r.relnamespace))
           FROM pg_publication b WHERE b.pubname = $3)), getdatabaseencoding())),
       extract(epoch FROM clock_timestamp() - transaction_timestamp())::float8
FROM want w
LEFT JOIN root r ON r.n = w.n
LEFT JOIN tree t ON t.n = w.n
LEFT JOIN identities p ON p.n = w.n
ORDER BY w.n
