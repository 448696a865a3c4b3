#!/bin/bash
# install.sh kustomize|helm: Clarion as its users install it; then pools, layer 2 and BGP. The nodes have its image.
set -euo pipefail; . "$(dirname "$0")/env.sh"
case $1 in
kustomize) k apply -k "$SRC/config/default" >/dev/null ;;
helm)
  k create namespace clarion-system --dry-run=client -o yaml | k apply -f - >/dev/null
  k label --overwrite namespace clarion-system pod-security.kubernetes.io/enforce=privileged >/dev/null
  ns cp helm upgrade --install clarion "${CHART:-$SRC/config/helm/clarion}" --namespace clarion-system "${@:2}" 2>/dev/null | head -3 ;;
esac
k wait --for=condition=Established crd --all --timeout=60s >/dev/null
k apply -f - >/dev/null <<K
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: lan}
spec: {addresses: [192.0.2.200-192.0.2.250, "2001:db8::2:0/112"], serviceAllocation: {priority: 1}}
---
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: lan}
spec: {ipAddressPools: [lan]}
---
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: routed}
spec: {addresses: [203.0.113.0/24, "2001:db8:f::/112"], serviceAllocation: {priority: 2}}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: r1}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.1, dualStackAddressFamily: true, holdTime: 9s, enableGracefulRestart: true}
---
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed}
spec: {ipAddressPools: [routed]}
K
k -n clarion-system rollout status deployment/controller daemonset/speaker --timeout=180s
