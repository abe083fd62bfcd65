#!/usr/bin/env bash
# Pid 1 of a node, inside of the namespaces that up.sh made. The first node is the control plane, too. Usage: node.sh NODE
set -euo pipefail
. "$(dirname "$0")/env.sh"
node=$1 state=$RUN/$1 log=$RUN/$1/log
ip=$(node_ip "$node")
say() { printf '%(%T)T %s\n' -1 "$*"; }

mounts() {
    local controllers directory
    mount --make-rshared / # Bidirectional propagation needs it.
    mount -t tmpfs -o mode=755 run /run
    mount --bind "$state/kubelet" /var/lib/kubelet
    # A peer group of its own: else each mount below it shows where it was bound from as well.
    mount --make-private /var/lib/kubelet
    mount --make-shared /var/lib/kubelet
    mount --bind "$state/containerd" /var/lib/containerd
    mount --bind "$state/tarbox" /var/lib/tarbox
    mount --bind "$state/pod-logs" /var/log/pods
    mount --bind "$state/container-logs" /var/log/containers
    # This namespaces' own view of network and control groups.
    umount -R /sys 2>/dev/null || umount -l /sys
    mount -t sysfs sysfs /sys
    mount -t fusectl fusectl /sys/fs/fuse/connections
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    while IFS=: read -r _ controllers _; do
        [ -n "$controllers" ] || continue
        directory=/sys/fs/cgroup/${controllers#name=}
        mkdir -p "$directory"
        mount -t cgroup -o "$controllers" cgroup "$directory"
    done </proc/self/cgroup
    # What the kubelet sets is the whole machine's: it finds, and writes, files of ours.
    decoy vm/overcommit_memory 1
    decoy vm/panic_on_oom 0
    decoy kernel/panic 10
    decoy kernel/panic_on_oops 1
    decoy kernel/keys/root_maxkeys 1000000
    decoy kernel/keys/root_maxbytes 25000000
}
decoy() {
    mkdir -p /run/decoys
    echo "$2" >"/run/decoys/${1//\//.}"
    mount --bind "/run/decoys/${1//\//.}" "/proc/sys/$1"
}

network() {
    local other
    hostname "$node"
    ip link set lo up
    if [ "$node" = one ]; then
        # A switch, with a cable in it that leads nowhere else: it has a carrier, and its address, whatever becomes of other nodes.
        ip link add node0 type bridge
        ip link add node0-port type veth peer name node0-peer
        ip link set node0-port master node0 up
        ip link set node0-peer up
    fi
    until ip link show node0 >/dev/null 2>&1; do sleep 0.05; done # The second node's is made by up.sh.
    ip addr add "$ip/24" dev node0
    ip link set node0 up
    ip route add default dev node0 # Without any route there is no translation of service addresses.
    for other in $NODES; do
        [ "$other" = "$node" ] || ip route add "$(pod_cidr "$other")" via "$(node_ip "$other")"
    done
    echo 1 >/proc/sys/net/ipv4/ip_forward
    mkdir -p /run/cluster/cni
    cat >/run/cluster/cni/10-cluster.conflist <<JSON
{"cniVersion": "0.4.0", "name": "cluster", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "/run/cluster/ipam", "ranges": [[{"subnet": "$(pod_cidr "$node")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
}

# serve NAME COMMAND…: starts it again whenever it ends, as an init does; /run/cluster/NAME.pid is the one that runs.
serve() {
    local name=$1
    shift
    (
        while :; do
            "$@" >>"$log/$name.log" 2>&1 &
            echo $! >"/run/cluster/$name.pid"
            wait $! || true
            say "$name ended"
            sleep 0.5
        done
    ) &
    say "started $name"
}
# until_ok NAME COMMAND…
until_ok() {
    local name=$1
    shift
    for _ in $(seq 600); do
        if "$@" >/dev/null 2>&1; then
            say "$name"
            return
        fi
        sleep 0.2
    done
    say "NOT $name"
    exit 1
}

control_plane() {
    mkdir -p /run/cluster/etcd && chmod 700 /run/cluster/etcd # In memory: nothing here has to outlive the cluster.
    serve etcd etcd --name c --data-dir /run/cluster/etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster c=http://127.0.0.1:2380
    serve dnsmasq dnsmasq --keep-in-foreground --no-resolv --no-hosts --conf-file=/dev/null --pid-file= --user=root --listen-address="$DNS" --bind-interfaces \
        --host-record="$DATABASE_NAME,$DATABASE" --local=/cluster.local/
    serve kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --secure-port=6443 --advertise-address="$ip" \
        --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --client-ca-file="$PKI/ca.crt" \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
        --kubelet-client-certificate="$PKI/apiserver-kubelet.crt" --kubelet-client-key="$PKI/apiserver-kubelet.key" \
        --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
        --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$PKI/sa.pub" \
        --service-account-signing-key-file="$PKI/sa.key" --service-cluster-ip-range="$SERVICES" --profiling=false --v=1
    until_ok "API server is up" curl -sf --cacert "$PKI/ca.crt" "https://$ip:6443/readyz"
    serve kube-controller-manager kube-controller-manager --kubeconfig="$PKI/controller-manager.kubeconfig" --bind-address=127.0.0.1 \
        --leader-elect=false --root-ca-file="$PKI/ca.crt" --service-account-private-key-file="$PKI/sa.key" --use-service-account-credentials=true \
        --allocate-node-cidrs=false --node-monitor-grace-period=20s --profiling=false --v=2
    serve kube-scheduler kube-scheduler --kubeconfig="$PKI/scheduler.kubeconfig" --bind-address=127.0.0.1 --leader-elect=false --profiling=false --v=1
}

# Each start of a node is a boot of its own, in its containers as well: they have a /proc of their own.
another_boot() {
    mkdir -p /run/cluster
    cat /proc/sys/kernel/random/uuid >/run/cluster/boot_id
    mount --bind /run/cluster/boot_id /proc/sys/kernel/random/boot_id
    cat >/run/cluster/boot_id.sh <<'SH'
#!/bin/sh
# A hook of the runtime, in the container's namespaces before it changes its root. Standard input is the container's state.
set -eu
exec mount --bind /run/cluster/boot_id "$(jq -r .bundle)/rootfs/proc/sys/kernel/random/boot_id"
SH
    chmod 755 /run/cluster/boot_id.sh
    ctr oci spec | jq 'del(.process.rlimits) | .hooks.createContainer = [{path: "/run/cluster/boot_id.sh"}]' >/run/cluster/container.json
}

containers() {
    cat >/run/cluster/containerd.toml <<TOML
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "cluster.local/pause:1"
  # Without CAP_SYS_RESOURCE a negative one is refused.
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/run/cluster/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      base_runtime_spec = "/run/cluster/container.json"
TOML
    serve containerd containerd --config /run/cluster/containerd.toml
    until_ok "containerd is up" ctr --address /run/containerd/containerd.sock version
    # After a loss of power those that were imported are there.
    local newer=()
    [ ! -e "$state/imported" ] || newer=(-newer "$state/imported")
    find "$IMAGES" -name '*.tar' "${newer[@]}" -print0 | xargs -0 -r -P 2 -n 1 ctr -n k8s.io images import >/dev/null
    touch "$state/imported"
    say "images are imported"
}

kubelet_and_proxy() {
    printf 'nameserver %s\n' "$DNS" >/run/cluster/resolv.conf
    mount --bind /run/cluster/resolv.conf "$(realpath /etc/resolv.conf)"
    cat >/run/cluster/kubelet.yaml <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/serving-$node.crt
tlsPrivateKeyFile: $PKI/serving-$node.key
address: $ip
cgroupDriver: cgroupfs
cgroupRoot: /
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
resolvConf: /run/cluster/resolv.conf
clusterDNS: [$DNS]
clusterDomain: cluster.local
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
maxOpenFiles: 16384
syncFrequency: 10s
nodeStatusUpdateFrequency: 4s
YAML
    serve kubelet kubelet --config=/run/cluster/kubelet.yaml --kubeconfig="$PKI/kubelet-$node.kubeconfig" --hostname-override="$node" --node-ip="$ip" \
        --root-dir=/var/lib/kubelet --v=2
    cat >/run/cluster/kube-proxy.yaml <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $PKI/kube-proxy.kubeconfig}
mode: iptables
clusterCIDR: 10.251.0.0/16
hostnameOverride: $node
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
metricsBindAddress: 127.0.0.1:10249
healthzBindAddress: 127.0.0.1:10256
YAML
    serve kube-proxy kube-proxy --config=/run/cluster/kube-proxy.yaml --v=1
}

is_ready() { kubectl get node "$node" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}' | grep -q True; }

mounts
network
another_boot
[ "$node" != one ] || control_plane
containers
export KUBECONFIG=$PKI/admin.kubeconfig
until_ok "API server answers" kubectl get --raw /readyz
kubelet_and_proxy
until_ok "node is ready" is_ready
until_ok "service account is there" kubectl -n default get serviceaccount default
touch "$state/ready"
# Reaps what lost its parent.
while :; do wait -n 2>/dev/null || sleep 1; done
