# shellcheck shell=bash
# shellcheck disable=SC2154 # env.sh says where `here` is.
# Nodes that are lost, and come back or do not. They need a second one.
if [ "$NODES" != one ]; then
    CASES+=(
        a_node_that_loses_power_comes_back_with_its_volumes
        a_pod_moves_when_its_node_is_lost_and_finds_what_it_synced
        a_node_that_is_lost_right_after_its_pod_ended_loses_nothing
    )
fi

a_node_that_loses_power_comes_back_with_its_volumes() {
    claim data 128Mi
    k apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: user}
spec:
  strategy: {type: Recreate}
  selector: {matchLabels: {app: user}}
  template:
    metadata: {labels: {app: user}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {kubernetes.io/hostname: $WORKER}
      tolerations: [{operator: Exists}]
      containers:
      - {name: main, image: cluster.local/busybox:1, args: [sleep, "100000"], volumeMounts: [{name: data, mountPath: /data}]}
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
YAML
    k rollout status deployment/user --timeout=120s >/dev/null
    k exec deploy/user -- sh -ec 'echo synced >/data/file; sync /data/file'
    "$here/down.sh" "$WORKER"
    "$here/up.sh" "$WORKER"
    rolled_out "$AGENTS"
    # The same pod, its containers begun anew.
    until_true 180 "a pod that reads its file" equals synced k exec deploy/user -- cat /data/file
    k exec deploy/user -- sh -ec 'echo more >>/data/file; sync /data/file'
}

a_pod_moves_when_its_node_is_lost_and_finds_what_it_synced() {
    stateful_set set 1 '"n=0; while :; do n=$((n + 1)); echo $n >>/data/log; sync /data/log; echo $n; sleep 0.1; done"' \
        "affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 100, preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [$WORKER]}]}}]}}"
    expect "$WORKER" field pod/set-0 .spec.nodeName
    until_true 30 "a hundred records" a_hundred_records
    local last
    last=$(k logs set-0 | tail -n 1)
    "$here/down.sh" "$WORKER"
    # What an administrator says who knows that the machine is off. Source: "Non-Graceful Node Shutdown" of Kubernetes' documentation.
    k taint node "$WORKER" node.kubernetes.io/out-of-service=nodeshutdown:NoExecute >/dev/null
    until_true 240 "the pod on the other node" equals one field pod/set-0 .spec.nodeName
    ready set-0 180
    shell set-0 "grep -qx $last /data/log" || fail "record $last, acknowledged with fsync, is lost"
    step "record $last is there"
    k taint node "$WORKER" node.kubernetes.io/out-of-service- >/dev/null
    "$here/up.sh" "$WORKER"
    rolled_out "$AGENTS"
}
a_hundred_records() { [ "$(k logs set-0 | tail -n 1)" -gt 100 ]; }

# What removes nodes drains them, and does not wait for volumes to be unstaged.
a_node_that_is_lost_right_after_its_pod_ended_loses_nothing() {
    claim data 128Mi
    pod writer data
    ready writer
    shell writer 'seq 20000 | while read -r n; do echo $n; done >/data/log; mkdir /data/d; mv /data/log /data/d/log'
    gone writer
    "$here/down.sh" "$WORKER"
    ON=one pod reader data
    ready reader 180
    shell reader 'seq 20000 | cmp - /data/d/log'
    gone reader
    "$here/up.sh" "$WORKER"
    rolled_out "$AGENTS"
}
