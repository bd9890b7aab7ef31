#!/usr/bin/env bash
# Makes sure that there is what the demo and the tests need: a Postgres and a Redis
# that they can start themselves, and for --test also a C compiler for the race
# detector and a Python with two modules. It prints what will be used.
#
# An installed server is used as it is. A missing one is installed from the
# distribution's packages when this runs as root on a Debian-like system; else Docker
# runs it in a container; else the packages are installed through sudo if that asks
# for no password. If nothing of it is possible, it says exactly what to install.
#
# CDC_SERVERS=local|docker settles which. System services are not started.
set -euo pipefail
cd "$(dirname "$0")/.."

for_tests=false
[ "${1:-}" = --test ] && for_tests=true

say() { printf 'set-up: %s\n' "$*"; }
fail() { printf 'set-up: %s\n' "$*" >&2; exit 1; }

command -v go >/dev/null || fail "Go is missing: install Go 1.26 or newer from https://go.dev/dl/"

which_dir=$(mktemp -d)
cleanup() { rm -rf "$which_dir"; }
trap cleanup EXIT
go build -o "$which_dir/which" ./internal/localserver/which

# As root it is us, else sudo without a question.
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

can_install() { command -v apt-get >/dev/null && command -v dpkg >/dev/null && as_root true 2>/dev/null; }

# install_packages installs packages without starting what they bring: a system
# service nobody asked for would also hold the usual ports.
install_packages() {
  can_install || return 1
  say "installing $* from the distribution's packages"
  as_root env DEBIAN_FRONTEND=noninteractive bash -c '
    set -euo pipefail
    policy=/usr/sbin/policy-rc.d
    cluster=/etc/postgresql-common/createcluster.d/cdc-invalidator-setup.conf
    undo() {
      [ -z "${made_policy:-}" ] || rm -f "$policy"
      rm -f "$cluster"
    }
    trap undo EXIT
    if [ ! -e "$policy" ]; then
      made_policy=yes
      printf "#!/bin/sh\nexit 101\n" >"$policy"
      chmod 755 "$policy"
    fi
    mkdir -p "$(dirname "$cluster")"
    echo "create_main_cluster = false" >"$cluster"
    apt-get -o DPkg::Lock::Timeout=300 -qq update
    apt-get -o DPkg::Lock::Timeout=300 -qq install --yes --no-install-recommends "$@"
  ' install "$@" </dev/null >"$which_dir/apt.log" 2>&1 || {
    tail -n 20 "$which_dir/apt.log" >&2
    return 1
  }
}

readonly servers=${CDC_SERVERS:-auto}
case $servers in
  auto | local | docker) ;;
  *) fail "CDC_SERVERS=$servers: want local, docker or auto" ;;
esac

# chosen MODE NAME prints what would be used for NAME, if MODE is allowed and has one.
# It returns 2 when there is none, 1 for every other reason.
chosen() {
  [ "$servers" = auto ] || [ "$servers" = "$1" ] || return 1
  local choice
  choice=$(CDC_SERVERS=$1 "$which_dir/which" "$2" 2>>"$which_dir/errors") || return
  say "$choice"
}

failed=false # something is missing or wrong
lacking=()   # the packages that would help

# Only what is missing is installed: a CDC_POSTGRES_BIN with a typing error in it is
# no reason to change the machine.
provide() {
  local name=$1 missing=0; shift
  : >"$which_dir/errors"
  if chosen local "$name"; then return; else missing=$?; fi
  if [ "$missing" = 2 ] && [ "$(id -u)" = 0 ] && install_packages "$@" && chosen local "$name"; then return; fi
  if { [ "$missing" = 2 ] || [ "$servers" = docker ]; } && chosen docker "$name"; then return; fi
  if [ "$missing" = 2 ] && [ "$(id -u)" != 0 ] && install_packages "$@" && chosen local "$name"; then return; fi
  sed 's/^/set-up: /' "$which_dir/errors" | sort -u >&2
  failed=true
  if [ "$missing" = 2 ]; then lacking+=("$@"); fi
}

provide_cc() {
  local cc
  cc=$(go env CC)
  cc=${cc%% *}
  if ! command -v "$cc" >/dev/null && ! { install_packages "$@" && command -v "$cc" >/dev/null; }; then
    say "cc: the race detector needs a C compiler, and there is no $cc" >&2
    failed=true
    lacking+=("$@")
    return
  fi
  say "cc: $("$cc" --version | head -n 1)"
}

# The reader in Python is tested with the modules of the distribution, which are for its
# own python3: that need not be the first in the PATH.
python_with_modules() {
  local python
  for python in ${CDC_PYTHON:-python3 /usr/bin/python3}; do
    if "$python" -c 'import redis, psycopg' 2>/dev/null; then
      say "python: $("$python" --version) ($python) with redis and psycopg"
      return
    fi
  done
  return 1
}
provide_python() {
  python_with_modules && return
  if install_packages "$@" && python_with_modules; then return; fi
  say "python: the tests of the Python reader need a python3 with the modules redis and psycopg (CDC_PYTHON names one)" >&2
  failed=true
  lacking+=("$@")
}

provide postgres postgresql
provide redis redis-server
if $for_tests; then
  provide_cc gcc libc6-dev
  provide_python python3 python3-redis python3-psycopg
fi

if $failed; then
  [ ${#lacking[@]} = 0 ] || say "install what is missing: sudo apt-get install ${lacking[*]}" >&2
  exit 1
fi
