# shellcheck shell=bash
# shellcheck disable=SC2154 # env.sh says where `here` is.
# The last case: nothing is left of the product.
CASES+=(
    uninstalling_is_refused_while_a_volume_is_used_and_leaves_nothing_later
)

uninstalling_is_refused_while_a_volume_is_used_and_leaves_nothing_later() {
    claim data 64Mi
    pod user data
    ready user
    shell user 'echo here >/data/file'
    if helm_in uninstall "$RELEASE" --wait --timeout 3m >/dev/null 2>&1; then fail "helm uninstalled what is in use"; fi
    expect here inside user cat /data/file
    k -n "$SYSTEM" rollout status "$AGENTS" --timeout=60s >/dev/null
    gone user
    k delete pvc data --timeout=60s >/dev/null
    until_true 180 "the end of all volumes" no_volumes
    helm_in uninstall "$RELEASE" --wait --timeout 3m >/dev/null || fail "helm does not uninstall what nobody uses"
    local node left
    for node in $NODES; do
        # Where the node's own are: it sees those of the machine as well.
        left=$(on "$node" cat /proc/self/mountinfo | awk '$5 ~ "^/(var/lib|run)/" && /fuse\.tarbox|tarbox-sentry|tarbox\.csi\.io/')
        [ -z "$left" ] || fail "mounts are left on $node: $left"
        left=$(on "$node" pgrep -af '^(\S*/)?tarbox' || true)
        [ -z "$left" ] || fail "processes are left on $node: $left"
        left=$(on "$node" find /sys/fs/cgroup -iname '*tarbox*' || true)
        [ -z "$left" ] || fail "control groups are left on $node: $left"
        left=$(on "$node" find /var/lib/kubelet/plugins /var/lib/kubelet/plugins_registry -name '*tarbox*' -type s || true)
        [ -z "$left" ] || fail "sockets are left on $node: $left"
    done
}
no_volumes() { [ -z "$(k get pv -o json | jq -r --arg driver "$DRIVER" '.items[] | select(.spec.csi.driver == $driver) | .metadata.name')" ]; }
