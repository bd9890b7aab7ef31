-- What stands below each mapped table, for watcher_wide.sql and watcher_short.sql, which say before it what root(n, oid) is: its
-- storage and its shape, each as one digest.
member(n, oid, link) AS (
    SELECT n, oid, '' FROM root
    UNION
    SELECT m.n, i.inhrelid, i.inhparent || '-' || i.xmin::text
    FROM member m
    JOIN pg_inherits i ON i.inhparent = m.oid
), tree AS (
    SELECT m.n, bool_or(m.link <> '') AS below,
           sha256(convert_to(string_agg(m.oid || ' ' || c.relfilenode || ' ' || c.relpersistence::text, ',' ORDER BY m.oid), getdatabaseencoding())) AS storage,
           -- That a mapped table is a partition is the table's own: what is above it is in no other row.
           sha256(convert_to(string_agg(concat_ws(' ', m.oid, c.relkind::text, m.link, CASE WHEN m.link = '' THEN c.relispartition::text END), ',' ORDER BY m.oid, m.link), getdatabaseencoding())) AS shape
    FROM member m
    JOIN pg_class c ON c.oid = m.oid
    GROUP BY m.n
)
