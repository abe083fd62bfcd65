#!/usr/bin/env bash
# Writes go/*/go.mod and go.sum anew: run by whoever raises a version below, never by a test.
#
# k8s.io/kubernetes requires its own parts at v0.0.0 and replaces them by directories that are not in the module's archive; a replacement
# counts in the main module only. So each part is pinned here to what is published of it.
set -euo pipefail
. "$(dirname "$0")/env.sh"
provisioner=v6.3.0 attacher=v4.12.0 resizer=v2.2.0 snapshotter=v8.6.0 # All of them agree on one client-go: it is compiled once.
csi=github.com/kubernetes-csi
export CGO_ENABLED=0 GOFLAGS="-p=2 -mod=mod -trimpath"

# go_mod_of MODULE@VERSION: the path of its go.mod.
go_mod_of() { (cd / && go mod download -json "$1" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p'); }

kube() {
    local origin
    origin=$(go_mod_of "k8s.io/kubernetes@$KUBERNETES")
    printf 'module e2e.local/kube\n\ngo %s\ngodebug default=%s\n\nrequire k8s.io/kubernetes %s\n\nreplace (\n' \
        "$(sed -n 's/^go //p' "$origin")" "$(sed -n 's/^godebug default=//p' "$origin")" "$KUBERNETES"
    sed -n 's#^[[:space:]]*\(k8s.io/[a-z-]*\) => ./staging.*#\1#p' "$origin" |
        while read -r part; do printf '\t%s => %s v0.%s\n' "$part" "$part" "${KUBERNETES#v1.}"; done
    echo ')'
}
sidecars() {
    local origin
    origin=$(go_mod_of "$csi/external-provisioner/v6@$provisioner")
    printf 'module e2e.local/sidecars\n\ngo %s\n\nrequire (\n' "$(sed -n 's/^go //p' "$origin")"
    printf '\t%s\n' "$csi/external-provisioner/v6 $provisioner" "$csi/external-attacher/v4 $attacher" "$csi/external-resizer/v2 $resizer" \
        "$csi/external-snapshotter/v8 $snapshotter" "$csi/external-snapshotter/client/v8 $snapshotter"
    printf ')\n\n'
    sed -n '/^replace k8s\.io\/.* => k8s\.io\//p' "$origin"
}
# fill DIRECTORY PACKAGE…: go.sum, and the indirect requirements, by listing what is built.
fill() { (cd "$1" && shift && go list -deps "$@" >/dev/null); }

for part in kube sidecars; do
    rm -f "$here/go/$part"/go.{mod,sum}
    "$part" >"$here/go/$part/go.mod.new" && mv "$here/go/$part/go.mod.new" "$here/go/$part/go.mod"
done
fill "$here/go/kube" k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubelet,kube-proxy,kubectl} \
    k8s.io/kubernetes/test/images/agnhost github.com/onsi/ginkgo/v2/ginkgo k8s.io/kubernetes/test/e2e
(cd "$here/go/kube" && go list -test -deps k8s.io/kubernetes/test/e2e >/dev/null)
fill "$here/go/sidecars" $csi/external-provisioner/v6/cmd/csi-provisioner $csi/external-attacher/v4/cmd/csi-attacher \
    $csi/external-resizer/v2/cmd/csi-resizer $csi/external-snapshotter/v8/cmd/{csi-snapshotter,snapshot-controller}
