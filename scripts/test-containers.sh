#!/usr/bin/env bash
# Runs the tests that need servers on containers instead of local servers (CDC_SERVERS=docker),
# and prints a table of what ran on what.
#
#   scripts/test-containers.sh [--matrix] [package...]
#
# One pair of servers by default, every supported pair with --matrix. Images come from
# docker/images.sh: official ones where a registry answers, else local ones, which are built
# when they are missing. CDC_POSTGRES and CDC_REDIS name others of its list, for example
# CDC_POSTGRES='15 17' CDC_REDIS=redis:7.0; CDC_POSTGRES_IMAGE and CDC_REDIS_IMAGE name any
# image at all. RUN selects tests.
set -euo pipefail
cd "$(dirname "$0")/.."

matrix=false
if [ "${1:-}" = --matrix ]; then matrix=true; shift; fi
if [ $# = 0 ]; then
  set -- ./internal/localserver/... ./internal/demo ./replication ./sink ./tests/integration
fi

postgres=${CDC_POSTGRES:-18} redis=${CDC_REDIS:-valkey:8.1}
if $matrix; then
  postgres=${CDC_POSTGRES:-15 17 18} redis=${CDC_REDIS:-redis:7.0 redis:8 valkey:8.1}
fi

work=$(mktemp -d)
sweep() {
  # What a killed test left; a test that ended has removed its own.
  [ ! -x "$work/which" ] || CDC_SERVERS=docker "$work/which" -sweep || true
  rm -rf "$work"
}
trap sweep EXIT
go build -o "$work/which" ./internal/localserver/which

# image VARIABLE NAME prints the image that the variable or the list has.
image() { if [ -n "${!1:-}" ]; then echo "${!1}"; else docker/images.sh get "$2"; fi; }

failed=0 table=()
for p in $postgres; do
  pg=$(image CDC_POSTGRES_IMAGE "postgres:$p")
  for r in $redis; do
    rd=$(image CDC_REDIS_IMAGE "$r")
    printf '\ncontainers: %s, %s\n' "$pg" "$rd"
    began=$SECONDS result=ok
    CDC_SERVERS=docker CDC_POSTGRES_IMAGE=$pg CDC_REDIS_IMAGE=$rd \
      go test -count 1 -p "${PARALLEL:-2}" -timeout 20m -run "${RUN:-.}" "$@" || { result=FAILED; failed=1; }
    table+=("$(printf '%-50s %-50s %-7s %4d s' "$pg" "$rd" "$result" $((SECONDS - began)))")
  done
done

RUN=${RUN:-.}
printf "\nwhat ran in containers: %s%s\n" "$*" "$([ "$RUN" = . ] || printf ", only %s" "$RUN")"
printf '  %s\n' "${table[@]}"
exit $failed
