#!/usr/bin/env bash
# What a machine is handed: runs each suite as a service of its own, with a control group delegated to it, as a node's agent has one.
# Usage: suites.sh IN OUT. Reads IN/suites (a line each: name, path of the test binary) and IN/settings, leaves a log and a result for each.
set -uo pipefail
in=$1 out=$2
# Programs lie where the tests were built to look for them.
cp -a "$in/root/." / 2>/dev/null
# shellcheck source=/dev/null
. "$in/settings"
{ uname -r; systemctl --version | head -n 1; grep -H . /sys/fs/cgroup/cgroup.controllers; } >"$out/machine"

# Asked of the kernel itself, once a suite has taken too long: whoever reads of a process in /proc may come to wait for what that waits for.
tell_who_hangs() {
    echo w >/proc/sysrq-trigger
    dmesg | tail -n 300
}

while read -r name path; do
    echo "== $name on $(uname -r)"
    # Compared with how many have passed: one that is left out is not to look like one that passed.
    # shellcheck disable=SC2086 # Words.
    listed=$("$path" --list --format terse $FILTER | grep -c ': test$')
    (sleep "$SUITE_LIMIT"; tell_who_hangs | tee "$out/$name.hangs") &
    watch=$!
    # Not captured: of a suite that does not come to its end, it would be lost.
    # shellcheck disable=SC2086
    systemd-run --quiet --wait --pipe --unit="suite-$name" --property=Delegate=yes --property=RuntimeMaxSec="$((SUITE_LIMIT + 20))" \
        --property=TimeoutStopSec=20 --setenv=HOME=/root --setenv=RUST_BACKTRACE=1 --setenv=TESTS_BIN_DIR="$BIN_DIR" \
        --setenv=TESTS_KILLS="$KILLS" --setenv=TESTS_PATIENCE="$PATIENCE" --setenv=LAUNCHER="$LAUNCHER" --working-directory=/ \
        "$path" --nocapture --test-threads "$THREADS" $FILTER </dev/null 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
    kill "$watch" 2>/dev/null
    printf '%s %s %s\n' "$name" "$status" "$listed" >>"$out/results"
    dmesg >"$out/dmesg"
done <"$in/suites"
