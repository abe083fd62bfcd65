#!/usr/bin/env bash
# One authority, a certificate for each party, a kubeconfig for each client.
set -euo pipefail
. "$(dirname "$0")/env.sh"
mkdir -p "$PKI" && cd "$PKI"
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
key ca
openssl req -x509 -new -key ca.key -subj /CN=cluster-ca -days 30 -out ca.crt -addext keyUsage=critical,keyCertSign,cRLSign

# leaf NAME SUBJECT USAGE [ALTERNATIVE NAMES]
leaf() {
    key "$1"
    {
        echo "keyUsage=critical,digitalSignature"
        echo "extendedKeyUsage=$3"
        [ -z "${4:-}" ] || echo "subjectAltName=$4"
    } >"$1.ext"
    openssl req -new -key "$1.key" -subj "$2" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 8)" -days 30 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
}
# client NAME SUBJECT: with a kubeconfig.
client() {
    leaf "$1" "$2" clientAuth
    cat >"$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://$(node_ip one):6443", certificate-authority: $PKI/ca.crt}}]
users: [{name: me, user: {client-certificate: $PKI/$1.crt, client-key: $PKI/$1.key}}]
contexts: [{name: c, context: {cluster: c, user: me}}]
current-context: c
YAML
}
leaf apiserver /CN=kube-apiserver serverAuth \
    "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:$(node_ip one),IP:$API"
leaf postgres /CN=postgres serverAuth "DNS:$DATABASE_NAME"
leaf apiserver-kubelet /O=system:masters/CN=apiserver-kubelet clientAuth
client admin /O=system:masters/CN=admin
client controller-manager /CN=system:kube-controller-manager
client scheduler /CN=system:kube-scheduler
client kube-proxy /CN=system:kube-proxy
for node in $NODES; do
    leaf "serving-$node" "/O=system:nodes/CN=system:node:$node" serverAuth "DNS:$node,IP:$(node_ip "$node")"
    client "kubelet-$node" "/O=system:nodes/CN=system:node:$node"
done
openssl genrsa -out sa.key 2048 2>/dev/null
openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
