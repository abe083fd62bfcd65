#!/usr/bin/env bash
# `make e2e`: a real cluster, the product installed into it by its chart, and every case of cases/. Leaves nothing behind.
# Usage: run.sh [PATTERN…]: only the cases whose name matches one; --list names them; --keep leaves the cluster for `in.sh`, until `down.sh`
#   CLUSTER_NODES=one     without the second node, and the cases that lose it
#   PROFILE=dev           the product as cargo's dev profile builds it
set -euo pipefail
. "$(dirname "$0")/env.sh"
. "$here/lib.sh"
CASES=()
for file in "$here"/cases/*.sh; do
    # shellcheck disable=SC1090
    . "$file"
done

# === One case, in a process of its own ===
if [ "${1:-}" = --case ]; then
    CASE_DIR=$RUN/cases/$2
    export CASE_NAMESPACE=$3
    mkdir -p "$CASE_DIR"
    "$2"
    exit
fi

keep="" patterns=()
for argument in "$@"; do
    case $argument in
        --list) printf '%s\n' "${CASES[@]}"; exit ;;
        --keep) keep=1 ;;
        *) patterns+=("$argument") ;;
    esac
done
chosen=()
for name in "${CASES[@]}"; do
    [ ${#patterns[@]} -eq 0 ] || grep -qE "$(IFS='|'; echo "${patterns[*]}")" <<<"$name" || continue
    chosen+=("$name")
done
[ ${#chosen[@]} -gt 0 ] || { echo "run.sh: no case matches ${patterns[*]}; there are: ${CASES[*]}" >&2; exit 64; }

# gather NAME: what there is to be known of a failure.
gather() {
    local to=$RUN/gathered/$1 pod
    mkdir -p "$to"
    {
        k get all,pvc,pv,volumesnapshot,volumeattachment -A -o wide
        k get events -A --sort-by=.lastTimestamp | tail -n 60
    } >"$to/objects.txt" 2>&1 || true
    k -n "$SYSTEM" describe pods >"$to/pods.txt" 2>&1 || true
    for pod in $(k -n "$SYSTEM" get pods -o name 2>/dev/null); do
        k -n "$SYSTEM" logs "$pod" --all-containers --timestamps >"$to/${pod#pod/}.log" 2>&1 || true
        k -n "$SYSTEM" logs "$pod" --all-containers --previous >"$to/${pod#pod/}.previous.log" 2>/dev/null || true
    done
    for node in $NODES; do
        agent "$node" ps >"$to/$node.ps.txt" 2>&1 || true
        cp -r "$RUN/$node/tarbox/agent/logs" "$to/$node.mounters" 2>/dev/null || true
        cp -r "$RUN/$node/tarbox/agent/dumps" "$to/$node.dumps" 2>/dev/null || true
    done
}
LOGS=$CACHE/last-log
over() {
    status=$?
    trap - EXIT INT TERM
    [ -n "$keep" ] || KEEP_LOGS=$LOGS "$here/down.sh" || status=1
    exit $status
}
trap over EXIT
trap 'exit 130' INT TERM

if [ ! -e "$RUN/one/pid" ]; then
    began=$SECONDS
    "$here/up.sh"
    echo "the cluster ($NODES) is up after $((SECONDS - began)) s"
    "$here/install.sh" || { gather install; echo "FAILED: install; logs in $LOGS" >&2; exit 1; }
fi

# Kubernetes' own suite takes its time.
limit=900
[ -z "${CLUSTER_SUITE:-}" ] || limit=5400
failed=() passed=0
for name in "${chosen[@]}"; do
    namespace=$(tr _ - <<<"$name" | cut -c1-45 | sed 's/-*$//')
    printf '%s\n' "$name"
    began=$SECONDS
    k create namespace "$namespace" >/dev/null 2>&1 || { k delete namespace "$namespace" --timeout=120s; k create namespace "$namespace"; } >/dev/null
    if timeout "$limit" "$0" --case "$name" "$namespace"; then
        printf 'ok      %s (%d s)\n' "$name" $((SECONDS - began))
        passed=$((passed + 1))
    else
        printf 'FAILED  %s (%d s)\n' "$name" $((SECONDS - began))
        failed+=("$name")
        gather "$name"
    fi
    # Its volumes go with it, and with them what the next case could trip over.
    k delete namespace "$namespace" --timeout=180s >/dev/null || { echo "FAILED  $name: its namespace does not end"; failed+=("$name: end of its namespace"); gather "$name-end"; }
done

echo
echo "$passed of ${#chosen[@]} cases passed"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    echo "logs are in $LOGS"
    exit 1
fi
