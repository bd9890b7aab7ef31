#!/bin/bash
# The daemon's account with the least rights, and the publication, which it does not own.
set -e
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" -v password="$(cat /run/secrets/invalidator_password)" <<'SQL'
CREATE ROLE invalidator LOGIN REPLICATION PASSWORD :'password';
GRANT pg_read_all_stats TO invalidator;
GRANT SELECT ON products TO invalidator; -- the for_each query of mappings.yaml reads it
CREATE PUBLICATION cdc_invalidator FOR TABLE users, products, sellers, stock WITH (publish_via_partition_root = true);
SQL
