#!/usr/bin/env bash
# Lays out an image's root: the programs, the certificates that databases are checked by, who runs, and what it is all made of. Nothing
# else: no shell, no libc, no package. Both `make image` and the Dockerfile take it from here.
# Usage: deploy/image/root.sh DIRECTORY [FEATURE,…]; PROFILE and TARGET as in build.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$1 features=${2:-}
export TARGET=${TARGET:-$(uname -m)-unknown-linux-gnu}
strip="strip"
[ "${TARGET%%-*}" = "$(uname -m)" ] || strip=${TARGET/-unknown/}-strip

programs=$("$here/build.sh" "tarbox-mounter${features:+:$features}" tarbox-keeper tarbox-agent tarbox-controller)
mkdir -p "$root"/{usr/bin,etc/ssl/certs,usr/share/tarbox,tmp,var/lib/tarbox,run/tarbox}
chmod 1777 "$root/tmp"
for program in tarbox tarbox-mount tarbox-keeper tarbox-agent tarbox-controller; do
    # Names of functions stay, for the stacks of those that hang; lines of source are in the build's directory.
    "$strip" --strip-debug -o "$root/usr/bin/$program" "$programs/$program"
    chmod 755 "$root/usr/bin/$program"
done
install -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf 'root:x:0:0:root:/:/nonexistent\ntarbox:x:65532:65532:tarbox:/tmp:/nonexistent\n' >"$root/etc/passwd"
printf 'root:x:0:\ntarbox:x:65532:\n' >"$root/etc/group"
# What a static glibc can ask by itself.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
"$here/sbom.sh" "$TARGET" >"$root/usr/share/tarbox/sbom.cdx.json"
