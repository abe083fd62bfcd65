#!/usr/bin/env bash
# `make run`: the whole way of a volume on a node, on SQLite. The agent stages and publishes a tenant as the kubelet asks it to; a source
# tree is unpacked into it and git works in it, while its mounter is killed, and is replaced by another build. Nothing may fail. Then it is
# unpublished, unstaged, staged again, and every checksum is compared. Leaves nothing behind.
set -euo pipefail

bin=$(realpath "${TARBOX_BIN_DIR:-$(dirname "$0")/../../target/release}")
project=$(realpath "$(dirname "$0")/../..")
# Only what this script names is to count.
for name in ${!TARBOX_@}; do unset "$name"; done

for tool in git tar sha256sum; do
    command -v "$tool" >/dev/null || { echo "run.sh: $tool is missing" >&2; exit 1; }
done
for program in tarbox tarbox-mount tarbox-keeper tarbox-agent; do
    [ -x "$bin/$program" ] || { echo "run.sh: $bin/$program is missing: run \`make build\`" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "run.sh: the agent mounts as root does: run as root, or with sudo" >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/tarbox-run.XXXXXX")
# Journals belong in memory.
run=$(mktemp -d /dev/shm/tarbox-run.XXXXXX 2>/dev/null || mktemp -d "$work/run.XXXXXX")
staging=$work/staging mnt=$work/volume agent_pid=
killer=
url=sqlite://$work/db
mkdir "$work/db"
export XDG_CONFIG_HOME=$work/config
# git must not depend on the user's own settings.
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
export GIT_AUTHOR_NAME=demo GIT_AUTHOR_EMAIL=demo@example.org GIT_COMMITTER_NAME=demo GIT_COMMITTER_EMAIL=demo@example.org

clean_up() {
    status=$?
    cd /
    [ $status -eq 0 ] || { echo "run.sh: failed" >&2; tail -n 20 "$work/agent.log" "$work"/state/logs/* 2>/dev/null >&2 || true; }
    if [ -n "$killer" ]; then kill "$killer" 2>/dev/null || true; wait "$killer" 2>/dev/null || true; fi
    for point in "$mnt" "$staging"; do
        while grep -qF " $point " /proc/self/mountinfo; do umount -l "$point" || break; done
    done
    if [ -n "$agent_pid" ]; then kill "$agent_pid" 2>/dev/null || true; wait "$agent_pid" 2>/dev/null || true; fi
    if [ $status -ne 0 ]; then
        # The keeper is ours: only it was told this socket.
        for directory in /proc/[0-9]*; do
            tr '\0' ' ' <"$directory/cmdline" 2>/dev/null | grep -qF -- "$work" && kill -9 "${directory#/proc/}" 2>/dev/null || true
        done
    fi
    umount "$run/sentry" 2>/dev/null || true
    rm -rf "$work" "$run"
    exit $status
}
trap clean_up EXIT

say() { printf '\n%s\n' "$*"; }
now() { date +%s%N; }
# timed "what" command…: runs it and prints how long it took.
timed() {
    local what=$1 begin end
    shift
    begin=$(now)
    "$@"
    end=$(now)
    took=$(((end - begin) / 1000000))
    printf '  %-50s %6d ms\n' "$what" "$took"
}

say "Collecting a source tree"
# The sources of the crates this project is built from, and the project itself.
registry=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -mindepth 1 -maxdepth 1 -type d 2>/dev/null | sed -n 1p)
(cd "$project" && find . -name target -prune -o -name .git -prune -o -type f -print) | sed 's,^\./,,' >"$work/project.list"
tar -C "$project" -cf "$work/tree.tar" --transform 's,^,project/,' -T "$work/project.list"
if [ -n "$registry" ]; then
    (cd "$registry" && find . -type f -o -type l) | sort | sed -n '1,12000s,^\./,,p' >"$work/crates.list"
    tar -C "$registry" -rf "$work/tree.tar" --transform 's,^,crates/,' -T "$work/crates.list"
fi
mkdir "$work/original"
tar -C "$work/original" -xf "$work/tree.tar"
(cd "$work/original" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"$work/sums"
files=$(wc -l <"$work/sums")
mib=$(($(stat -c %s "$work/tree.tar") >> 20))
echo "  $files files, $mib MiB"

cp "$bin/tarbox-mount" "$work/tarbox-mount"
start_agent() {
    "$bin/tarbox-agent" serve --endpoint "unix://$work/csi.sock" --node-id demo --state-dir "$work/state" --run-dir "$run" \
        --database-url "$url" --mounter "$work/tarbox-mount" >>"$work/agent.log" 2>&1 &
    agent_pid=$!
    for _ in $(seq 200); do "$bin/tarbox-agent" csi --endpoint "$work/csi.sock" probe >/dev/null 2>&1 && return; sleep 0.05; done
    echo "run.sh: the agent does not answer" >&2
    return 1
}
csi() { "$bin/tarbox-agent" csi --endpoint "$work/csi.sock" "$1" --volume-id "$volume" --staging "$staging" --target "$mnt" >/dev/null; }
ask() { "$bin/tarbox-agent" "$@" --state-dir "$work/state"; }
mounter() { ask ps -o json | sed -n 's/^ *"pid": \([0-9]*\),$/\1/p'; }
# The mounter, where it serves: one that is killed again and again while it starts is taken for a broken build.
serving() { ask ps | awk '$2 == "serving" && $3 != "-" { print $3 }'; }
# Kills the mounter every two seconds until it is told to stop.
kill_mounters() {
    local kills=0 pid
    while [ ! -e "$work/enough" ]; do
        pid=$(serving) && [ -n "$pid" ] && kill -9 "$pid" 2>/dev/null && kills=$((kills + 1))
        sleep 2
    done
    echo "$kills" >"$work/kills"
}
unpack() { tar -C "$mnt" -xf "$work/tree.tar"; }
verify() { (cd "$mnt" && sha256sum --quiet -c "$work/sums"); }
compare() { diff -r --no-dereference -x .git "$work/original" "$mnt"; }

say "A node: agent, keeper, and one mounter for each staged volume"
volume=$("$bin/tarbox" tenant create demo --database-url "$url" --state-dir "$work/cli" -o json | sed -n 's/^ *"id": "\(.*\)",$/\1/p')
timed "start the agent" start_agent
timed "NodeStageVolume (mount, start the mounter)" csi stage
timed "NodePublishVolume" csi publish

say "Work, with the mounter killed (-9) every two seconds"
kill_mounters &
killer=$!
timed "unpack" unpack
unpacked_ms=$took
cd "$mnt"
timed "git init" git init -q -b main .
# Its own collection would run in the background, beside what is measured.
git config gc.auto 0
timed "git add" git add -A
timed "git commit" git commit -qm "Everything"
touch "$work/enough"
wait "$killer"
killer=
timed "git status" sh -ec 'test -z "$(git status --porcelain)"'
echo "  the mounter was killed $(cat "$work/kills") times; nothing failed"

say "The mounter replaced by another build, under the work"
printf 'another build' >>"$work/tarbox-mount"
ask upgrade --dry-run
ask upgrade >"$work/upgraded" &
upgrade=$!
timed "git switch, change, commit, merge" sh -ec 'git switch -qc other; echo more >>project/Cargo.toml; git commit -qam "A change"; git switch -q main; git merge -q --no-edit other'
timed "git fsck" git fsck --no-progress --strict
wait "$upgrade"
cat "$work/upgraded"

say "The agent killed and started again: it takes up what is there"
kill -9 "$agent_pid"; wait "$agent_pid" 2>/dev/null || true
timed "git gc, without an agent" git gc -q
timed "start the agent" start_agent
timed "git switch back" git switch -q --detach HEAD~1
head=$(git rev-parse main)
cd /
ask ps

say "Away and back"
timed "NodeUnpublishVolume (everything is committed)" csi unpublish
timed "NodeUnstageVolume" csi unstage
# Nobody is in the volume any more: were it kept from going, unstaging would wait for it and then detach it.
[ "$took" -lt 5000 ] || { echo "run.sh: somebody kept the volume in use" >&2; cat "$work/agent.log" >&2; exit 1; }
[ -z "$(mounter)" ] || { echo "run.sh: a mounter is left" >&2; exit 1; }
timed "NodeStageVolume" csi stage
timed "NodePublishVolume" csi publish
timed "verify the checksums of all files (cold)" verify
timed "verify the checksums of all files (warm)" verify
timed "diff -r with the original" compare
timed "git fsck" git -C "$mnt" fsck --no-progress --strict
[ "$(git -C "$mnt" rev-parse main)" = "$head" ] || { echo "run.sh: git's branch moved" >&2; exit 1; }
timed "NodeUnpublishVolume" csi unpublish
timed "NodeUnstageVolume" csi unstage
timed "tarbox fsck (every hash in the database)" "$bin/tarbox" fsck demo --database-url "$url" --state-dir "$work/cli"

say "Result"
echo "  $files files unpacked ($((files * 1000 / (unpacked_ms + 1))) files/s) and committed to git while the mounter was killed $(cat "$work/kills") times,"
echo "  replaced once, and the agent killed: nothing failed, all checksums are the same. The database takes $(du -sm "$work/db" | cut -f1) MiB."
