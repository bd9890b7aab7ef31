#!/usr/bin/env bash
# Checks what is shipped around the binary with the tools of those who will read it:
# Prometheus rules (promtool), the systemd unit (systemd-analyze), the Helm chart (helm)
# and the release configuration (goreleaser). The last two are built from Go's modules
# when they are not installed, which takes minutes the first time. A table at the end
# says what was checked; what could not be is no failure, unless STRICT=1.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly helm_module=helm.sh/helm/v3/cmd/helm@v3.22.0
readonly goreleaser_module=github.com/goreleaser/goreleaser/v2@v2.14.0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0 table=()

# check NAME COMMAND... runs one check; 127 of it means that its tool cannot be had.
check() {
  local name=$1 code=0; shift
  "$@" >"$work/log" 2>&1 || code=$?
  case $code in
    0) table+=("$name: ok") ;;
    127) table+=("$name: not checked: $(tail -n 1 "$work/log")"); [ "${STRICT:-0}" != 1 ] || failed=1 ;;
    *) cat "$work/log"; table+=("$name: FAILED"); failed=1 ;;
  esac
}
have() { command -v "$1" >/dev/null || { echo "$1 is not installed ($2)"; return 127; }; }
# tool NAME MODULE puts the program into the PATH.
tool() {
  command -v "$1" >/dev/null && return
  GOBIN=$work/bin go install "$2" || { echo "$1 could not be built from $2"; return 127; }
}
PATH=$work/bin:$PATH

rules() {
  have promtool "apt-get install prometheus" || return
  promtool check rules docker/prometheus/rules.yml && promtool test rules docker/prometheus/rules_test.yml
}
unit() {
  have systemd-analyze "apt-get install systemd" || return
  local version
  version=$(systemd-analyze --version | awk 'NR == 1 {print $2}')
  # The binary that it names need not be installed here.
  sed "s#^ExecStart=/usr/bin/cdc-invalidator#ExecStart=$(command -v true)#" packaging/systemd/cdc-invalidator.service >"$work/cdc-invalidator.service"
  systemd-analyze verify "$work/cdc-invalidator.service" 2>&1 | tee "$work/unit"
  if [ "$version" -lt 253 ]; then
    # It does not know the type yet; nothing else may be wrong.
    sed -i '/notify-reload/d' "$work/unit"
  fi
  [ ! -s "$work/unit" ]
}
chart() {
  tool helm "$helm_module" || return
  local c=packaging/helm/cdc-invalidator k=(--kube-version 1.30.0)
  helm lint --strict "${k[@]}" $c -f $c/ci/all-values.yaml &&
    helm template release "${k[@]}" $c -f $c/ci/all-values.yaml &&
    helm template release "${k[@]}" $c --set secrets.existingSecret=s --set-file mappings=mappings.yaml || return 1
  # What must be refused: no secret, no mappings, more than one replica.
  local bad
  for bad in "--set-file mappings=mappings.yaml" "--set secrets.existingSecret=s" "--set secrets.existingSecret=s --set-file mappings=mappings.yaml --set replicas=2"; do
    # shellcheck disable=SC2086 # several arguments
    ! helm template release "${k[@]}" $c $bad 2>&1 || { echo "the chart took: $bad"; return 1; }
  done
}
release() {
  tool goreleaser "$goreleaser_module" || return
  # It wants a clone with a remote.
  git clone -q --depth 1 "file://$PWD" "$work/clone" && cp .goreleaser.yaml "$work/clone/" &&
    git -C "$work/clone" remote set-url origin https://github.com/cdc-invalidator/cdc-invalidator &&
    (cd "$work/clone" && goreleaser check)
}

check "Prometheus rules" rules
check "systemd unit" unit
check "Helm chart" chart
check "release configuration" release
printf 'packaging: %s\n' "${table[@]}"
exit $failed
