#!/usr/bin/env bash
# `make test-kernels`: runs suites on other kernels than this machine's, each kernel in a virtual machine with systemd and cgroup v2.
# Prints a table, leaves logs in target/kernels, ends with 1 if anything failed or a machine did not come to its end.
#   KERNELS="5.10 6.1 6.12"   which
#   SUITES="PACKAGE:TARGET…"  test targets as Cargo names them; `host` is the trial of the launcher of that name
#   TESTS_KILLS=4             kills in each test of the recovery suite: an emulated machine is slow
#   TESTS_PATIENCE=5          factor on the time limits of tests
#   FILTER="words…"           only these tests, as their harness takes them: "--skip postgres" halves the time
#   KERNELS_SUITE_LIMIT=1500  seconds that a suite may take
# Images and kernels are kept in ~/.cache/tarbox/kernels; what is there is not fetched again.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
project=$(realpath "$here/../..")
: "${KERNELS:=5.10 6.1 6.12}"
: "${SUITES:=tarbox-engine:recovery tarbox-agent:tarbox_agent tarbox-tests:recovery tarbox-tests:agent tarbox-tests:workstation host}"
cache=${KERNELS_CACHE:-$HOME/.cache/tarbox/kernels}
logs=$project/target/kernels
[ "$(id -u)" = 0 ] || { echo "run.sh: making a root file system takes root: run as root, or with sudo" >&2; exit 1; }
[ "$(dpkg --print-architecture)" = amd64 ] || { echo "run.sh: the machines are amd64, and run what is built here: this machine has to be, too" >&2; exit 1; }

work=$(mktemp -d "${TESTS_DIR:-/var/tmp}/tarbox-kernels.XXXXXX")
machine=
# shellcheck disable=SC2317 # The trap calls it.
clean_up() {
    [ -z "$machine" ] || kill "$machine" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# The script that makes something is part of its name: another script makes it anew.
made_by() { sha256sum "$here/$1" | cut -c 1-12; }
mkdir -p "$cache"
image=$cache/root-$(made_by image.sh).img
if [ ! -e "$image" ]; then
    echo "kernels: making the root file system"
    rm -f "$cache"/root-*
    "$here/image.sh" "$image"
fi
for version in $KERNELS; do
    directory=$cache/$version-$(made_by kernel.sh)
    if [ ! -e "$directory/release" ]; then
        echo "kernels: fetching $version"
        rm -rf "$cache/$version"-*
        "$here/kernel.sh" "$version" "$directory"
    fi
done

# build WORDS…: what Cargo made, a line each: "test|bin", "package:target", path.
build() {
    (cd "$project" && cargo "$@" --message-format=json) | python3 -c '
import json, sys
for line in sys.stdin:
    made = json.loads(line)
    if made["reason"] == "compiler-artifact" and made["executable"]:
        package = made["package_id"].partition("#")[2].partition("@")[0]
        kind = "test" if made["profile"]["test"] else "bin"
        print(kind, package + ":" + made["target"]["name"], made["executable"])
'
}
echo "kernels: building"
build build --quiet --bins -p tarbox-mounter -p tarbox-agent -p tarbox-keeper >"$work/built"
bin_dir=$(dirname "$(awk '$2 ~ /:tarbox-mount$/ { print $3 }' "$work/built")")
packages=$(for suite in $SUITES; do echo "$suite"; done | sed -n 's/:.*//p' | sort -u)
for package in $packages; do
    words=(-p "$package")
    for suite in $SUITES; do
        [ "${suite%%:*}" = "$package" ] || continue
        # A crate's own tests are named as the crate.
        if [ "${suite#*:}" = "${package//-/_}" ]; then words+=(--lib); else words+=(--test "${suite#*:}"); fi
    done
    build test --quiet --no-run "${words[@]}" >>"$work/built"
done

in=$work/in
mkdir -p "$in/root"
# Without debug information: names in a backtrace are enough.
put() { mkdir -p "$(dirname "$in/root$1")" && strip --strip-debug -o "$in/root$1" "$1"; }
awk '$1 == "bin" { print $3 }' "$work/built" | sort -u | while read -r program; do put "$program"; done
for suite in $SUITES; do
    if [ "$suite" = host ]; then
        cp "$here/host.sh" "$in/host"
        echo "host /handed.in/host" >>"$in/suites"
        continue
    fi
    path=$(awk -v suite="$suite" '$1 == "test" && $2 == suite { print $3 }' "$work/built" | tail -n 1)
    [ -n "$path" ] || { echo "run.sh: Cargo made no tests of $suite" >&2; exit 1; }
    put "$path"
    echo "${suite//:/.} $path" >>"$in/suites"
done
cp "$here/suites.sh" "$in/start"
cat >"$in/settings" <<SETTINGS
BIN_DIR='$bin_dir'
KILLS='${TESTS_KILLS:-4}'
PATIENCE='${TESTS_PATIENCE:-5}'
THREADS='${KERNELS_THREADS:-2}'
SUITE_LIMIT='${KERNELS_SUITE_LIMIT:-1500}'
LAUNCHER='${LAUNCHER:-host}'
FILTER='${FILTER:-}'
SETTINGS
tar -cf "$work/in.tar" -C "$in" .

failed=0
table=$work/table
printf '%s\t%s\t%s\t%s\t%s\n' KERNEL SUITE PASSED FAILED OUTCOME >"$table"
row() { printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>"$table"; }
fail() { failed=1; row "$@"; }

# judge VERSION DIRECTORY: a row for each suite, and one for what the kernel complained of.
judge() {
    local version=$1 of=$2 release name status listed passed broken ignored
    release=$(head -n 1 "$of/machine" 2>/dev/null || echo "$version")
    while read -r name _; do
        read -r status listed < <(awk -v name="$name" '$1 == name { print $2, $3 }' "$of/results" 2>/dev/null) || { fail "$version" "$name" - - "did not end"; continue; }
        read -r passed broken ignored < <(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' "$of/$name.log" | tail -n 1) \
            || { fail "$version" "$name" - - "ended with $status before its end"; continue; }
        if [ "$status" = 0 ] && [ "$broken" = 0 ] && [ "$passed" = "$listed" ] && [ "$listed" -gt 0 ]; then
            row "$release" "$name" "$passed" 0 ok
        else
            fail "$release" "$name" "$passed" "$broken" "status $status, $ignored ignored of $listed"
        fi
    done <"$in/suites"
    if grep -E 'BUG:|WARNING:|Oops|blocked for more than' "$of/dmesg" >"$of/complaints" 2>/dev/null; then
        fail "$release" "(kernel)" - - "$(wc -l <"$of/complaints") complaints: see $of/complaints"
    fi
}

# Nothing that hangs in there is waited for without end.
suite_limit=${KERNELS_SUITE_LIMIT:-1500}
KERNELS_LIMIT=$((600 + suite_limit * $(wc -l <"$in/suites")))
export KERNELS_LIMIT

rm -rf "$logs"
for version in $KERNELS; do
    of=$logs/$version
    mkdir -p "$of"
    echo "kernels: $version"
    begin=$SECONDS
    rm -f "$work/out.tar"
    "$here/boot.sh" "$cache/$version-$(made_by kernel.sh)" "$image" "$work/in.tar" "$work/out.tar" "$of/console" &
    machine=$!
    status=0
    wait "$machine" || status=$?
    machine=
    tar -xf "$work/out.tar" -C "$of" 2>/dev/null || true
    [ "$status" = 0 ] || fail "$version" "(machine)" - - "did not power itself off: status $status, see $of/console"
    judge "$version" "$of"
    echo "kernels: $version took $((SECONDS - begin)) s"
done

column -t -s "$(printf '\t')" "$table"
[ "$failed" = 0 ] || echo "kernels: what failed stands in $logs/*/*.log" >&2
exit "$failed"
