# shellcheck shell=bash disable=SC2034 # Read by those that source it.
# Where things are and what they are called; sourced by every script.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${CLUSTER_CACHE:-$HOME/.cache/tarbox/cluster} # outlives a run: what was built, what was packed
BIN=$CACHE/bin
IMAGES=$CACHE/images
RUN=$CACHE/run # one cluster; gone when it is
PKI=$RUN/pki
KUBERNETES=v1.34.4
NODES=${CLUSTER_NODES:-one two}
# Addresses exist only in the nodes' own network namespaces.
node_ip() { case $1 in one) echo 10.250.0.1 ;; *) echo 10.250.0.2 ;; esac; }
pod_cidr() { case $1 in one) echo 10.251.1.0/24 ;; *) echo 10.251.2.0/24 ;; esac; }
SERVICES=10.252.0.0/16
API=10.252.0.1      # the API server as pods see it
DNS=10.250.0.1      # dnsmasq on the first node
DATABASE=10.252.0.20 # the PostgreSQL pod's service: its name is resolved by DNS
DATABASE_NAME=postgres.database.svc.cluster.local
TOOLS=${TESTS_TOOLS:-$HOME/.cache/tarbox/tools} # of tests/deps.sh: helm, fsx
export PATH=$BIN:$TOOLS/bin:$PATH:/usr/sbin:/sbin
