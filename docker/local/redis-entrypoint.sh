#!/bin/bash
# Entry point of the local Redis and Valkey images. It takes what the official images
# take: arguments of the server, with or without its name, a configuration file first.
set -euo pipefail

server=$(command -v valkey-server || command -v redis-server)
case ${1:-} in
  '' | -* | *.conf) ;;
  redis-server | valkey-server) shift ;;
  *) exec "$@" ;;
esac
conf=()
case ${1:-} in *.conf) conf=("$1"); shift ;; esac
# As in the official images: who can reach a container's port was meant to.
set -- "$server" "${conf[@]}" --protected-mode no "$@"
if [ "$(id -u)" != 0 ]; then exec "$@"; fi
account=$(basename "$server" -server)
chown "$account": .
exec setpriv --reuid="$account" --regid="$account" --init-groups "$@"
