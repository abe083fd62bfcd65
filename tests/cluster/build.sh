#!/usr/bin/env bash
# Builds what a cluster consists of, once, from the Go module proxy and pinned by go.mod and go.sum in go/: Kubernetes and the CSI sidecars.
# 20 minutes on two processors the first time; nothing where it is there. Usage: build.sh [suite]: with `suite` Kubernetes' own tests as well.
set -euo pipefail
. "$(dirname "$0")/env.sh"
export CGO_ENABLED=0 GOFLAGS="-p=2 -mod=readonly -trimpath"
csi=github.com/kubernetes-csi
mkdir -p "$BIN"

# once NAME FILE… -- FUNCTION…: unless it was done with these very files.
once() {
    local name=$1 stamp files=()
    shift
    while [ "$1" != -- ]; do files+=("$1"); shift; done
    shift
    stamp=$BIN/.$name-$(cat "${files[@]}" | sha256sum | cut -c1-16)
    [ -e "$stamp" ] && return
    echo "build.sh: building $name"
    "$@"
    touch "$stamp"
}
# go_build DIRECTORY FLAGS PACKAGE…
go_build() {
    local directory=$1 flags=$2
    shift 2
    (cd "$directory" && nice -n 15 go build -ldflags "-s -w $flags" -o "$BIN/" "$@")
}

kubernetes_version() {
    local v=k8s.io/component-base/version
    echo "-X $v.gitVersion=$KUBERNETES -X $v.gitMajor=1 -X $v.gitMinor=34 -X $v.gitTreeState=clean -X $v.gitCommit=gomodule -X $v.buildDate=1970-01-01T00:00:00Z"
}
kubernetes() {
    go_build "$here/go/kube" "$(kubernetes_version)" k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubelet,kube-proxy,kubectl}
}
sidecars() {
    go_build "$here/go/sidecars" "" $csi/external-provisioner/v6/cmd/csi-provisioner $csi/external-attacher/v4/cmd/csi-attacher \
        $csi/external-resizer/v2/cmd/csi-resizer $csi/external-snapshotter/v8/cmd/csi-snapshotter $csi/external-snapshotter/v8/cmd/snapshot-controller
    local definitions
    definitions=$(cd "$here/go/sidecars" && go list -m -f '{{.Dir}}' $csi/external-snapshotter/client/v8)/config/crd
    rm -rf "$BIN/crd"
    install -D -m 644 -t "$BIN/crd" "$definitions"/*.yaml
    rm -f "$BIN/crd/kustomization.yaml"
}
registrar() { go_build "$here/registrar" "" .; }
suite() {
    go_build "$here/go/kube" "" k8s.io/kubernetes/test/images/agnhost github.com/onsi/ginkgo/v2/ginkgo
    # -vet=off: it would look through every dependency.
    (cd "$here/go/kube" && nice -n 15 go test -c -vet=off -ldflags "-s -w $(kubernetes_version)" -o "$BIN/e2e.test" k8s.io/kubernetes/test/e2e)
}

once kubernetes "$here/go/kube/go.mod" -- kubernetes
once sidecars "$here/go/sidecars/go.mod" -- sidecars
once registrar "$here/registrar/main.go" "$here/registrar/go.mod" -- registrar
[ "${1:-}" != suite ] || once suite "$here/go/kube/go.mod" -- suite
