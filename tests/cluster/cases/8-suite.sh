# shellcheck shell=bash
# shellcheck disable=SC2154 # env.sh says where `here` is.
# Kubernetes' own suite for storage drivers (test/e2e, External.Storage): half an hour, so `make e2e-suite` asks for it.
# Left out, by name:
#   [Disruptive]   restarts kubelets over ssh
#   [Feature:…]    needs what this cluster lacks (Windows, SELinux relabelling, volume populators, group snapshots); snapshots and expansion are let in
#   any volume data source   needs the images hello-populator and volume-data-source-validator
#   block          the driver offers file systems only: the suite skips those by itself, as it does for what driver.yaml does not claim
if [ -n "${CLUSTER_SUITE:-}" ]; then
    CASES+=(kubernetes_own_suite_for_storage_drivers_passes)
fi

kubernetes_own_suite_for_storage_drivers_passes() {
    local image from reference
    cat >"$CASE_DIR/registries.yaml" <<YAML
promoterE2eRegistry: cluster.local
gcRegistry: cluster.local
sigStorageRegistry: cluster.local
YAML
    # Each image that the tests name is one of ours: they call sh, dd, ls, sha256sum, and agnhost.
    KUBE_TEST_REPO_LIST=$CASE_DIR/registries.yaml "$BIN/e2e.test" --list-images >"$CASE_DIR/images"
    while read -r image from; do
        reference=$(grep -m1 "^cluster.local/$image:" "$CASE_DIR/images")
        for node in $NODES; do on "$node" ctr images tag --force "cluster.local/$from:1" "$reference" >/dev/null; done
    done <<'MAP'
agnhost agnhost
busybox busybox
nginx busybox
jessie-dnsutils busybox
pause pause
MAP
    "$here/in.sh" env KUBE_TEST_REPO_LIST="$CASE_DIR/registries.yaml" ginkgo run --procs="${PROCS:-4}" --no-color --timeout=60m --keep-going \
        --focus='External.Storage' --skip='\[Disruptive\]|any volume data source|\[Feature:(Windows|SELinux|VolumeGroupSnapshot|VolumePopulator|AnyVolumeDataSource)|\[Slow\].*(Block|block volmode)' \
        "$BIN/e2e.test" -- --kubeconfig="$PKI/admin.kubeconfig" --provider=skeleton --kubectl-path="$BIN/kubectl" \
        --storage.testdriver="$here/manifests/driver.yaml" --report-dir="$CACHE/suite-report" --allowed-not-ready-nodes=0 >"$CASE_DIR/suite.log" 2>&1 ||
        { grep -E '\[FAIL\]|^Ran ' "$CASE_DIR/suite.log" | sort -u; cp "$CASE_DIR/suite.log" "$CACHE/suite.log"; fail "the suite fails: $CACHE/suite.log"; }
    step "$(grep -E '^Ran ' "$CASE_DIR/suite.log" | tail -n 1)"
    step "$(grep -E 'Passed' "$CASE_DIR/suite.log" | tail -n 1)"
}
