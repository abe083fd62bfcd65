#!/bin/sh
# Installs what a target needs and the machine lacks; nothing else. Usage: tests/deps.sh run|test|sanity|bench|chaos|deny|coverage|fuzz|kernels|chart|demo|image|cluster
# Debian and Ubuntu packages through apt; cargo tools once into $TESTS_TOOLS.
set -eu
TOOLS="${TESTS_TOOLS:-$HOME/.cache/tarbox/tools}"
HELM=v3.22.0

sudo_if_needed() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# packages COMMAND:PACKAGE...: installs each package whose command is missing. A command that begins with / is a path to look for.
packages() {
    missing=""
    for pair in "$@"; do
        command="${pair%%:*}"; package="${pair#*:}"
        case "$command" in
            /*) ls -d $command >/dev/null 2>&1 || missing="$missing $package" ;;
            *) command -v "$command" >/dev/null 2>&1 || missing="$missing $package" ;;
        esac
    done
    [ -z "$missing" ] && return 0
    echo "deps: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    sudo_if_needed apt-get update -qq
    # shellcheck disable=SC2086
    sudo_if_needed apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# tool NAME VERSION [cargo install arguments]: builds a cargo tool once.
tool() {
    name="$1"; version="$2"; shift 2
    stamp="$TOOLS/.$name-$version"
    [ -e "$stamp" ] && [ -x "$TOOLS/bin/$name" ] && return 0
    echo "deps: building $name $version into $TOOLS"
    # Its own target directory: the workspace's settings and artefacts stay out of it.
    CARGO_TARGET_DIR="$TOOLS/build" cargo install --quiet --locked --force --root "$TOOLS" "$name@$version" "$@"
    rm -rf "$TOOLS/build"; touch "$stamp"
}

# Debian starts a cluster of its own when PostgreSQL is installed; the tests need only the programs.
postgres() {
    if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        sudo_if_needed mkdir -p /etc/postgresql-common
        echo "create_main_cluster = false" | sudo_if_needed tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi
    packages "/usr/lib/postgresql/*/bin/initdb:postgresql"
}

# The device: a container may have to be given it, a machine may have to load the module.
fuse() {
    [ -e /dev/fuse ] || sudo_if_needed modprobe fuse || true
    [ -e /dev/fuse ] || { echo "deps: /dev/fuse is missing: load the kernel module 'fuse' or give the container the device" >&2; exit 1; }
    # As udev leaves it: fusermount3 opens it with the rights of the user who mounts.
    [ "$(stat -c %a /dev/fuse)" = 666 ] || sudo_if_needed chmod 666 /dev/fuse
}

# Out of Debian's package, which as a whole would start a server.
promtool() {
    [ -x "$TOOLS/bin/promtool" ] && return 0
    echo "deps: fetching promtool into $TOOLS"
    place="$(mktemp -d)"; chmod 755 "$place"
    sudo_if_needed apt-get update -qq
    (cd "$place" && apt-get download -qq prometheus 2>/dev/null && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool >promtool)
    mkdir -p "$TOOLS/bin"; install -m 755 "$place/promtool" "$TOOLS/bin/promtool"; rm -r "$place"
}

# The module proxy has it; there is no Debian package.
helm() {
    stamp="$TOOLS/.helm-$HELM"
    [ -e "$stamp" ] && [ -x "$TOOLS/bin/helm" ] && return 0
    packages go:golang-go
    echo "deps: building helm $HELM into $TOOLS"
    GOBIN="$TOOLS/bin" go install "helm.sh/helm/v3/cmd/helm@$HELM"
    touch "$stamp"
}

# Installs without starting what Debian would start: etcd, containerd.
without_services() {
    policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then "$@"; return; fi
    printf '#!/bin/sh\nexit 101\n' | sudo_if_needed tee "$policy" >/dev/null
    sudo_if_needed chmod 755 "$policy"
    status=0; "$@" || status=$?
    sudo_if_needed rm "$policy"
    return $status
}

run() { packages cc:gcc fusermount3:fuse3 git:git tar:tar; fuse; }
suites() {
    run; postgres
    packages setfattr:attr setfacl:acl /usr/include/sys/acl.h:libacl1-dev rsync:rsync sqlite3:sqlite3 stress-ng:stress-ng mkfs.ext4:e2fsprogs losetup:mount \
        setpriv:util-linux runuser:util-linux npm:npm python3:python3 fio:fio
    # A module, not a command; Debian keeps it in a package of its own.
    python3 -c 'import venv, ensurepip' 2>/dev/null || packages /nowhere:python3-venv
}
case "${1:-}" in
    run) run ;;
    demo) run; packages jq:jq setpriv:util-linux pgrep:procps ;;
    test) suites; promtool; tool pjdfstest 0.2.2; tool fsx 0.3.2 ;;
    sanity)
        packages go:golang-go
        [ -x "$TOOLS/bin/csi-sanity" ] || GOBIN="$TOOLS/bin" go install github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.6.0 ;;
    chart) promtool; helm ;;
    bench) suites; packages rg:ripgrep ;;
    chaos) run; postgres; packages sqlite3:sqlite3 setpriv:util-linux fio:fio; tool fsx 0.3.2 ;;
    deny) packages cc:gcc; tool cargo-deny 0.20.2 ;;
    coverage) suites; tool pjdfstest 0.2.2; tool fsx 0.3.2; tool cargo-llvm-cov 0.9.1; rustup component add llvm-tools ;;
    fuzz) packages cc:gcc; tool cargo-fuzz 0.13.2; rustup toolchain install nightly --profile minimal ;;
    image) packages cc:gcc strip:binutils jq:jq /etc/ssl/certs/ca-certificates.crt:ca-certificates ;;
    cluster)
        fuse; postgres; helm; tool fsx 0.3.2
        without_services packages cc:gcc strip:binutils jq:jq go:golang-go etcd:etcd-server containerd:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins \
            busybox:busybox-static sqlite3:sqlite3 dnsmasq:dnsmasq-base iptables:iptables conntrack:conntrack ethtool:ethtool socat:socat ip:iproute2 \
            openssl:openssl curl:curl nsenter:util-linux pgrep:procps ;;
    kernels)
        packages cc:gcc strip:binutils python3:python3 qemu-system-x86_64:qemu-system-x86 debootstrap:debootstrap modprobe:kmod xz:xz-utils \
            busybox:busybox-static mkfs.ext4:e2fsprogs column:bsdextrautils /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring ;;
    *) echo "usage: $0 run|demo|test|sanity|bench|chaos|deny|coverage|fuzz|kernels|chart|demo|image|cluster" >&2; exit 64 ;;
esac
