# shellcheck shell=bash
# shellcheck disable=SC2154 # env.sh says where `here` is.
# What the product is there for: whatever of it is killed, replaced, upgraded or taken away, no call of an application in a pod fails, what
# it has open stays open, and the pod stays the same.
CASES+=(
    the_mounter_is_killed_under_load
    the_agents_pod_is_deleted_under_load
    the_agents_are_rolled_out_anew_under_load_and_a_mounter_dies_meanwhile
    mounters_die_while_their_agent_is_away
    the_runtimes_pod_is_deleted_under_load
    helm_upgrades_to_the_next_release_and_rolls_back_under_load
    volumes_are_made_while_the_leading_controllers_are_killed
    the_database_is_restarted_under_load
    kubelet_and_containerd_are_restarted_under_load
    a_kubelet_that_is_killed_while_pods_end_leaves_nothing_staged
    a_state_directory_that_nothing_may_be_executed_from_fails_nothing
)

the_mounter_is_killed_under_load() {
    load_begins work
    local volume pid
    volume=$(volume_of work)
    for _ in 1 2 3; do
        until_true 60 "a mounter that serves" serves "$WORKER" "$volume"
        pid=$(mounter "$WORKER" "$volume")
        on "$WORKER" kill -9 "$pid"
        until_true 60 "another mounter" serves_another "$WORKER" "$volume" "$pid"
        load_goes_on work
    done
    load_ends work
}

the_agents_pod_is_deleted_under_load() {
    load_begins work
    local volume pid old
    volume=$(volume_of work)
    pid=$(mounter "$WORKER" "$volume")
    old=$(pod_of agent "$WORKER")
    k -n "$SYSTEM" delete pod "$old" --wait >/dev/null
    load_goes_on work
    until_true 90 "another agent" another_pod agent "$WORKER" "$old"
    until_true 60 "an agent that answers" serves "$WORKER" "$volume"
    expect "$pid" mounter "$WORKER" "$volume"
    load_goes_on work
    load_ends work
}
another_pod() { local name; name=$(pod_of "$1" "$2") && [ -n "$name" ] && [ "$name" != "$3" ] && k -n "$SYSTEM" wait --for=condition=Ready "pod/$name" --timeout=1s; }

the_agents_are_rolled_out_anew_under_load_and_a_mounter_dies_meanwhile() {
    load_begins work
    local volume pid
    volume=$(volume_of work)
    pid=$(mounter "$WORKER" "$volume")
    k -n "$SYSTEM" rollout restart "$AGENTS" >/dev/null
    on "$WORKER" kill -9 "$pid"
    load_goes_on work
    rolled_out "$AGENTS"
    until_true 60 "an agent that knows the mounter" serves_another "$WORKER" "$volume" "$pid"
    load_goes_on work
    load_ends work
}

mounters_die_while_their_agent_is_away() {
    load_begins work
    local volume pid
    volume=$(volume_of work)
    pid=$(mounter "$WORKER" "$volume")
    # An image that does not arrive.
    k -n "$SYSTEM" set image "$AGENTS" agent=cluster.local/never-arrives:1 >/dev/null
    until_true 60 "an agent that cannot start" no_agent_runs "$WORKER"
    for _ in 1 2 3; do
        on "$WORKER" pgrep -f "^tarbox-mount.*$volume" | while read -r pid; do on "$WORKER" kill -9 "$pid" || true; done
        load_goes_on work
    done
    k -n "$SYSTEM" rollout undo "$AGENTS" >/dev/null
    rolled_out "$AGENTS"
    until_true 60 "an agent that knows the mounter" serves "$WORKER" "$volume"
    load_goes_on work
    load_ends work
}
no_agent_runs() {
    local name
    name=$(pod_of agent "$1") && [ -n "$name" ] &&
        [ "$(k -n "$SYSTEM" get pod "$name" -o jsonpath='{.status.containerStatuses[?(@.name=="agent")].state.running}')" = "" ]
}

the_runtimes_pod_is_deleted_under_load() {
    load_begins work
    local volume old pid
    volume=$(volume_of work)
    old=$(pod_of runtime "$WORKER")
    pid=$(mounter "$WORKER" "$volume")
    k -n "$SYSTEM" delete pod "$old" --wait >/dev/null
    until_true 90 "another runtime" another_pod runtime "$WORKER" "$old"
    until_true 90 "a mounter that serves" serves_another "$WORKER" "$volume" "$pid"
    load_goes_on work
    load_ends work
}

helm_upgrades_to_the_next_release_and_rolls_back_under_load() {
    load_begins work
    local volume before after
    volume=$(volume_of work)
    before=$(build_of "$volume")
    helm_while_a_mounter_dies "$volume" upgrade "$RELEASE" "$CHART" --reuse-values --set-string image.tag=2
    until_true 120 "a mounter of the next release" runs_another_build "$volume" "$before"
    load_goes_on work
    after=$(build_of "$volume")
    on "$WORKER" kill -9 "$(mounter "$WORKER" "$volume")"
    load_goes_on work
    until_true 60 "a mounter that serves" serves "$WORKER" "$volume"
    expect "$after" build_of "$volume"
    helm_while_a_mounter_dies "$volume" rollback "$RELEASE"
    until_true 120 "a mounter of the earlier release" runs_another_build "$volume" "$after"
    expect "$before" build_of "$volume"
    load_goes_on work
    load_ends work
}
# helm_while_a_mounter_dies VOLUME COMMAND…
helm_while_a_mounter_dies() {
    local pid helm
    pid=$(mounter "$WORKER" "$1")
    helm_in "${@:2}" --wait --timeout 5m >/dev/null &
    helm=$!
    on "$WORKER" kill -9 "$pid"
    wait "$helm" || fail "helm $2"
}
build_of() { agent "$WORKER" ps -o json | jq -er --arg id "$1" '.tenants[] | select(.tenant_id == $id and .phase == "serving") | .build'; }
runs_another_build() { local build; build=$(build_of "$1") && [ "$build" != "$2" ]; }

volumes_are_made_while_the_leading_controllers_are_killed() {
    local leader number
    for number in $(seq 8); do claim "c$number" 64Mi; pod "p$number" "c$number"; done
    for _ in 1 2; do
        leader=$(leader)
        [ -n "$leader" ] || fail "nobody leads: $(k -n "$SYSTEM" get leases)"
        step "killing the leading controller $leader"
        k -n "$SYSTEM" delete pod -l app.kubernetes.io/component=controller --field-selector="metadata.name=$(controller_named "$leader")" --force --grace-period=0 >/dev/null 2>&1
        until_true 60 "another leader" leads_another "$leader"
    done
    for number in $(seq 8); do ready "p$number"; done
    expect 8 shell_count_of_tenants
    for number in $(seq 8); do shell "p$number" 'echo x >/data/x'; done
}
shell_count_of_tenants() { tenants | grep -c "$CASE_NAMESPACE"; }
# The provisioner's identity is its host's name and more, which is the pod's.
controller_named() { k -n "$SYSTEM" get pods -l app.kubernetes.io/component=controller -o json | jq -r --arg who "$1" '.items[].metadata.name as $name | select($who | contains($name)) | $name'; }
# Of the provisioners.
leader() { k -n "$SYSTEM" get lease tarbox-csi-io -o jsonpath='{.spec.holderIdentity}'; }
leads_another() {
    local now
    now=$(leader)
    [ -n "$now" ] && [ "$now" != "$1" ]
}

the_database_is_restarted_under_load() {
    load_begins work
    local before
    before=$(restart_counts)
    k -n database delete pod -l app=postgres --wait >/dev/null
    k -n database rollout status statefulset/postgres --timeout=120s >/dev/null
    load_goes_on work
    # Long enough for every probe to have failed, were it to fail for this.
    k -n database scale statefulset/postgres --replicas=0 >/dev/null
    sleep 60
    k -n database scale statefulset/postgres --replicas=1 >/dev/null
    k -n database rollout status statefulset/postgres --timeout=120s >/dev/null
    load_goes_on work
    load_ends work
    expect "$before" restart_counts
}
# Of every container of the product.
restart_counts() { k -n "$SYSTEM" get pods -o json | jq -r '[.items[] | .metadata.name as $pod | .status.containerStatuses[]? | "\($pod)/\(.name) \(.restartCount)"] | sort | join(", ")'; }

kubelet_and_containerd_are_restarted_under_load() {
    load_begins work
    local daemon
    for daemon in kubelet containerd; do
        restart "$daemon"
        until_true 90 "$daemon to answer" inside work true
        load_goes_on work
    done
    # Volumes come and go as before.
    claim later 64Mi
    pod later later
    ready later
    load_ends work
}
# restart DAEMON: kills it; the node starts another one.
restart() {
    local old
    old=$(on "$WORKER" cat "/run/cluster/$1.pid")
    on "$WORKER" kill -9 "$old"
    until_true 60 "another $1" another_process "$WORKER" "$1" "$old"
}
another_process() { local pid; pid=$(on "$1" cat "/run/cluster/$2.pid") && [ "$pid" != "$3" ] && on "$1" kill -0 "$pid"; }

a_kubelet_that_is_killed_while_pods_end_leaves_nothing_staged() {
    claim data 64Mi
    local volume after
    # Between Unpublish and Unstage, before, and behind.
    for after in 0 0.4 0.8 1.2 1.6 2; do
        pod user data
        ready user
        volume=$(volume_of data)
        shell user "echo $after >>/data/log"
        k delete pod user --wait=false >/dev/null
        sleep "$after"
        restart kubelet
        k wait --for=delete pod/user --timeout=120s >/dev/null || fail "the pod does not end"
        until_true 180 "an unstaged volume" is_not_staged "$volume"
    done
    pod user data
    ready user
    expect "0 0.4 0.8 1.2 1.6 2 " shell user 'tr "\n" " " </data/log'
}
is_not_staged() { agent "$WORKER" ps -o json | jq -e --arg id "$1" '[.tenants[] | select(.tenant_id == $id)] == []'; }

# As hardened systems mount /var.
a_state_directory_that_nothing_may_be_executed_from_fails_nothing() {
    load_begins work
    local volume old pid
    volume=$(volume_of work)
    old=$(pod_of agent "$WORKER")
    on "$WORKER" mount -o remount,bind,noexec /var/lib/tarbox
    # Its successor sees the directory as it is now.
    k -n "$SYSTEM" delete pod "$old" --wait >/dev/null
    until_true 90 "another agent" another_pod agent "$WORKER" "$old"
    until_true 60 "an agent that answers" serves "$WORKER" "$volume"
    for _ in 1 2; do
        pid=$(mounter "$WORKER" "$volume")
        on "$WORKER" kill -9 "$pid"
        until_true 60 "another mounter" serves_another "$WORKER" "$volume" "$pid"
    done
    load_goes_on work
    claim later 64Mi
    pod later later
    ready later
    on "$WORKER" mount -o remount,bind,exec /var/lib/tarbox
    load_ends work
}
