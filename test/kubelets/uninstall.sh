#!/bin/bash
# uninstall.sh kustomize|helm: as docs/operations.md says; nothing of Clarion may be left but what is meant to stay.
set -euo pipefail; . "$(dirname "$0")/env.sh"
case $1 in
kustomize) k delete bgpadvertisements.clarionlb.io,l2advertisements.clarionlb.io --all >/dev/null; k delete -k "$SRC/config/default" >/dev/null ;;
helm) ns cp helm uninstall clarion --namespace clarion-system --wait >/dev/null 2>&1; k -n clarion-system wait --for=delete pod --all --timeout=60s >/dev/null; left=$(k get ipaddresspools -o name | wc -l); [ "$left" = 2 ] || { echo "$left pools are left, want both: the CRDs are kept"; exit 1; } ;;
esac
for n in $(seq "$NODES"); do for f in -4 -6; do
  rules=$(ns "n$n" ip $f rule show pref 400); [ -z "$rules" ] || { echo "node n$n keeps rules of the guard: $rules"; exit 1; }
done; done
echo "uninstalled"
