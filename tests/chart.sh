#!/bin/sh
# The Helm chart and what is rendered from it. Usage: tests/chart.sh check|render
#   check   lints the chart with several sets of values, renders it, refuses bad values, checks the alert rules, compares deploy/manifests
#   render  writes deploy/manifests anew
# The API server's own opinion of what is rendered is asked where one runs: in the end-to-end tests.
set -eu
cd "$(dirname "$0")/.."
TOOLS="${TESTS_TOOLS:-$HOME/.cache/tarbox/tools}"
export PATH="$TOOLS/bin:$PATH"
CHART=deploy/charts/tarbox-csi
MANIFESTS=deploy/manifests
# A helm that was not built by its own Makefile takes the cluster for a very old one.
KUBERNETES=1.34.0

# Helm's notes on links are no news: the alert rules and the dashboard have one source, deploy/monitoring.
chart() { helm "$@" 2>"$TMP/err" || { cat "$TMP/err" >&2; return 1; }; grep -v 'found symbolic link' "$TMP/err" >&2 || true; }

# render NAME: a set of deploy/manifests on standard output; without what only helm knows of.
render() {
    echo "# Rendered from $CHART by \`make manifests\`, with $MANIFESTS/$1.values.yaml. Do not edit."
    chart template tarbox "$CHART" --kube-version $KUBERNETES --namespace tarbox-system --values "$MANIFESTS/$1.values.yaml" --no-hooks |
        sed '/app.kubernetes.io\/managed-by: Helm/d; /helm.sh\/chart: /d'
}

# accepts WORDS...: lints and renders with these values; what is rendered goes to $TMP/out.
accepts() {
    chart lint --strict --quiet "$CHART" --kube-version $KUBERNETES --namespace t "$@" >"$TMP/lint" || { cat "$TMP/lint" >&2; fail "lint: $*"; }
    chart template t "$CHART" --kube-version $KUBERNETES --namespace t "$@" >"$TMP/out" || fail "template: $*"
}

# refuses TEXT WORDS...: with these values rendering fails, and says so.
refuses() {
    text="$1"; shift
    if helm template t "$CHART" --kube-version $KUBERNETES --namespace t "$@" >/dev/null 2>"$TMP/err"; then fail "accepted: $*"; fi
    grep -qF -- "$text" "$TMP/err" || { cat "$TMP/err" >&2; fail "\`$text\` is not said of: $*"; }
}

has() { grep -qE -- "$1" "$TMP/out" || fail "\`$1\` is not rendered"; }
lacks() { ! grep -qE -- "$1" "$TMP/out" || fail "\`$1\` is rendered"; }
fail() { echo "chart: $*" >&2; exit 1; }

check() {
    accepts
    has 'replicas: 1$'; has 'topology.tarbox.csi.io/node=\$\(NODE_NAME\)'; has 'value: "sqlite:///var/lib/tarbox/database"'; lacks 'kind: PodDisruptionBudget'
    lacks 'VolumeSnapshotClass'; has 'type: OnDelete'; has 'kind: Job'
    [ "$(grep -c '^kind: StorageClass' "$TMP/out")" = 4 ] || fail "there are not four StorageClasses"

    has 'kubernetes-events=true'; has 'resources: \[events\], verbs: \[create\]'
    accepts --set node.events=false
    has 'kubernetes-events=false'; lacks 'automountServiceAccountToken: true'; lacks 'resources: \[events\], verbs: \[create\]'

    chart template t "$CHART" --kube-version $KUBERNETES --api-versions snapshot.storage.k8s.io/v1 >"$TMP/out" || fail "template with snapshots"
    has 'name: tarbox-snapshot$'; has 'csi-snapshotter'

    accepts --set database.urlSecret.name=mine --set snapshots.enabled=true
    has 'replicas: 3$'; has 'kind: PodDisruptionBudget'; has 'secretKeyRef'; has 'name: tarbox-snapshot$'; lacks 'kind: Secret'; lacks 'sqlite'; lacks 'csi-attacher'

    accepts --set database.url=postgresql://u:s3cret@h/d --set csiDriver.attachRequired=true
    has 'csi-attacher'; has 'volumeattachments/status'
    [ "$(grep -c s3cret "$TMP/out")" = 1 ] || fail "a password stands outside of its Secret"

    accepts --set database.embedded=true --set networkPolicy.enabled=true --set 'networkPolicy.nodeCIDRs={10.0.0.0/8}'
    has 'kind: PersistentVolumeClaim'; has 'resource-policy: keep'; has 'kind: NetworkPolicy'
    has 'kind: StatefulSet'; has 'flock 9'

    accepts --set monitoring.serviceMonitor.enabled=true --set monitoring.prometheusRule.enabled=true --set monitoring.dashboard.enabled=true \
        --set openshift.scc=true --set priorityClassQuota.create=true --set namespace.create=true --set sidecars.healthMonitor.enabled=true
    has 'kind: ServiceMonitor'; has 'kind: SecurityContextConstraints'; has 'pod-security.kubernetes.io/enforce: privileged'; has 'health-monitor'
    # The groups of the rule are the file, two blanks further right.
    awk '/^kind: PrometheusRule/ {rule=1} rule && /^---/ {exit} rule && spec {print substr($0, 3)} rule && /^spec:/ {spec=1}' "$TMP/out" >"$TMP/rules.yaml"
    diff deploy/monitoring/alerts.yaml "$TMP/rules.yaml" >&2 || fail "the rules are not those of deploy/monitoring/alerts.yaml"
    promtool check rules "$TMP/rules.yaml" >"$TMP/lint" 2>&1 || { cat "$TMP/lint" >&2; fail "promtool"; }

    accepts --set node.memoryBudget=8Gi --set node.kubeletDir=/var/lib/k0s/kubelet --set imageRegistry=mirror.example.org:5000 --set ports.metrics=9999
    has 'memory: 8Gi'; has 'memory-budget=8Gi'; has 'registration-path=/var/lib/k0s/kubelet/plugins/tarbox.csi.io/csi.sock'; lacks 'registry.k8s.io'; lacks '9780'
    accepts --set node.launcher=host; has 'hostNetwork: true'; lacks 'tarbox-keeper'; has '/run/dbus'
    accepts --set node.launcher=child --set node.hostPath.enabled=false; lacks 'tarbox-keeper'
    accepts --set runtime.image.tag=0.0.9; has 'image: "tarbox:0.0.9"'
    accepts --set 'controller.readableSecrets[0].namespace=team' --set 'controller.readableSecrets[0].name=database'; has 'resourceNames: \[database\]'
    accepts --set node.startupTaint.key=tarbox.csi.io/agent-not-ready; has 'tarbox-csi-taint$'; has 'resources: \[nodes\], verbs: \[get, list, patch\]'
    accepts --set node.ephemeral.enabled=false; lacks '- Ephemeral'
    accepts --set database.sqlite.nodeName=node-7; has 'metadata.name'; has 'node-7'

    refuses 'additional properties' --set controller.replica=2
    refuses 'controller/replicas' --set controller.replicas=0
    refuses 'node/launcher' --set node.launcher=systemd
    refuses 'node/memoryBudget' --set node.memoryBudget=much
    refuses 'csiDriver/attachRequired' --set-string csiDriver.attachRequired=yes
    refuses 'additional properties' --set storageClasses.classes.tarbox.parameters.blocksize=4Ki
    refuses 'auditLevel' --set storageClasses.classes.tarbox.parameters.auditLevel=all
    refuses 'databaseURL' --set storageClasses.classes.tarbox.parameters.databaseURL=postgresql://u:secret@h/d
    refuses 'runtime/resources/limits' --set runtime.resources.limits.memory=1Gi
    refuses 'url and embedded are given together' --set database.embedded=true --set database.url=postgresql://h/d
    refuses 'needs node.launcher = child' --set node.hostPath.enabled=false
    refuses 'are both isDefault' --set storageClasses.classes.tarbox.isDefault=true --set storageClasses.classes.tarbox-audit.isDefault=true

    for set in sqlite postgresql; do
        render "$set" >"$TMP/$set.yaml"
        diff "$MANIFESTS/$set.yaml" "$TMP/$set.yaml" >&2 || fail "$MANIFESTS/$set.yaml is not what the chart renders: make manifests"
    done
    echo "chart: fine"
}

TMP="$(mktemp -d)"; trap 'rm -r "$TMP"' EXIT
case "${1:-}" in
    check) check ;;
    render) for set in sqlite postgresql; do render "$set" >"$TMP/new" || exit 1; cp "$TMP/new" "$MANIFESTS/$set.yaml"; done ;;
    *) echo "usage: $0 check|render" >&2; exit 64 ;;
esac
