#!/usr/bin/env bash
# Runs a command inside of a node, with the cluster's administrator as its kubeconfig. Usage: in.sh [-n NODE] COMMAND…
set -euo pipefail
. "$(dirname "$0")/env.sh"
node=one
[ "${1:-}" != -n ] || { node=$2; shift 2; }
read -r _ inner <"$RUN/$node/pid"
export KUBECONFIG=$PKI/admin.kubeconfig CONTAINERD_NAMESPACE=k8s.io
exec nsenter -t "$inner" -m -p -n -u -i -C --wd="$PWD" -- "$@"
