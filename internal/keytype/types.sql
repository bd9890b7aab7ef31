-- The types of columns: of tables ($1 schemas, $2 tables, $3 columns), or of the results of queries, which the
-- server has described ($4 types, $5 modifiers, and $6 relations and $7 attributes where they are columns of tables).
-- A domain is followed to what it is a domain over. Columns that are not there have no row.
WITH RECURSIVE want AS (
    SELECT *
    FROM unnest($1::text[], $2::text[], $3::text[], $4::oid[], $5::int4[], $6::oid[], $7::int2[])
        WITH ORDINALITY AS u(schema, name, col, typ, mod, rel, att, n)
), col(n, typ, mod, coll) AS (
    SELECT w.n, a.atttypid, a.atttypmod, a.attcollation
    FROM want w
    JOIN pg_namespace s ON s.nspname = w.schema::name
    JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = w.name::name
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = w.col::name AND a.attnum > 0 AND NOT a.attisdropped
    WHERE w.typ = 0
    UNION ALL
    SELECT w.n, w.typ, w.mod, coalesce(a.attcollation, t.typcollation)
    FROM want w
    JOIN pg_type t ON t.oid = w.typ
    LEFT JOIN pg_attribute a ON a.attrelid = w.rel AND a.attnum = w.att AND w.att > 0
    WHERE w.typ <> 0
), base(n, typ, mod, depth) AS (
    SELECT n, typ, mod, 0 FROM col
    UNION ALL
    SELECT b.n, t.typbasetype, t.typtypmod, b.depth + 1
    FROM base b
    JOIN pg_type t ON t.oid = b.typ AND t.typtype = 'd'
)
SELECT c.n::int, format_type(c.typ, c.mod), s.nspname::text, t.typname::text, t.oid, b.mod, t.typtype::text, t.typcategory::text,
       b.depth > 0, coalesce(quote_ident(cs.nspname) || '.' || quote_ident(l.collname), ''), coalesce(NOT l.collisdeterministic, false),
       -- What the text of a value follows from. A reader in another language makes the same (docs/protocol.md), so the text is part of the protocol.
       concat(s.nspname, '.', t.typname,
              CASE WHEN b.mod < 0 OR t.oid = 1043 OR t.oid = 1042 AND b.depth = 0 THEN NULL -- the length of a varchar, or of a char(n) that is no domain
                   WHEN t.oid = 1700 THEN ' scale ' || ((b.mod - 4) & 2047)
                   ELSE ' ' || b.mod END,
              CASE WHEN t.typtype <> 'b' THEN ' ' || t.typtype::text END,
              CASE WHEN b.depth > 0 AND t.oid = 1042 THEN ' domain' END,
              CASE WHEN NOT l.collisdeterministic THEN ' nondeterministic' END),
       coalesce((SELECT string_agg(e.oid || ' ' || e.enumlabel, ',' ORDER BY e.oid) FROM pg_enum e WHERE e.enumtypid IN (t.oid, t.typelem)), '')
FROM col c
JOIN (SELECT DISTINCT ON (n) * FROM base ORDER BY n, depth DESC) b ON b.n = c.n
JOIN pg_type t ON t.oid = b.typ
JOIN pg_namespace s ON s.oid = t.typnamespace
LEFT JOIN pg_collation l ON l.oid = c.coll
LEFT JOIN pg_namespace cs ON cs.oid = l.collnamespace
