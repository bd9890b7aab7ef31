CREATE OR REPLACE FUNCTION cdc_invalidator.announce_ddl() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' SET jit = off AS $announce$
-- Made by cdc-invalidator. Logical replication is silent about most DDL; this says which tables it touched,
-- in a logical message that comes through the slot at the DDL's own commit. It runs with its owner's rights, since
-- nobody's DDL may go unannounced for a lack of them. It never makes DDL fail: where it cannot say what was touched it
-- says that, and all mapped tables count as touched. Nor does it make DDL wait, for somebody who has locked a catalog
-- or for a compiler.
DECLARE
    relations jsonb;
    publications jsonb;
    reading bool := false; -- something changed by which rows are read, of tables that the catalogs have to be asked for
BEGIN
    IF tg_event = 'table_rewrite' THEN
        WITH RECURSIVE tree AS (
            SELECT pg_event_trigger_table_rewrite_oid() AS oid
            UNION
            SELECT i.inhparent FROM tree t JOIN pg_inherits i ON i.inhrelid = t.oid
        )
        SELECT jsonb_agg(jsonb_build_object('oid', c.oid::bigint, 'schema', s.nspname, 'name', c.relname, 'change', 'rewritten'))
        INTO relations
        FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace s ON s.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't';

    ELSIF tg_event = 'sql_drop' THEN
        WITH RECURSIVE dropped AS (
            SELECT * FROM pg_event_trigger_dropped_objects() WHERE NOT is_temporary
        ), tree AS (
            SELECT objid AS oid FROM dropped WHERE object_type = 'table column'
            UNION
            SELECT i.inhparent FROM tree t JOIN pg_inherits i ON i.inhrelid = t.oid
        ), touched AS (
            SELECT objid AS oid, schema_name AS schema, object_name AS name, 'dropped' AS change, NULL AS publication
            FROM dropped WHERE object_type IN ('table', 'foreign table')
            UNION
            SELECT c.oid, s.nspname, c.relname, 'columns', NULL
            FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace s ON s.oid = c.relnamespace
            UNION
            -- Nothing says whose index it was. A table whose replica identity it was refuses writes from now on.
            SELECT c.oid, s.nspname, c.relname, 'altered', NULL
            FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
            WHERE c.relreplident = 'i' AND c.relkind IN ('r', 'p') AND EXISTS (SELECT FROM dropped WHERE object_type = 'index')
              AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident)
            UNION
            SELECT 0, address_names[1], address_names[2], 'published', address_args[1]
            FROM dropped WHERE object_type = 'publication relation'
        )
        SELECT (SELECT jsonb_agg(jsonb_build_object('oid', oid::bigint, 'schema', schema, 'name', name, 'change', change, 'publication', publication)) FROM touched),
               (SELECT jsonb_agg(DISTINCT CASE object_type WHEN 'publication' THEN address_names[1] ELSE address_args[1] END)
                FROM dropped WHERE object_type IN ('publication', 'publication namespace')),
               EXISTS (SELECT FROM dropped WHERE object_type = 'policy')
        INTO relations, publications, reading;

    ELSE
        WITH RECURSIVE command AS (
            SELECT classid, objid, object_type, command_tag FROM pg_event_trigger_ddl_commands()
            WHERE command_tag NOT IN ('COMMENT', 'GRANT', 'REVOKE', 'SECURITY LABEL')
        ), touched AS (
            SELECT c.oid, CASE WHEN d.command_tag LIKE 'CREATE %' OR d.command_tag = 'SELECT INTO' THEN 'created'
                               WHEN d.object_type = 'table column' THEN 'columns'
                               WHEN c.relkind = 'p' OR c.relhassubclass THEN 'partitions'
                               ELSE 'altered' END AS change, NULL::name AS publication
            FROM command d JOIN pg_class c ON c.oid = d.objid
            WHERE d.classid = 'pg_class'::regclass
            UNION
            SELECT c.oid, 'altered', NULL
            FROM command d JOIN pg_class c ON c.relnamespace = d.objid
            WHERE d.classid = 'pg_namespace'::regclass AND d.command_tag = 'ALTER SCHEMA'
            UNION
            -- The values of a type, such as an enum's names, change in every row that has them.
            SELECT a.attrelid, 'type', NULL
            FROM command d JOIN pg_type y ON y.oid = d.objid JOIN pg_attribute a ON a.atttypid IN (y.oid, y.typarray)
            WHERE d.classid = 'pg_type'::regclass AND d.command_tag = 'ALTER TYPE' AND NOT a.attisdropped
            UNION
            SELECT r.prrelid, 'published', p.pubname
            FROM command d JOIN pg_publication_rel r ON r.oid = d.objid JOIN pg_publication p ON p.oid = r.prpubid
            WHERE d.classid = 'pg_publication_rel'::regclass
        ), tree AS (
            SELECT oid, change, publication FROM touched
            UNION
            SELECT i.inhparent, t.change, t.publication FROM tree t JOIN pg_inherits i ON i.inhrelid = t.oid
            WHERE t.change NOT IN ('created', 'altered', 'published')
        )
        SELECT (SELECT jsonb_agg(jsonb_build_object('oid', c.oid::bigint, 'schema', s.nspname, 'name', c.relname, 'change', t.change, 'publication', t.publication))
                FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace s ON s.oid = c.relnamespace
                WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'),
               (SELECT jsonb_agg(DISTINCT p.pubname)
                FROM command d
                LEFT JOIN pg_publication_namespace n ON d.classid = 'pg_publication_namespace'::regclass AND n.oid = d.objid
                JOIN pg_publication p ON d.classid = 'pg_publication'::regclass AND p.oid = d.objid OR p.oid = n.pnpubid),
               EXISTS (SELECT FROM command WHERE command_tag IN ('ALTER TYPE', 'CREATE POLICY', 'ALTER POLICY', 'CREATE RULE'))
        INTO relations, publications, reading;
    END IF;

    IF relations IS NOT NULL OR publications IS NOT NULL OR reading THEN
        PERFORM pg_logical_emit_message(true, 'cdc_invalidator.ddl', jsonb_build_object('version', 1, 'command', tg_tag,
            'relations', coalesce(relations, '[]'), 'publications', coalesce(publications, '[]'))::text);
    END IF;
EXCEPTION WHEN OTHERS THEN
    DECLARE
        reason text := sqlerrm;
        code text := sqlstate;
    BEGIN
        PERFORM pg_logical_emit_message(true, 'cdc_invalidator.ddl', jsonb_build_object('version', 1, 'command', tg_tag, 'failed', code)::text);
        RAISE WARNING 'cdc_invalidator.announce_ddl: % (SQLSTATE %); all that is mapped counts as touched', reason, code;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'cdc_invalidator.announce_ddl: % (SQLSTATE %), then % (SQLSTATE %); the daemon finds the change when it compares the catalogs', reason, code, sqlerrm, sqlstate;
    END;
END
$announce$;
