#!/usr/bin/env bash
# `make image`: one image with every program, as an OCI archive. One for all, because agent and keeper bring the mounter that belongs to them,
# because a node's agent and runtime then share what was pulled, and because what is released together cannot be mixed by mistake.
# Usage: deploy/image/image.sh [OUT.tar]; REPOSITORY [docker.io/library/tarbox, which the chart asks for as `tarbox`] and TAG [the version] name it; FEATURES, PROFILE, TARGET as in build.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml")
export TARGET=${TARGET:-$(uname -m)-unknown-linux-gnu}
export ARCH=${TARGET%%-*}
tag=${TAG:-$version}
name=${REPOSITORY:-docker.io/library/tarbox}:$tag
out=${1:-$here/../../target/image/tarbox-$tag-${TARGET%%-*}.tar}
root=$(mktemp -d "${TMPDIR:-/tmp}/tarbox-root.XXXXXX")
trap 'rm -rf "$root"' EXIT
"$here/root.sh" "$root" "${FEATURES:-}"
# Without a name for who runs it, it runs as nobody special; the node's pods say that they are root.
"$here/pack.sh" "$out" "$name" "$root" "{\"User\": \"65532:65532\", \"Entrypoint\": [], \"Cmd\": [\"/usr/bin/tarbox\", \"--help\"],
 \"Env\": [\"PATH=/usr/bin\", \"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt\"], \"WorkingDir\": \"/\",
 \"Labels\": {\"org.opencontainers.image.title\": \"tarbox\", \"org.opencontainers.image.version\": \"$tag\", \"org.opencontainers.image.licenses\": \"Apache-2.0\"}}"
cp "$root/usr/share/tarbox/sbom.cdx.json" "${out%.tar}.sbom.cdx.json"
