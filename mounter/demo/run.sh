#!/usr/bin/env bash
# `make run`: a tenant on SQLite is mounted, a real source tree unpacked into it, git works in it; then it is unmounted,
# mounted again, and every checksum compared. Leaves nothing behind.
set -euo pipefail

bin=$(realpath "${TARBOX_BIN_DIR:-$(dirname "$0")/../../target/release}")
project=$(realpath "$(dirname "$0")/../..")
# Only what this script names is to count.
for name in ${!TARBOX_@}; do unset "$name"; done

for tool in git tar sha256sum; do
    command -v "$tool" >/dev/null || { echo "run.sh: $tool is missing" >&2; exit 1; }
done
for program in tarbox tarbox-mount; do
    [ -x "$bin/$program" ] || { echo "run.sh: $bin/$program is missing: run \`make build\`" >&2; exit 1; }
done

work=$(mktemp -d "${TMPDIR:-/tmp}/tarbox-run.XXXXXX")
mnt=$work/mnt
mkdir "$mnt" "$work/state"
export TARBOX_DATABASE_URL=sqlite://$work/db TARBOX_STATE_DIR=$work/state
export XDG_CONFIG_HOME=$work/config
# git must not depend on the user's own settings.
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
export GIT_AUTHOR_NAME=demo GIT_AUTHOR_EMAIL=demo@example.org GIT_COMMITTER_NAME=demo GIT_COMMITTER_EMAIL=demo@example.org

clean_up() {
    status=$?
    cd /
    if grep -qF " $mnt " /proc/self/mountinfo; then
        "$bin/tarbox" umount --lazy "$mnt" >/dev/null 2>&1 || umount -l "$mnt" 2>/dev/null || fusermount3 -uz "$mnt" || true
    fi
    [ $status -eq 0 ] || { echo "run.sh: failed" >&2; tail -n 20 "$work"/state/log.* 2>/dev/null >&2 || true; }
    rm -rf "$work"
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
    printf '  %-46s %6d ms\n' "$what" "$took"
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

mount_it() { "$bin/tarbox-mount" --tenant demo --daemon "$mnt" >"$work/said"; }
unmount_it() { "$bin/tarbox" umount "$mnt" >/dev/null; }
unpack() { tar -C "$mnt" -xf "$work/tree.tar"; }
verify() { (cd "$mnt" && sha256sum --quiet -c "$work/sums"); }
compare() { diff -r --no-dereference -x .git "$work/original" "$mnt"; }

say "In a tenant on SQLite"
timed "mount" mount_it
echo "    $(cat "$work/said")"
timed "unpack" unpack
unpacked_ms=$took
cd "$mnt"
timed "git init" git init -q -b main .
# Its own collection would run in the background, beside what is measured.
git config gc.auto 0
timed "git add" git add -A
timed "git commit" git commit -qm "Everything"
timed "git branch, switch, change, commit" sh -ec 'git switch -qc other; echo more >>project/Cargo.toml; git commit -qam "A change"; git switch -q main'
timed "git status, 1st" sh -ec 'test -z "$(git status --porcelain)"'
timed "git status, 2nd" sh -ec 'test -z "$(git status --porcelain)"'
timed "git merge" git merge -q --no-edit other
timed "git gc" git gc -q
timed "git fsck" git fsck --no-progress --strict
timed "git switch back" git switch -q --detach HEAD~1
head=$(git rev-parse main)
cd /
timed "unmount (everything is committed)" unmount_it

say "Mounted again"
timed "mount" mount_it
timed "verify the checksums of all files (cold)" verify
timed "verify the checksums of all files (warm)" verify
timed "diff -r with the original" compare
timed "git fsck" git -C "$mnt" fsck --no-progress --strict
[ "$(git -C "$mnt" rev-parse main)" = "$head" ] || { echo "run.sh: git's branch moved" >&2; exit 1; }
"$bin/tarbox" usage
timed "unmount" unmount_it
timed "tarbox fsck (every hash in the database)" "$bin/tarbox" fsck demo

say "Result"
echo "  $files files unpacked ($((files * 1000 / (unpacked_ms + 1))) files/s), committed to git, unmounted, mounted again:"
echo "  all checksums are the same. The database takes $(du -sm "$work/db" | cut -f1) MiB."
