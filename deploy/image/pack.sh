#!/usr/bin/env bash
# Packs a directory as an image of one layer: an OCI archive, which `ctr images import`, `podman load`, `skopeo copy oci-archive:` and
# `docker load` (25 and newer) read. No engine, no registry; the same directory gives the same bytes.
# Usage: deploy/image/pack.sh OUT.tar NAME:TAG DIRECTORY 'CONFIG' ; CONFIG is the JSON of the image's `config`; ARCH is amd64 or arm64 [this machine's]
set -euo pipefail
out=$(realpath -m "$1") name=$2 root=$3 config=$4
case ${ARCH:-$(uname -m)} in x86_64 | amd64) arch=amd64 ;; aarch64 | arm64) arch=arm64 ;; *) echo "pack.sh: ARCH=$ARCH: amd64 or arm64" >&2; exit 64 ;; esac
layout=$(mktemp -d "${TMPDIR:-/tmp}/tarbox-image.XXXXXX")
trap 'rm -rf "$layout"' EXIT
mkdir -p "$layout/blobs/sha256" "$(dirname "$out")"
same() { tar --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --mtime=@0 "$@"; }

# blob FILE: takes it in by its hash; prints `"digest": …, "size": …`.
blob() {
    local hash
    hash=$(sha256sum "$1" | cut -d' ' -f1)
    mv "$1" "$layout/blobs/sha256/$hash"
    printf '"digest": "sha256:%s", "size": %d' "$hash" "$(stat -c %s "$layout/blobs/sha256/$hash")"
}

same -C "$root" -cf "$layout/layer.tar" .
difference=$(sha256sum "$layout/layer.tar" | cut -d' ' -f1)
gzip -n "$layout/layer.tar"
layer=$(blob "$layout/layer.tar.gz")
cat >"$layout/config" <<JSON
{"architecture": "$arch", "os": "linux", "created": "1970-01-01T00:00:00Z", "config": $config,
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$difference"]}, "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "deploy/image/pack.sh"}]}
JSON
settings=$(blob "$layout/config")
vendor=application/vnd.oci.image
cat >"$layout/manifest" <<JSON
{"schemaVersion": 2, "mediaType": "$vendor.manifest.v1+json", "config": {"mediaType": "$vendor.config.v1+json", $settings},
 "layers": [{"mediaType": "$vendor.layer.v1.tar+gzip", $layer}]}
JSON
manifest=$(blob "$layout/manifest")
# containerd takes the first name, the others the second.
cat >"$layout/index.json" <<JSON
{"schemaVersion": 2, "mediaType": "$vendor.index.v1+json", "manifests": [{"mediaType": "$vendor.manifest.v1+json", $manifest,
 "platform": {"architecture": "$arch", "os": "linux"},
 "annotations": {"io.containerd.image.name": "$name", "org.opencontainers.image.ref.name": "${name##*:}"}}]}
JSON
echo '{"imageLayoutVersion": "1.0.0"}' >"$layout/oci-layout"
same -C "$layout" -cf "$out" oci-layout index.json blobs
echo "$out: $name, $(stat -c %s "$out") bytes, ${manifest%%,*}" >&2
