#!/usr/bin/env bash
# The launcher `host`, on a machine with systemd: the agent is a service; keeper and mounters stand in a scope of their own, and go on when
# the service is stopped. Runs in a virtual machine as a suite does, and answers as one. Usage: host.sh [--list …]; TESTS_BIN_DIR is set.
# LAUNCHER=child shows that it can fail: that keeper ends with the service.
set -uo pipefail
service=tarbox-agent.service
steps="the_agent_starts_as_a_service a_volume_is_staged_and_written keeper_and_mounter_stand_in_a_scope_of_their_own
    stopping_the_service_disturbs_nobody a_mounter_that_dies_meanwhile_is_restarted the_service_takes_up_what_lives all_is_unstaged_and_nothing_left"
if [ "${1:-}" = --list ]; then
    for step in $steps; do echo "$step: test"; done
    exit
fi

bin=$TESTS_BIN_DIR
work=$(mktemp -d /var/tmp/tarbox-host.XXXXXX)
socket=$work/csi.sock database=sqlite://$work/db staging=$work/staging target=$work/target
mkdir "$work/db"
writer=

# shellcheck disable=SC2317 # The trap calls it.
clean_up() {
    [ -z "$writer" ] || kill "$writer" 2>/dev/null
    systemctl stop $service 2>/dev/null
    # Only what was told this directory is ours; the keeper first, so that it restarts nobody.
    for name in tarbox-keeper tarbox-mount; do
        for pid in $(pgrep -f "$name.*$work"); do kill -9 "$pid" 2>/dev/null; done
    done
    for point in "$target" "$staging"; do
        while grep -qF " $point " /proc/self/mountinfo; do umount -l "$point" || break; done
    done
    rm -rf "$work" /run/systemd/system/$service
}
trap clean_up EXIT

csi() { timeout 120 "$bin/tarbox-agent" csi --endpoint "$socket" "$@"; }
# until_true WHAT COMMAND…: asks again until it holds, for a minute and a half.
until_true() {
    local what=$1 end=$((SECONDS + 90))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || { echo "waited in vain for: $what"; return 1; }
        sleep 0.1
    done
}
answers() { csi probe 2>/dev/null | grep -q true; }
# serving FIELD: of the only tenant, once it serves.
serving() {
    timeout 60 "$bin/tarbox-agent" ps -o json --state-dir "$work/state" | python3 -c '
import json, sys
[tenant] = json.load(sys.stdin)["tenants"]
assert tenant["phase"] == "serving", tenant
print(tenant[sys.argv[1]])' "$1" 2>/dev/null
}
serves() { mounter=$(serving pid); }
group_of() { sed -n 's/^0:://p' "/proc/$1/cgroup"; }
lives() { [ -d "/proc/$1" ] && ! grep -q '^State:.Z' "/proc/$1/status"; }
mounts() { grep -cE " ($staging|$target) .* fuse\.tarbox " /proc/self/mountinfo; }
device() { awk -v at="$staging" '$5 == at { device = $3 } END { print device }' /proc/self/mountinfo; }
has_no_mounter() { ! pgrep -f "tarbox-mount.*$work" >/dev/null; }
written() { wc -l <"$work/acknowledged"; }
more_is_written() { [ "$(written)" -gt "$1" ]; }
goes_on() { until_true "writes that are answered" more_is_written $(($(written) + 20)) && lives "$writer" && [ ! -s "$work/refused" ]; }

# Appends numbers, each with fsync, and notes outside of the volume what was acknowledged; ends at the first refusal.
write_on() {
    python3 -u -c '
import os, sys, itertools
volume, acknowledged, refused = sys.argv[1:]
try:
    file = os.open(volume, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with open(acknowledged, "w") as notes:
        for number in itertools.count():
            os.write(file, b"%08d\n" % number)
            if number % 10 == 0:
                os.fsync(file)
            notes.write("%d\n" % number)
            notes.flush()
except OSError as error:
    open(refused, "w").write(str(error))
    raise
' "$target/log" "$work/acknowledged" "$work/refused" &
    writer=$!
}

the_agent_starts_as_a_service() {
    cat >/run/systemd/system/$service <<UNIT
[Unit]
Description=Tarbox agent
Requires=dbus.socket
After=dbus.socket

[Service]
ExecStart=$bin/tarbox-agent serve --launcher ${LAUNCHER:-host} --node-id vm --endpoint unix://$socket --database-url $database --state-dir $work/state --run-dir $work/run --mounter $bin/tarbox-mount
Delegate=yes
TimeoutStopSec=30
UNIT
    systemctl daemon-reload && systemctl start $service && until_true "the agent's answer" answers
}

a_volume_is_staged_and_written() {
    id=$("$bin/tarbox" tenant create work -o json --database-url "$database" --state-dir "$work/cli" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])') || return
    csi stage --volume-id "$id" --staging "$staging" --target "$target" || return
    csi publish --volume-id "$id" --staging "$staging" --target "$target" || return
    until_true "a mounter that serves" serves || return
    keeper=$(awk '/^PPid:/ { print $2 }' "/proc/$mounter/status")
    fuse=$(device)
    : >"$work/acknowledged"
    write_on
    goes_on
}

keeper_and_mounter_stand_in_a_scope_of_their_own() {
    local agent
    agent=$(systemctl show --property=MainPID --value $service)
    echo "agent $agent in $(group_of "$agent"), keeper $keeper in $(group_of "$keeper"), mounter $mounter in $(group_of "$mounter")"
    grep -q tarbox-keeper "/proc/$keeper/comm" || return
    case $(group_of "$keeper")/ in *.scope/*) ;; *) return 1 ;; esac
    case $(group_of "$mounter")/ in *.scope/*) ;; *) return 1 ;; esac
    case $(group_of "$keeper")/ in */$service/*) return 1 ;; esac
}

stopping_the_service_disturbs_nobody() {
    systemctl stop $service || return
    [ "$(systemctl show --property=MainPID --value $service)" = 0 ] || return
    if csi probe >/dev/null 2>&1; then echo "the agent still answers"; return 1; fi
    lives "$keeper" && lives "$mounter" && goes_on && echo "after the stop $(written) writes, none refused"
}

a_mounter_that_dies_meanwhile_is_restarted() {
    local before=$mounter
    kill -9 "$before" && goes_on || return
    [ "$(pgrep -P "$keeper" | grep -cvx "$before")" -ge 1 ]
}

the_service_takes_up_what_lives() {
    local before
    before=$(pgrep -P "$keeper")
    systemctl start $service && until_true "the agent's answer" answers && until_true "a mounter that serves" serves || return
    echo "children of the keeper before: $before, serving: $mounter"
    lives "$keeper" && [ "$(mounts)" = 2 ] && [ "$(device)" = "$fuse" ] && echo "$before" | grep -qx "$mounter" && goes_on
}

all_is_unstaged_and_nothing_left() {
    kill "$writer"
    wait "$writer" 2>/dev/null
    writer=
    local count
    count=$(written)
    # One write may have been done and not yet noted.
    python3 -c '
import sys
lines = open(sys.argv[1]).read().split()
assert len(lines) - int(sys.argv[2]) in (0, 1), (len(lines), sys.argv[2])
assert lines == ["%08d" % number for number in range(len(lines))], "lost or doubled"
' "$target/log" "$count" || return
    csi unpublish --volume-id "$id" --staging "$staging" --target "$target" || return
    csi unstage --volume-id "$id" --staging "$staging" --target "$target" || return
    [ "$(mounts)" = 0 ] || { echo "something is still mounted"; return 1; }
    until_true "the mounters to be gone" has_no_mounter || return
    "$bin/tarbox" fsck work --database-url "$database" --state-dir "$work/cli"
}

passed=0 failed=0
echo "running $(echo "$steps" | wc -w) tests"
for step in $steps; do
    # Each goes on from the one before: after a failure nothing is known.
    if [ $failed = 0 ] && $step; then
        passed=$((passed + 1))
        echo "test $step ... ok"
    else
        [ $failed != 0 ] || { systemctl status --no-pager --full $service; cat "$work/refused" "$work"/state/*.log; journalctl --no-pager -u $service; }
        failed=$((failed + 1))
        echo "test $step ... FAILED"
    fi
done
[ $failed = 0 ] && outcome=ok || outcome=FAILED
echo "test result: $outcome. $passed passed; $failed failed; 0 ignored; 0 measured; 0 filtered out"
[ $failed = 0 ]
