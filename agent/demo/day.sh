#!/usr/bin/env bash
# `make demo`: an AI agent's day on a workstation, on SQLite. A checkpoint, a tool that breaks the workspace, what it has done, back again; three
# clones in which three attempts are made at once, while a mounter is killed. Leaves nothing behind.
set -euo pipefail

bin=$(realpath "${TARBOX_BIN_DIR:-$(dirname "$0")/../../target/release}")
for name in ${!TARBOX_@}; do unset "$name"; done
for tool in git jq setpriv pgrep; do
    command -v "$tool" >/dev/null || { echo "day.sh: $tool is missing" >&2; exit 1; }
done
for program in tarbox tarbox-mount; do
    [ -x "$bin/$program" ] || { echo "day.sh: $bin/$program is missing: run \`make build\`" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "day.sh: it works as several users: run as root, or with sudo" >&2; exit 1; }
export PATH=$bin:$PATH

day=$(mktemp -d "${TMPDIR:-/tmp}/tarbox-day.XXXXXX")
chmod 755 "$day"
state=$(mktemp -d /dev/shm/tarbox-day.XXXXXX 2>/dev/null || mktemp -d "$day/state.XXXXXX")
mkdir "$day/db" "$day/work" "$day/try-1" "$day/try-2" "$day/try-3"
export TARBOX_DATABASE_URL=sqlite://$day/db TARBOX_STATE_DIR=$state XDG_CONFIG_HOME=$day/config
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
export GIT_AUTHOR_NAME=demo GIT_AUTHOR_EMAIL=demo@example.org GIT_COMMITTER_NAME=demo GIT_COMMITTER_EMAIL=demo@example.org

clean_up() {
    status=$?
    cd /
    [ $status -eq 0 ] || echo "day.sh: failed" >&2
    for point in "$day"/work "$day"/try-*; do
        if grep -qF " $point " /proc/self/mountinfo; then tarbox umount "$point" >/dev/null 2>&1 || umount -l "$point" || true; fi
    done
    rm -rf "$day" "$state"
    exit $status
}
trap clean_up EXIT

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ %s\n' "${*//$day\//}"; "$@"; }
fail() { echo "day.sh: $*" >&2; exit 1; }
sums() { (cd "$1" && find . -path ./.git -prune -o -type f -print0 | sort -z | xargs -0 sha256sum); }

say "In the morning: a workspace with a project in it"
run tarbox-mount --tenant work --daemon "$day/work"
cd "$day/work"
git init -q .
for n in $(seq 1 200); do
    mkdir -p "src/part$((n % 10))"
    printf 'fn part_%s() -> u32 {\n    %s\n}\n' "$n" "$n" >"src/part$((n % 10))/f$n.rs"
done
printf '# The project\n' >README
git add -A && git commit -qm "A project" && git log --oneline
cd /
sums "$day/work" >"$day/morning"

say "Before a tool is let loose on it, a checkpoint"
run tarbox checkpoint create work before-tool --tag good

say "The tool is thorough"
cd "$day/work"
sed -i 's/u32/u64/' src/part1/*.rs
rm -r src/part2
mv README readme.txt
head -c 3000000 /dev/urandom >core.dump
chown -R 1000 src/part3
cd /

say "What has it done?"
run tarbox checkpoint diff work before-tool >"$day/diff"
head -n 12 "$day/diff"; echo "… $(($(wc -l <"$day/diff") - 1)) differences"
changes=$(tarbox checkpoint diff work before-tool -o json)
count() { jq "[.[] | select(.change == \"$1\" and .kind == \"file\")] | length" <<<"$changes"; }
[ "$(count changed)" -ge 40 ] && [ "$(count removed)" -eq 20 ] && [ "$(count renamed)" -eq 1 ] && [ "$(count added)" -eq 1 ] ||
    fail "the comparison does not say what was done: changed $(count changed), removed $(count removed), renamed $(count renamed), added $(count added)"

say "Back again, under the mount; what the tool did is kept as well"
run tarbox checkpoint restore work before-tool
sums "$day/work" | cmp - "$day/morning" || fail "the workspace is not what it was"
git -C "$day/work" status --short | grep . && fail "git sees a difference" || echo "git sees no difference"

say "Three attempts at once, each in a clone of its own, by a user of its own; a mounter is killed meanwhile"
for n in 1 2 3; do
    tarbox clone work "try-$n" >/dev/null
    run tarbox-mount --tenant "try-$n" --daemon "$day/try-$n"
    chown -R "200$n" "$day/try-$n"
done
attempt() {
    setpriv --reuid "200$1" --regid "200$1" --clear-groups bash -euc '
        cd "$0"
        for round in $(seq 1 40); do
            printf "attempt %s, round %s\n" "$1" "$round" >>"result-$1"
            mkdir "d$round"; mv "d$round" "e$round"; printf %s "$round" >"e$round/f"
        done' "$day/try-$1" "$1"
}
attempts=()
for n in 1 2 3; do attempt "$n" & attempts+=($!); done
parent=$(pgrep -f -- "tarbox-mount --tenant try-2 --daemon $day/try-2" | sed -n 1p)
served=$(pgrep -P "$parent" | sed -n 1p)
kill -9 "$served"
echo "killed the mounter of try-2 (pid $served)"
for pid in "${attempts[@]}"; do wait "$pid" || fail "an attempt failed"; done
for n in 1 2 3; do
    [ "$(wc -l <"$day/try-$n/result-$n")" -eq 40 ] && [ "$(cat "$day/try-$n"/e*/f | wc -w)" -ge 1 ] || fail "try-$n lost something"
    [ "$(find "$day/try-$n" -maxdepth 1 -name 'e*' | wc -l)" -eq 40 ] || fail "try-$n lost a directory"
    [ ! -e "$day/work/result-$n" ] || fail "a clone is not alone"
done
echo "all three have all that they did, and nobody has anything of another"

say "In the evening: where it all came from"
run tarbox log work
run tarbox log try-2

say "And who changed what"
run tarbox audit work --op rename,unlink,rmdir,chown -n 5
[ "$(tarbox audit work --process rm --op unlink -o json | wc -l)" -eq 20 ] || fail "the audit does not have the 20 files that rm took away"
[ "$(tarbox audit work --process chown --op chown -o json | jq -r .path | sort -u | wc -l)" -eq 21 ] || fail "the audit does not have what chown changed"
for n in 1 2 3; do
    renamed=$(tarbox audit "try-$n" --op rename --uid "200$n" -o json | jq -r .to | sort -u | wc -l)
    [ "$renamed" -eq 40 ] || fail "the audit of try-$n has $renamed of 40 renames"
    [ "$(tarbox audit "try-$n" --op rename -o json | wc -l)" -eq 40 ] || fail "the audit of try-$n has some of them twice"
done
run tarbox audit try-2 --op takeover,rename -n 3
echo "each change is there once, with who made it, also across the kill"
for n in 1 2 3; do tarbox umount "$day/try-$n" >/dev/null; done
tarbox umount "$day/work" >/dev/null
for tenant in work try-1 try-2 try-3; do run tarbox fsck "$tenant" >/dev/null; done
echo "every invariant holds"
