# shellcheck shell=bash
# shellcheck disable=SC2154 # env.sh says where `here` is.
# The PostgreSQL that the chart makes where it is asked to, by itself: what the other cases work with is one of the cluster's.
CASES+=(
    a_second_server_of_the_embedded_database_waits_for_the_first_to_end
)

# Its data lie in a volume of ours, which makes this a test of that as well.
a_second_server_of_the_embedded_database_waits_for_the_first_to_end() {
    local set=embedded-tarbox-csi-postgres
    helm template embedded "$CHART" --kube-version "${KUBERNETES#v}" --namespace "$CASE_NAMESPACE" --values "$here/manifests/embedded.yaml" \
        --set "database.postgres.nodeSelector.kubernetes\.io/hostname=$WORKER" --show-only templates/database/postgres.yaml --show-only templates/database/secret.yaml 2>/dev/null | k apply -f - >/dev/null
    k rollout status "statefulset/$set" --timeout=120s >/dev/null
    sql "$set-0" 'CREATE TABLE number (n int)'
    sql "$set-0" 'INSERT INTO number SELECT * FROM generate_series(1, 1000)'
    # As the successor of a pod that was deleted by force: the same pod, while the first one runs.
    k get "statefulset/$set" -o json | jq '{apiVersion: "v1", kind: "Pod", metadata: {name: "second"}, spec: .spec.template.spec}' | k apply -f - >/dev/null
    until_true 60 "a second one that waits" waits_for_the_lock second
    sql "$set-0" 'INSERT INTO number SELECT * FROM generate_series(1001, 2000)'
    if inside second pg_isready -h 127.0.0.1 >/dev/null; then fail "two servers run on one directory"; fi
    k delete pod "$set-0" --force --grace-period=0 >/dev/null 2>&1
    k scale "statefulset/$set" --replicas=0 >/dev/null
    ready second
    expect "2000 2001000" sql second "SELECT count(*) || ' ' || sum(n) FROM number"
    gone second
}
sql() { inside "$1" psql -h /tmp -U tarbox -d tarbox -qAtc "$2"; }
waits_for_the_lock() { inside "$1" sh -c 'grep -qx flock /proc/[0-9]*/comm'; }
