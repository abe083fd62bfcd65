# shellcheck shell=bash
# shellcheck disable=SC2154 # env.sh says where `here` is.
# What a user of volumes expects: each way to have one, and what is in it.
CASES+=(
    a_claim_becomes_a_volume_and_keeps_what_pods_write
    a_volume_that_is_not_kept_goes_with_its_claim
    a_volume_that_is_kept_outlives_its_claim
    a_stateful_set_has_a_volume_for_each_of_its_pods
    two_pods_share_a_volume_on_one_node
    a_volume_for_many_readers_is_read_by_two_pods_and_written_by_none
    a_volume_for_one_pod_is_given_to_no_second_one
    a_pod_has_a_volume_of_its_own_that_goes_with_it
    a_volume_grows_while_it_is_written
    snapshots_restores_and_clones_hold_what_was_written
    a_directory_of_the_node_is_shown_inside_of_a_volume
    a_group_owns_what_its_pods_share
    a_part_of_a_volume_survives_the_restart_of_its_container
)

a_claim_becomes_a_volume_and_keeps_what_pods_write() {
    claim data
    pod writer data
    ready writer
    shell writer 'dd if=/dev/urandom of=/data/bytes bs=1M count=20 2>/dev/null; mkdir /data/d; echo hello >/data/d/greeting; cd /data; sha256sum bytes d/greeting >/data/sums; sync sums'
    local size
    size=$(inside writer df -kP /data | awk 'NR == 2 { print $2 }')
    [ "$size" = 262144 ] || fail "df shows $size KiB, not the 262144 of the claim"
    gone writer
    pod reader data
    ready reader
    shell reader 'cd /data && sha256sum -cs sums'
    expect hello inside reader cat /data/d/greeting
    gone reader
}

a_volume_that_is_not_kept_goes_with_its_claim() {
    claim data
    pod user data
    ready user
    local volume name
    volume=$(volume_of data)
    name=$(field pvc/data .spec.volumeName)
    tenants | grep -q "$volume" || fail "the tenant $volume is not in the database"
    gone user
    k delete pvc data --timeout=60s >/dev/null
    until_true 60 "the end of pv $name" pv_is_gone "$name"
    until_true 60 "the end of the tenant's row" tenant_is_gone "$volume"
}
pv_is_gone() { [ -z "$(k get pv "$1" --ignore-not-found -o name)" ]; }
# Of the database of all volumes.
tenants() {
    k -n database exec statefulset/postgres -- psql -h /tmp -U tarbox -d tarbox -Atc "SELECT id, name FROM tarbox.tenant"
}
tenant_is_gone() { local all; all=$(tenants) && ! grep -q "$1" <<<"$all"; }

a_volume_that_is_kept_outlives_its_claim() {
    claim data 128Mi ReadWriteOnce tarbox-audit
    pod user data
    ready user
    shell user 'echo kept >/data/file'
    local name
    name=$(field pvc/data .spec.volumeName)
    gone user
    k delete pvc data --timeout=60s >/dev/null
    expect Released field "pv/$name" .status.phase
    # Somebody decides that it is to be used again.
    k patch pv "$name" --type=json -p '[{"op": "remove", "path": "/spec/claimRef"}]' >/dev/null
    k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: again}
spec: {accessModes: [ReadWriteOnce], storageClassName: tarbox-audit, volumeName: $name, resources: {requests: {storage: 128Mi}}}
YAML
    pod user again
    ready user
    expect kept inside user cat /data/file
    gone user
    k patch pv "$name" -p '{"spec": {"persistentVolumeReclaimPolicy": "Delete"}}' >/dev/null
}

a_stateful_set_has_a_volume_for_each_of_its_pods() {
    stateful_set set 2 '"hostname >>/data/names; exec sleep 100000"'
    k delete pod set-0 set-1 --wait >/dev/null
    k rollout status statefulset/set --timeout=120s >/dev/null
    for pod in set-0 set-1; do
        until_true 30 "two lines of $pod" equals "$pod $pod " shell "$pod" 'tr "\n" " " </data/names'
    done
}

two_pods_share_a_volume_on_one_node() {
    claim data 64Mi ReadWriteMany
    pod first data
    pod second data
    ready first
    ready second
    shell first 'echo one >>/data/log'
    shell second 'echo two >>/data/log'
    expect "one two " shell first 'tr "\n" " " </data/log'
    shell second 'mv /data/log /data/renamed'
    expect "one two " shell first 'tr "\n" " " </data/renamed'
}

a_volume_for_many_readers_is_read_by_two_pods_and_written_by_none() {
    claim data 64Mi
    pod writer data
    ready writer
    shell writer 'echo read me >/data/file'
    gone writer
    claim many 64Mi ReadOnlyMany tarbox PersistentVolumeClaim/data
    for name in first second; do
        k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $name}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: cluster.local/busybox:1, args: [sleep, "100000"], volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: many, readOnly: true}}]
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {}}]
YAML
    done
    for name in first second; do
        ready "$name"
        expect "read me" inside "$name" cat /data/file
        if inside "$name" touch /data/new 2>/dev/null; then fail "$name wrote into a read-only volume"; fi
    done
    step "on $(field pod/first .spec.nodeName) and $(field pod/second .spec.nodeName)"
}

a_volume_for_one_pod_is_given_to_no_second_one() {
    claim data 64Mi ReadWriteOncePod
    pod first data
    ready first
    pod second data
    until_true 60 "a second pod that has to wait" refused_for_access_mode second
    gone first
    ready second
    shell second 'touch /data/mine'
}
refused_for_access_mode() { field "pod/$1" '.status.conditions[*].message' | grep -q "ReadWriteOncePod"; }

a_pod_has_a_volume_of_its_own_that_goes_with_it() {
    k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: inline}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1234}
  containers:
  - {name: main, image: cluster.local/busybox:1, args: [sleep, "100000"], volumeMounts: [{name: scratch, mountPath: /data}]}
  volumes: [{name: scratch, csi: {driver: $DRIVER, volumeAttributes: {size: 32Mi}}}]
YAML
    ready inline
    shell inline 'echo mine >/data/file'
    expect 32768 shell inline "df -kP /data | awk 'NR == 2 { print \$2 }'"
    local before
    before=$(tenants | wc -l)
    gone inline
    until_true 60 "a tenant less" fewer_tenants "$before"
}
fewer_tenants() { [ "$(tenants | wc -l)" -lt "$1" ]; }

a_volume_grows_while_it_is_written() {
    claim data 64Mi
    pod user data
    ready user
    if shell user 'dd if=/dev/zero of=/data/full bs=1M count=80 2>/dev/null'; then fail "80 MiB fit into 64"; fi
    k patch pvc data -p '{"spec": {"resources": {"requests": {"storage": "128Mi"}}}}' >/dev/null
    until_true 120 "the claim's new capacity" equals 128Mi field pvc/data .status.capacity.storage
    until_true 60 "df's new size" equals 131072 shell user "df -kP /data | awk 'NR == 2 { print \$2 }'"
    shell user 'dd if=/dev/urandom of=/data/full bs=1M count=80 2>/dev/null'
    expect 0 field pod/user '.status.containerStatuses[0].restartCount'
}

snapshots_restores_and_clones_hold_what_was_written() {
    claim data 128Mi
    pod user data
    ready user
    # What is acknowledged, not what is synced.
    shell user 'echo before >/data/file; dd if=/dev/urandom of=/data/bytes bs=1M count=8 2>/dev/null; cd /data; sha256sum bytes >sum'
    k apply -f - >/dev/null <<YAML
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: moment}
spec: {volumeSnapshotClassName: tarbox-snapshot, source: {persistentVolumeClaimName: data}}
YAML
    until_true 60 "the snapshot" equals true field volumesnapshot/moment .status.readyToUse
    shell user 'echo after >/data/file; rm /data/bytes'
    claim restored 128Mi ReadWriteOnce tarbox VolumeSnapshot/moment
    claim copied 256Mi ReadWriteOnce tarbox PersistentVolumeClaim/data
    pod restored restored
    pod copied copied
    ready restored
    ready copied
    expect before inside restored cat /data/file
    shell restored 'cd /data && sha256sum -cs sum'
    expect after inside copied cat /data/file
    shell copied '! test -e /data/bytes; echo copy >/data/file'
    expect after inside user cat /data/file
    # A snapshot outlives its volume.
    gone user
    k delete pvc data --timeout=60s >/dev/null
    claim late 128Mi ReadWriteOnce tarbox VolumeSnapshot/moment
    pod late late
    ready late
    expect before inside late cat /data/file
    k delete volumesnapshot moment --timeout=60s >/dev/null
    until_true 60 "the end of the snapshot's content" no_contents_of "$CASE_NAMESPACE"
}
no_contents_of() { [ -z "$(k get volumesnapshotcontent -o json | jq -r --arg ns "$1" '.items[] | select(.spec.volumeSnapshotRef.namespace == $ns) | .metadata.name')" ]; }

a_directory_of_the_node_is_shown_inside_of_a_volume() {
    claim data 64Mi ReadWriteOnce tarbox-native
    pod user data
    ready user
    shell user 'echo native >/data/.venv/file'
    local volume
    volume=$(volume_of data)
    expect native on "$WORKER" cat "/var/tarbox/venvs/$volume/file"
    inside user df -kP /data/.venv | tail -n 1 | grep -qv fuse || fail "it is not the node's own directory"
    on "$WORKER" rm -r "/var/tarbox/venvs/$volume"
}

a_group_owns_what_its_pods_share() {
    claim data 64Mi
    pod user data 'securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 4000}'
    ready user
    # The group may what the owner lets it: what is made later is as its maker's umask says.
    shell user 'umask 002; echo mine >/data/file; mkdir /data/d'
    expect 4000 inside user stat -c %g /data/file
    expect 4000 inside user stat -c %g /data
    gone user
    pod other data 'securityContext: {runAsUser: 1001, runAsGroup: 3000, fsGroup: 4000}'
    ready other
    expect mine inside other cat /data/file
    shell other 'touch /data/d/other'
}

a_part_of_a_volume_survives_the_restart_of_its_container() {
    claim data 64Mi
    pod user data "" busybox '["sh", "-c", "echo started >>/data/log; exec sleep 100000"]' "subPath: deep/down"
    ready user
    on "$WORKER" ctr tasks kill --signal SIGKILL "$(field pod/user '.status.containerStatuses[0].containerID' | sed 's#.*//##')"
    until_true 60 "a restart" equals 1 field pod/user '.status.containerStatuses[0].restartCount'
    until_true 60 "the second line" equals "started started " shell user 'tr "\n" " " </data/log'
}
