#!/usr/bin/env bash
# Starts the cluster: each node a set of namespaces (mount, pid, net, uts, ipc, cgroup) with node.sh as its pid 1, and control groups below
# our own. Nothing of it listens, mounts or sets anything outside; the end of that one process is the end of the node.
# Usage: up.sh, or up.sh NODE to start again one that was ended by `down.sh NODE`
set -euo pipefail
. "$(dirname "$0")/env.sh"
[ "$(id -u)" = 0 ] || { echo "up.sh: namespaces and mounts need root" >&2; exit 1; }

# groups NODE: a child in each hierarchy of version 1, below the group that we are in.
groups() {
    local controllers path group
    while IFS=: read -r _ controllers path; do
        [ -n "$controllers" ] || continue
        group=/sys/fs/cgroup/${controllers#name=}${path%/}/tarbox-$1
        [ -d "${group%/*}" ] || continue
        mkdir -p "$group"
        # One of cpuset begins without processors and memory: nothing could enter it.
        if [ "$controllers" = cpuset ]; then
            for file in cpuset.cpus cpuset.mems; do cat "${group%/*}/$file" >"$group/$file"; done
        fi
        echo "$group"
    done </proc/self/cgroup
}

start() {
    local node=$1 outer inner="" group
    mkdir -p "$RUN/$node"/{log,kubelet,containerd,pod-logs,container-logs,tarbox}
    groups "$node" >"$RUN/$node/cgroups"
    [ -s "$RUN/$node/cgroups" ] || { echo "up.sh: no hierarchy of control groups version 1 can be used: the kubelet here is set up for those" >&2; exit 1; }
    (
        while read -r group; do echo "$BASHPID" >"$group/cgroup.procs"; done <"$RUN/$node/cgroups"
        exec setsid unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child --mount-proc --propagation slave \
            "$here/node.sh" "$node" </dev/null >"$RUN/$node/log/init.log" 2>&1
    ) &
    outer=$!
    for _ in $(seq 200); do
        inner=$(tr -d ' ' <"/proc/$outer/task/$outer/children" 2>/dev/null || true)
        [ -z "$inner" ] || break
        sleep 0.05
    done
    [ -n "$inner" ] || { echo "up.sh: node $node has not started" >&2; exit 1; }
    echo "$outer $inner" >"$RUN/$node/pid"
}

# A cable from the second node to the first one's switch (node.sh): it goes with the second node, the switch stays. No address of it is one of
# the machine's.
link() {
    local first second
    [ -e "$RUN/two/pid" ] || return 0
    read -r _ first <"$RUN/one/pid"
    read -r _ second <"$RUN/two/pid"
    for _ in $(seq 200); do
        # The one of a node that was lost a moment ago may still be there; the switch may not be.
        ! { nsenter -t "$first" -n ip link add two type veth peer name node0 netns "$second" && nsenter -t "$first" -n ip link set two master node0 up; } 2>/dev/null || return 0
        nsenter -t "$first" -n ip link delete two 2>/dev/null || true
        sleep 0.1
    done
    echo "up.sh: the nodes cannot be linked" >&2
    exit 1
}

# until_ready NODE
until_ready() {
    local outer
    read -r outer _ <"$RUN/$1/pid"
    for _ in $(seq 900); do
        [ ! -e "$RUN/$1/ready" ] || return 0
        kill -0 "$outer" 2>/dev/null || { echo "up.sh: node $1 has ended:" >&2; tail -n 20 "$RUN/$1/log/init.log" >&2; exit 1; }
        sleep 0.2
    done
    echo "up.sh: node $1 is not ready in time:" >&2
    tail -n 20 "$RUN/$1/log"/*.log >&2
    exit 1
}

for host in /var/lib/kubelet /var/lib/containerd /var/log/pods /var/log/containers /var/lib/tarbox /opt/cni; do mkdir -p "$host"; done
if [ $# -gt 0 ]; then
    [ ! -e "$RUN/$1/pid" ] || { echo "up.sh: node $1 is there: $RUN/$1/pid" >&2; exit 1; }
    start "$1"; link; until_ready "$1"
    exit
fi
[ ! -e "$RUN/one/pid" ] || { echo "up.sh: a cluster is there: $RUN; end it by down.sh" >&2; exit 1; }
"$here/certs.sh" 2>/dev/null
for node in $NODES; do start "$node"; done
link
for node in $NODES; do until_ready "$node"; done
