#!/usr/bin/env bash
# Starts compose.yaml and shows that it works: makes the secrets, finds or builds the
# images (docker/images.sh), waits until everything is healthy, and then changes a row in
# Postgres and sees its key gone in Redis. Arguments go to `docker compose` before `up`.
#
#   docker/up.sh
#   docker/up.sh --profile dashboards
#   docker/up.sh down                   stop and remove everything, data included
set -euo pipefail
cd "$(dirname "$0")"

say() { printf 'compose: %s\n' "$*"; }
compose=(docker compose)
docker compose version >/dev/null 2>&1 || compose=(docker-compose)
command -v "${compose[0]}" >/dev/null || { say "neither docker compose nor docker-compose is installed" >&2; exit 1; }
compose+=(-f compose.yaml -p "${COMPOSE_PROJECT_NAME:-cdc-invalidator}")

./secrets.sh
if [ "${1:-}" = down ]; then exec "${compose[@]}" down --volumes --remove-orphans; fi

image() { printf '%s' "${!1:-$(./images.sh get "$2")}"; }
POSTGRES_IMAGE=$(image POSTGRES_IMAGE postgres:18)
REDIS_IMAGE=$(image REDIS_IMAGE redis:8)
PROMETHEUS_IMAGE=$(image PROMETHEUS_IMAGE prometheus:2)
GO_IMAGE=$(image GO_IMAGE golang:1.26)
VERSION=$(git describe --tags --always --dirty 2>/dev/null || true)
COMMIT=$(git rev-parse HEAD 2>/dev/null || true)
DATE=$(TZ=UTC git show -s --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd HEAD 2>/dev/null || true)
export POSTGRES_IMAGE REDIS_IMAGE PROMETHEUS_IMAGE GO_IMAGE VERSION COMMIT DATE

say "postgres $POSTGRES_IMAGE, redis $REDIS_IMAGE, prometheus $PROMETHEUS_IMAGE"
"${compose[@]}" "$@" up --build --detach

sql() { "${compose[@]}" exec -T postgres psql -qAtX -U postgres shop -c "$1"; }
# The password goes through the environment of the client, not through its arguments.
redis() {
  REDISCLI_AUTH=$(cat secrets/redis_password) "${compose[@]}" exec -T -e REDISCLI_AUTH redis \
    sh -c 'cli=$(command -v redis-cli || command -v valkey-cli); exec "$cli" "$@"' cli "$@"
}
# until_ok SECONDS WHAT COMMAND...
until_ok() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { say "gave up waiting until $what" >&2; "${compose[@]}" ps >&2; "${compose[@]}" logs --tail 20 >&2; exit 1; }
    sleep 0.2
  done
}

attached() { [ "$(sql "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'cdc_invalidator' AND active")" = 1 ]; }
fresh() { [ "$(redis HGET 'inv:source:{cdc_invalidator}' state)" = ok ]; }
gone() { [ "$(redis EXISTS "$1")" = 0 ]; }
until_ok 90 "the daemon follows the source" attached
until_ok 30 "the daemon has caught up" fresh

redis SET t:1:user:7 cached >/dev/null
redis SET t:1:user:8 cached >/dev/null
redis SET t:1:user-by-email:new@example.com 'no such user' >/dev/null
say "cached t:1:user:7, t:1:user:8 and, before there is such a user, t:1:user-by-email:new@example.com"
sql "UPDATE users SET name = 'someone else', version = version + 1 WHERE tenant_id = 1 AND id = 7"
until_ok 10 "the UPDATE has deleted t:1:user:7" gone t:1:user:7
say "UPDATE users ... WHERE id = 7 has deleted t:1:user:7"
sql "INSERT INTO users VALUES (1, 100000 + floor(random() * 1e9), 'new@example.com', 'new') ON CONFLICT (tenant_id, email) DO UPDATE SET version = users.version + 1"
until_ok 10 "the INSERT has deleted the key" gone t:1:user-by-email:new@example.com
say "INSERT INTO users ... has deleted t:1:user-by-email:new@example.com"
if gone t:1:user:8; then say "t:1:user:8 is gone too, and nothing had changed it" >&2; exit 1; fi
say "t:1:user:8 is still there"
say "it works: http://127.0.0.1:${CDC_INVALIDATOR_PORT:-9464}/healthz, Prometheus on http://127.0.0.1:${PROMETHEUS_PORT:-9090}; docker/up.sh down removes everything"
