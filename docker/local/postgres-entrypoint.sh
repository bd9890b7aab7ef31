#!/bin/bash
# Entry point of the local Postgres images. It takes what the official image takes, as far
# as the tests and compose.yaml use it: POSTGRES_PASSWORD, _USER, _DB, _INITDB_ARGS (the
# first three also as ..._FILE), PGDATA, scripts in /docker-entrypoint-initdb.d, and
# settings as arguments.
set -euo pipefail

case ${1:-} in
  '' | -*) set -- postgres "$@" ;;
  postgres) ;;
  *) exec "$@" ;;
esac

if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA" /var/run/postgresql
  chmod 700 "$PGDATA"
  find "$PGDATA" /var/run/postgresql \! -user postgres -exec chown postgres: {} +
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

# value NAME DEFAULT prints $NAME, or what the file $NAME_FILE holds.
value() {
  local file=$1_FILE
  if [ -n "${!file:-}" ]; then cat "${!file}"; else printf '%s' "${!1:-$2}"; fi
}

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  user=$(value POSTGRES_USER postgres)
  db=$(value POSTGRES_DB "$user")
  password=$(value POSTGRES_PASSWORD '')
  if [ -z "$password" ]; then
    echo "set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE" >&2
    exit 1
  fi
  # shellcheck disable=SC2086 # these are several arguments
  initdb -D "$PGDATA" --username "$user" --pwfile <(printf '%s\n' "$password") \
    --auth-local trust --auth-host scram-sha-256 ${POSTGRES_INITDB_ARGS:-}
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  echo "host replication all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  # Only on the socket, so that whoever waits for the port sees a finished server.
  pg_ctl -D "$PGDATA" -w -o "-c listen_addresses=''" start
  psql=(psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$user")
  if [ "$db" != postgres ]; then
    "${psql[@]}" -d postgres -v db="$db" <<<'CREATE DATABASE :"db"'
  fi
  export POSTGRES_USER=$user POSTGRES_DB=$db
  for f in /docker-entrypoint-initdb.d/*; do
    case $f in
      *.sh) echo "running $f"; bash "$f" ;;
      *.sql) echo "running $f"; "${psql[@]}" -d "$db" -f "$f" ;;
      *.sql.gz) echo "running $f"; gunzip -c "$f" | "${psql[@]}" -d "$db" ;;
    esac
  done
  pg_ctl -D "$PGDATA" -m fast -w stop
fi

unset POSTGRES_PASSWORD
# Before the arguments, so that they have the last word.
shift
exec postgres -c listen_addresses='*' "$@"
