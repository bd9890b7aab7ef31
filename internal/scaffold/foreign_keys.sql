-- Foreign keys between the tables. $1: tables; partitions, which repeat the keys of their root, are none of them.
SELECT k.conrelid, k.confrelid,
       ARRAY(SELECT convert_to(a.attname::text, getdatabaseencoding()) FROM unnest(k.conkey) WITH ORDINALITY AS u(attnum, pos)
             JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum ORDER BY u.pos),
       ARRAY(SELECT convert_to(a.attname::text, getdatabaseencoding()) FROM unnest(k.confkey) WITH ORDINALITY AS u(attnum, pos)
             JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.attnum ORDER BY u.pos)
FROM pg_constraint k
WHERE k.contype = 'f' AND k.conrelid = ANY ($1::oid[]) AND k.confrelid = ANY ($1::oid[])
ORDER BY k.conrelid, k.conname
