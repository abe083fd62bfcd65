#!/usr/bin/env bash
# Installs what the cases work with: PostgreSQL, the snapshot controller, the chart. Usage: install.sh
set -euo pipefail
. "$(dirname "$0")/env.sh"
. "$here/lib.sh"
password=$(openssl rand -hex 16)
began=$SECONDS
k create namespace database >/dev/null
k -n database create secret generic postgres --from-literal=password="$password" >/dev/null
k -n database create secret tls postgres-tls --cert="$PKI/postgres.crt" --key="$PKI/postgres.key" >/dev/null
k apply -f "$here/manifests/database.yaml" -f "$BIN/crd" >/dev/null
k wait --for=condition=Established crd --all --timeout=60s >/dev/null
k apply -f "$here/manifests/snapshot-controller.yaml" >/dev/null
# As the guide says: helm makes no labels.
k create namespace "$SYSTEM" >/dev/null
k label namespace "$SYSTEM" pod-security.kubernetes.io/enforce=privileged >/dev/null
k -n "$SYSTEM" create secret generic database \
    --from-literal=databaseURL="postgresql://tarbox:$password@$DATABASE_NAME/tarbox?sslmode=verify-full&sslrootcert=/etc/tarbox/ca/ca.crt" >/dev/null
k -n "$SYSTEM" create configmap database-ca --from-file=ca.crt="$PKI/ca.crt" >/dev/null
k -n database rollout status statefulset/postgres --timeout=120s >/dev/null
step "PostgreSQL answers after $((SECONDS - began)) s"
began=$SECONDS
helm_in install "$RELEASE" "$CHART" --values "$here/manifests/values.yaml" --wait --timeout 5m >/dev/null
step "helm install took $((SECONDS - began)) s"
for node in $NODES; do
    until_true 60 "the driver on node $node" driver_is_on "$node"
done
