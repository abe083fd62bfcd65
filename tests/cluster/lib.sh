# shellcheck shell=bash
# shellcheck disable=SC2154 # env.sh says where `here` is.
# What the cases are written with; sourced by run.sh after env.sh. Every wait has a deadline.
# shellcheck disable=SC2034 # Read by the cases.
RELEASE=tarbox-csi
SYSTEM=tarbox-system
CHART=$(cd "$here/../.." && pwd)/deploy/charts/tarbox-csi
AGENTS=daemonset/tarbox-csi-agent
DRIVER=tarbox.csi.io
# Where pods of cases run: not beside the control plane, where there is a choice.
case " $NODES " in *" two "*) WORKER=two ;; *) WORKER=one ;; esac

# In the namespace of the case, unless another one is named behind it.
k() { "$here/in.sh" kubectl ${CASE_NAMESPACE:+--namespace="$CASE_NAMESPACE"} "$@"; }
# Helm's notes on links are no news.
helm_in() { "$here/in.sh" helm --namespace "$SYSTEM" "$@" 2> >(grep -v 'found symbolic link' >&2); }
# on NODE COMMAND…
on() { "$here/in.sh" -n "$@"; }
step() { printf '    %(%T)T %s\n' -1 "$*"; }
fail() {
    printf '    %(%T)T FAILED: %s\n' -1 "$*"
    exit 1
}
# until_true SECONDS WHAT COMMAND…: asks again until it holds.
until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { "$@" || true; fail "waited in vain for: $what"; }
        sleep 0.2
    done
}
# holds COMMAND…: whether it does, for use behind until_true with a test of its own.
equals() {
    local expected=$1
    shift
    [ "$("$@")" = "$expected" ]
}
expect() {
    local expected=$1 found
    shift
    found=$("$@") || fail "$*: ended with $?"
    [ "$found" = "$expected" ] || fail "$*: \`$found\` instead of \`$expected\`"
}
field() { k get "$1" -o jsonpath="{$2}"; }

# === Volumes and pods; all of them in the namespace of the case, which is kubectl's default ===

# claim NAME [SIZE [MODE [CLASS [SOURCE]]]]: SOURCE is KIND/NAME, a PersistentVolumeClaim or a VolumeSnapshot.
claim() {
    local name=$1 size=${2:-256Mi} mode=${3:-ReadWriteOnce} class=${4:-tarbox} source=${5:-} from=
    case $source in
        VolumeSnapshot/*) from="dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: ${source#*/}}" ;;
        PersistentVolumeClaim/*) from="dataSource: {kind: PersistentVolumeClaim, name: ${source#*/}}" ;;
    esac
    k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $name}
spec:
  accessModes: [$mode]
  storageClassName: $class
  resources: {requests: {storage: $size}}
  $from
YAML
}
# pod NAME CLAIM [MORE-OF-SPEC [IMAGE ARGS [MORE-OF-MOUNT]]]: has the claim at /data.
pod() {
    local name=$1 claim=$2 more=${3:-} image=${4:-busybox} arguments=${5:-'["sleep", "100000"]'} mount=${6:-}
    k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $name, labels: {of: case}}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: ${ON:-$WORKER}}
  tolerations: [{operator: Exists}]
  containers:
  - name: main
    image: cluster.local/$image:1
    args: $arguments
    volumeMounts: [{name: data, mountPath: /data${mount:+, $mount}}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: $claim}}]
  $more
YAML
}
# stateful_set NAME REPLICAS SCRIPT [MORE-OF-SPEC]: pods NAME-0 … that run a script (in YAML), each with a volume of its own at /data; until all are ready.
stateful_set() {
    k apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: $1}
spec:
  serviceName: $1
  replicas: $2
  selector: {matchLabels: {app: $1}}
  template:
    metadata: {labels: {app: $1}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: cluster.local/busybox:1
        command: [sh, -c, $3]
        volumeMounts: [{name: data, mountPath: /data}]
      ${4:-}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], storageClassName: tarbox, resources: {requests: {storage: 64Mi}}}
YAML
    k rollout status "statefulset/$1" --timeout=120s >/dev/null
}
ready() { k wait --for=condition=Ready "pod/$1" --timeout="${2:-120}s" >/dev/null || { k describe "pod/$1" | tail -n 20; fail "pod $1 is not ready"; }; }
inside() {
    local pod=$1
    shift
    k exec "$pod" -- "$@"
}
shell() { k exec "$1" -- sh -ec "$2"; }
gone() { k delete pod "$@" --wait --timeout=120s >/dev/null || fail "$* not gone"; }
# volume_of CLAIM: the volume's id, which is the tenant's.
volume_of() { field "pv/$(field "pvc/$1" .spec.volumeName)" .spec.csi.volumeHandle; }

# === The product's own pods ===

# pod_of COMPONENT [NODE]: the newest that runs.
pod_of() {
    k -n "$SYSTEM" get pods -l "app.kubernetes.io/component=$1" ${2:+--field-selector="spec.nodeName=$2"} -o json |
        jq -r '[.items[] | select(.metadata.deletionTimestamp == null)] | sort_by(.metadata.creationTimestamp) | last | .metadata.name // empty'
}
uid_of() { k -n "$SYSTEM" get pod "$1" -o jsonpath='{.metadata.uid}'; }
# agent NODE COMMAND…: what `tarbox-agent` says there.
agent() {
    local node=$1
    shift
    k -n "$SYSTEM" exec "$(pod_of agent "$node")" -c agent -- tarbox-agent "$@"
}
# mounter NODE VOLUME: its pid on the node, once it serves.
mounter() {
    agent "$1" ps -o json | jq -er --arg id "$2" '.tenants[] | select(.tenant_id == $id and .phase == "serving") | .pid'
}
restarts() { agent "$1" ps -o json | jq -er --arg id "$2" '.tenants[] | select(.tenant_id == $id) | .restarts'; }
serves() { mounter "$@" >/dev/null; }
serves_another() { local pid; pid=$(mounter "$1" "$2") && [ "$pid" != "$3" ]; }
rolled_out() { k -n "$SYSTEM" rollout status "$1" --timeout="${2:-180}s" >/dev/null || { k -n "$SYSTEM" get pods; fail "$1 is not rolled out"; }; }

# === Load ===

LOADS="append names fsx sqlite"
# load_begins NAME: a claim and a pod that works in it, until all of its loads have done something.
load_begins() {
    claim "$1" 1Gi
    # shellcheck disable=SC2086
    pod "$1" "$1" "" load "$(printf '%s\n' $LOADS | jq -Rcs 'split("\n") | map(select(. != ""))')"
    ready "$1"
    field "pod/$1" .metadata.uid >"$CASE_DIR/$1.uid"
    load_goes_on "$1"
}
counts() { inside "$1" sh -c 'for out in /tmp/*.out; do tail -n 40 "$out" | grep "^operations" | tail -n 1 | sed "s#^operations#$(basename "$out" .out)#"; done'; }
complaints() { inside "$1" sh -c 'grep -hE "^(failed|wrong)" /tmp/*.out || true'; }
advanced() {
    local now
    now=$(counts "$1") || return
    [ "$(wc -l <<<"$now")" -gt "$(wc -w <<<"$LOADS")" ] || return
    join <(sort <<<"$2") <(sort <<<"$now") | awk '$3 <= $2 { stuck = 1 } END { exit stuck || NR == 0 }' &&
        [ "$(sort <<<"$now" | cut -d' ' -f1 | tr '\n' ' ')" = "$(sort <<<"$2" | cut -d' ' -f1 | tr '\n' ' ')" ]
}
all_have_begun() { [ "$(counts "$1" | wc -l)" -gt "$(wc -w <<<"$LOADS")" ]; }
# load_goes_on NAME [SECONDS]: each of its loads has done something since this was called, and nothing has failed.
load_goes_on() {
    local before end=$((SECONDS + ${2:-120})) found
    until_true "${2:-120}" "every load of $1 to begin" all_have_begun "$1"
    before=$(counts "$1")
    until advanced "$1" "$before"; do
        found=$(complaints "$1")
        [ -z "$found" ] || fail "$1: $found"
        [ $SECONDS -lt $end ] || fail "$1 does not go on: $before; now $(counts "$1")"
        sleep 0.3
    done
    found=$(complaints "$1")
    [ -z "$found" ] || fail "$1: $found"
}
all_said() { [ "$(inside "$1" sh -c "grep -l '^$2' /tmp/*.out | wc -l")" = $(($(wc -w <<<"$LOADS") + 1)) ]; }
# load_ends NAME: it stops, everything is compared with what must be there; the pod has never been another one.
load_ends() {
    local found said
    inside "$1" load.sh --orders stop
    for said in stopped verified; do
        [ "$said" = stopped ] || inside "$1" load.sh --orders verify
        local end=$((SECONDS + 120))
        until all_said "$1" "$said"; do
            found=$(complaints "$1")
            [ -z "$found" ] || fail "$1: $found"
            [ $SECONDS -lt $end ] || { inside "$1" sh -c 'tail -n 2 /tmp/*.out'; fail "not every load of $1 has $said"; }
            sleep 0.3
        done
    done
    found=$(complaints "$1")
    [ -z "$found" ] || fail "$1: $found"
    expect "$(cat "$CASE_DIR/$1.uid") 0" field "pod/$1" '.metadata.uid} {.status.containerStatuses[0].restartCount'
    step "$(counts "$1" | tr '\n' ' ')— none failed, all verified"
}
driver_is_on() { field "csinode/$1" '.spec.drivers[*].name' | grep -q "$DRIVER"; }
