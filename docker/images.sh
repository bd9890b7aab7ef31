#!/usr/bin/env bash
# Container images for the tests and for compose.yaml, also where no registry can be
# reached: then they are built from Debian's packages, with the mirror, the keys and the
# proxy that this machine's own apt is set up with.
#
#   docker/images.sh list                 what can be had, under which names
#   docker/images.sh get NAME...          print the image to use for each NAME: the official one if
#                                         it is here or a registry answers, else the local one,
#                                         which is built when it is missing
#   docker/images.sh build [NAME...]      build local images (all of them); those that are up to date stay
#   docker/images.sh remove               remove the local images
#
# NAME is one of the list, for example postgres:17. Building needs root, Docker and a
# Debian-like system; each image takes 20 to 60 seconds. CDC_IMAGES=local or =official
# settles where get looks. What goes wrong is told on stderr, with the end of the log.
set -euo pipefail
cd "$(dirname "$0")"

readonly prefix=localhost/cdc-invalidator # a registry that no pull can reach by mistake
readonly label=io.github.cdc-invalidator.recipe

# name | official image | suite | packages | what --version must say
readonly recipes='
postgres:15|docker.io/library/postgres:15|bookworm|postgresql-15|PostgreSQL) 15
postgres:17|docker.io/library/postgres:17|trixie|postgresql-17|PostgreSQL) 17
postgres:18|docker.io/library/postgres:18|forky|postgresql-18|PostgreSQL) 18
redis:7.0|docker.io/library/redis:7.0|bookworm|redis-server|v=7.0
redis:8|docker.io/library/redis:8|trixie|redis-server|v=8
valkey:8.1|docker.io/valkey/valkey:8.1|trixie|valkey-server|v=8.1
valkey:9|docker.io/valkey/valkey:9|forky|valkey-server|v=9
golang:1.26|docker.io/library/golang:1.26|bookworm|ca-certificates,git|go1.26
prometheus:2|docker.io/prom/prometheus:v2.53.5|trixie|prometheus,ca-certificates|prometheus, version 2.
'

say() { printf 'images: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# recipe NAME sets name, official, suite, packages and version.
recipe() {
  local line
  line=$(grep -F -- "$1|" <<<"$recipes" | head -n 1) || true
  [ "${line%%|*}" = "$1" ] || fail "no image $1; there are: $(names)"
  IFS='|' read -r name official suite packages version <<<"$line"
  image=$prefix/$name
}
names() { cut -d '|' -f 1 <<<"$recipes" | xargs; }

# checksum of what an image is made from; another one means that it has to be built again.
checksum() {
  tree_options && image_changes
  { printf '%s\n' "$name" "$suite" "$packages" "${options[@]}" "${changes[@]}"; (cd local && cat "$(entrypoint)"); go_version; } | sha256sum | cut -c 1-32
}
entrypoint() { case $name in postgres:*) echo postgres-entrypoint.sh ;; redis:* | valkey:*) echo redis-entrypoint.sh ;; *) echo /dev/null ;; esac; }
go_version() { case $name in golang:*) go env GOVERSION ;; esac; }
up_to_date() { tree_options && image_changes && [ "$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null)" = "$(checksum)" ]; }

# apt_mirror is where this machine's apt gets Debian's own packages from.
apt_mirror() {
  local mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)|$(ORIGIN)|$(LABEL)' 2>/dev/null | grep -F '|Debian|Debian' | head -n 1 | cut -d '|' -f 1)
  [ -n "$mirror" ] || return 1
  printf '%s' "$mirror"
}

# tree_options sets options: what mmdebstrap does for this image beyond the packages.
tree_options() {
  options=(
    # Nothing in a container starts services, and nobody reads manuals there.
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*'
    --essential-hook='printf "#!/bin/sh\nexit 101\n" >"$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d"'
  )
  case $name in
    postgres:*) options+=(
      --essential-hook='mkdir -p "$1/etc/postgresql-common/createcluster.d" && echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.d/image.conf"'
      --customize-hook='copy-in local/postgres-entrypoint.sh /usr/local/bin'
      --customize-hook='mkdir -p "$1/docker-entrypoint-initdb.d" "$1/var/lib/postgresql/data"'
    ) ;;
    redis:* | valkey:*) options+=(
      --customize-hook='copy-in local/redis-entrypoint.sh /usr/local/bin'
      --customize-hook='mkdir -p "$1/data"'
    ) ;;
    # With the authorities that this machine trusts: where packages come through a proxy, its
    # own is among them.
    golang:*) options+=(
      --customize-hook="cp -a '$(go env GOROOT)' \"\$1/usr/local/go\""
      --customize-hook='copy-in /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs'
    ) ;;
    prometheus:*) options+=(--customize-hook='mkdir -p "$1/prometheus" && chroot "$1" chown prometheus: /prometheus') ;;
  esac
}

# make_tree TAR writes the image's file system.
make_tree() {
  local tar=$1 apt=() mirror
  mirror=$(apt_mirror) || fail "this machine's apt has no Debian mirror (apt-get update shows why)"
  while read -r line; do apt+=(--aptopt="$line"); done < <(apt-config dump | grep -E '^Acquire::(https?::|Check-|Retries)' || true)
  mmdebstrap --variant=essential --include="$packages" "${options[@]}" "${apt[@]}" "$suite" "$tar" "deb $mirror $suite main"
}

# image_changes sets changes: what the image says of itself.
image_changes() {
  local path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  case $name in
    postgres:*) changes=("ENV PATH=/usr/lib/postgresql/${name#*:}/bin:$path" "ENV PGDATA=/var/lib/postgresql/data" "ENV LANG=C.UTF-8"
      'ENTRYPOINT ["postgres-entrypoint.sh"]' 'CMD ["postgres"]' "EXPOSE 5432" "VOLUME /var/lib/postgresql/data") ;;
    redis:* | valkey:*) changes=("ENV PATH=$path" "WORKDIR /data" 'ENTRYPOINT ["redis-entrypoint.sh"]' 'CMD []' "EXPOSE 6379" "VOLUME /data") ;;
    golang:*) changes=("ENV PATH=/usr/local/go/bin:$path" "ENV GOTOOLCHAIN=local" "WORKDIR /go" 'CMD ["bash"]') ;;
    prometheus:*) changes=("ENV PATH=$path" "USER prometheus" "WORKDIR /prometheus" 'ENTRYPOINT ["prometheus"]'
      'CMD ["--config.file=/etc/prometheus/prometheus.yml","--storage.tsdb.path=/prometheus"]' "EXPOSE 9090" "VOLUME /prometheus") ;;
  esac
}

# import TAR makes the image of it.
import() {
  local tar=$1 sum args=()
  sum=$(checksum)
  for c in "${changes[@]}" "LABEL $label=$sum"; do args+=(--change "$c"); done
  docker import "${args[@]}" "$tar" "$image" >/dev/null
}

says_version() {
  local program
  case $name in
    postgres:*) program=(postgres --version) ;;
    redis:*) program=(redis-server --version) ;;
    valkey:*) program=(valkey-server --version) ;;
    golang:*) program=(go version) ;;
    prometheus:*) program=(prometheus --version) ;;
  esac
  docker run --rm --network none --entrypoint "${program[0]}" "$image" "${program[@]:1}" 2>&1 | head -n 1
}

build() {
  recipe "$1"
  if up_to_date; then
    say "$image: up to date"
    return
  fi
  [ "$(id -u)" = 0 ] || fail "$name: building images needs root"
  command -v apt-get >/dev/null || fail "$name: building images needs a Debian-like system; there is no apt-get"
  local dir began=$SECONDS said
  dir=$(mktemp -d)
  # shellcheck disable=SC2064 # this very folder
  trap "rm -rf '$dir'" EXIT
  if ! command -v mmdebstrap >/dev/null; then
    say "installing mmdebstrap"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends mmdebstrap; } >"$dir/log" 2>&1 </dev/null ||
      { tail -n 20 "$dir/log" >&2; fail "mmdebstrap could not be installed"; }
  fi
  say "$image: building from Debian $suite ($packages), about half a minute ..."
  if ! { make_tree "$dir/tree.tar" && import "$dir/tree.tar"; } >"$dir/log" 2>&1 </dev/null; then
    tail -n 30 "$dir/log" >&2
    fail "$name could not be built"
  fi
  said=$(says_version)
  if [[ $said != *"$version"* ]]; then
    docker image rm "$image" >/dev/null
    fail "$name: Debian $suite has \"$said\", not $version: correct the recipe in docker/images.sh"
  fi
  rm -rf "$dir"
  say "$image: $said, $(docker image inspect --format '{{.Size}}' "$image" | awk '{printf "%d MB", $1 / 1e6}'), $((SECONDS - began)) s"
}

# registry_answers: a registry that cannot be reached must not cost minutes.
registry_answers() { timeout 10 docker manifest inspect "$official" >/dev/null 2>&1; }
here() { docker image inspect "$1" >/dev/null 2>&1; }

get() {
  recipe "$1"
  local from=${CDC_IMAGES:-auto}
  case $from in auto | local | official) ;; *) fail "CDC_IMAGES=$from: want auto, local or official" ;; esac
  if [ "$from" != local ]; then
    if here "$official"; then echo "$official"; return; fi
    if [ "$from" = official ] || registry_answers; then
      say "$official: pulling"
      docker pull --quiet "$official" >&2 && { echo "$official"; return; }
      [ "$from" = auto ] || fail "$official could not be pulled"
    fi
  fi
  build "$1"
  echo "$image"
}

list() {
  for n in $(names); do
    recipe "$n"
    printf '%-14s %-34s %-36s %s\n' "$name" "$official" "$image" "$(here "$image" && { up_to_date && echo built || echo 'built, out of date'; } || echo '-')"
  done
}

command -v docker >/dev/null || fail "the docker command is missing"
docker version --format '{{.Server.Version}}' >/dev/null || fail "Docker does not answer"
# One at a time on a machine: two would build the same images.
exec 9>"${TMPDIR:-/tmp}/cdc-invalidator-images.lock"
command=${1:-help}
shift || true
case $command in
  list) list ;;
  get) flock 9; for n in "$@"; do get "$n"; done ;;
  build) flock 9; for n in ${*:-$(names)}; do build "$n"; done ;;
  remove) flock 9; for n in $(names); do recipe "$n"; if here "$image"; then docker image rm "$image" >/dev/null && say "$image: removed"; fi; done ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$(basename "$0")"; [ "$command" = help ] || exit 64 ;;
esac
