-- Indexes over plain columns that hold every row. $1: tables.
SELECT i.indrelid, convert_to(c.relname::text, getdatabaseencoding()), convert_to(quote_ident(c.relname), getdatabaseencoding()),
       ARRAY(SELECT convert_to(a.attname::text, getdatabaseencoding())
             FROM unnest(i.indkey) WITH ORDINALITY AS k(attnum, pos)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.pos <= i.indnkeyatts ORDER BY k.pos),
       i.indisunique AND i.indimmediate, i.indisprimary, i.indisreplident,
       NOT EXISTS (SELECT FROM unnest(i.indkey) WITH ORDINALITY AS k(attnum, pos)
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                   WHERE k.pos <= i.indnkeyatts AND NOT a.attnotnull)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = ANY ($1::oid[]) AND i.indisvalid AND i.indpred IS NULL AND NOT 0 = ANY (i.indkey::int2[])
ORDER BY i.indrelid, i.indisprimary DESC, i.indnkeyatts, c.relname
