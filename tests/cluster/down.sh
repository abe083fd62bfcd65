#!/usr/bin/env bash
# Ends the cluster, or one node as a loss of power would: its pid 1 is killed, and the kernel ends all others of it, their mounts with them.
# What its disk holds stays until the cluster is ended. Usage: down.sh [NODE]; KEEP_LOGS=DIRECTORY keeps the logs of the cluster
set -euo pipefail
. "$(dirname "$0")/env.sh"

end() {
    local outer inner group
    [ -e "$RUN/$1/pid" ] || return 0
    read -r outer inner <"$RUN/$1/pid"
    kill -9 "$inner" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$outer" 2>/dev/null || break
        sleep 0.1
    done
    while read -r group; do
        for _ in $(seq 100); do
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
            [ -d "$group" ] || break
            sleep 0.1
        done
        [ ! -d "$group" ] || echo "down.sh: left behind: $group" >&2
    done <"$RUN/$1/cgroups"
    rm -f "$RUN/$1/pid" "$RUN/$1/ready"
}

if [ $# -gt 0 ]; then
    end "$1"
    exit
fi
[ -d "$RUN" ] || exit 0
for node in $NODES; do end "$node"; done
if [ -n "${KEEP_LOGS:-}" ]; then
    rm -rf "$KEEP_LOGS"
    mkdir -p "$KEEP_LOGS"
    for node in $NODES; do
        [ ! -d "$RUN/$node/log" ] || cp -a "$RUN/$node/log" "$KEEP_LOGS/$node"
        [ ! -d "$RUN/$node/pod-logs" ] || cp -a "$RUN/$node/pod-logs" "$KEEP_LOGS/$node/pods"
    done
    [ ! -d "$RUN/gathered" ] || cp -a "$RUN/gathered" "$KEEP_LOGS/gathered"
fi
rm -rf "${RUN:?}"
