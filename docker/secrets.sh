#!/usr/bin/env bash
# Makes the files in docker/secrets that compose.yaml gives to its containers: random
# passwords, and what contains them. Files that are there stay as they are.
set -euo pipefail
cd "$(dirname "$0")"

# Only its owner passes into the folder. The files are readable for all because the
# programs in the containers run under accounts of their own.
mkdir -p secrets
chmod 700 secrets
umask 022

password() { head -c 24 /dev/urandom | base64 | tr -d '\n' | tr '+/' '-_'; }
# make NAME COMMAND... writes a file unless it is there.
make() {
  local file=secrets/$1; shift
  [ -s "$file" ] || { "$@" >"$file.new" && mv "$file.new" "$file"; }
}
stored() { cat "secrets/$1"; }

redis_acl() {
  # The application's user may do everything, the daemon's what
  # `cdc-invalidator doctor --print-grants` says of mappings.yaml.
  echo "user default on >$(stored redis_password) ~* &* +@all"
  echo "user invalidator reset on >$(stored redis_invalidator_password) ~inv:* ~cart:* ~page:* ~stock:* ~t:*:search ~t:*:search:*:* ~t:*:user-by-email:* ~t:*:user:* +unlink +evalsha +script|load +info +scan +get +set +hmget +hset +hgetall +persist +time +getrange +setrange +pttl +pexpire +zrevrange +zrangebyscore +zscore +zrem +hdel +zadd +zcount"
}

make postgres_password password
make invalidator_password password
make redis_password password
make redis_invalidator_password password
make grafana_password password
make database_url printf 'postgres://invalidator:%s@postgres:5432/shop?sslmode=disable\n' "$(stored invalidator_password)"
make redis_url printf 'redis://invalidator:%s@redis:6379/0\n' "$(stored redis_invalidator_password)"
make redis_acl redis_acl
