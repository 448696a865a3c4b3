#!/bin/bash
# Build Kubernetes, etcd, the specs, Helm and what makes requests into $BIN, each from its Go module; what is there stays.
set -euo pipefail; . "$(dirname "$0")/env.sh"; mkdir -p "$BIN"
version=v$(cd "$HERE/kube" && go list -m -f '{{.Version}}' k8s.io/kubernetes | tr -d v)
ld="-s -w -X k8s.io/component-base/version.gitVersion=$version"
built() { [ -e "$BIN/$1.of" ] && [ "$(cat "$BIN/$1.of")" = "$(sum)" ]; }
sum() { cat "$HERE"/kube/go.mod "$HERE"/kube/e2e/*.go <(go version) | sha256sum; }
step() { # name command…
  built "$1" || { echo "building $1"; "${@:2}"; sum >"$BIN/$1.of"; }; }
cd "$HERE/kube"
K=k8s.io/kubernetes
step kubernetes go build -trimpath -ldflags="$ld" -o "$BIN/" ./etcd $K/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy,kubelet,kubectl}
step agnhost go build -trimpath -ldflags="$ld" -o "$BIN/" $K/test/images/agnhost
[ "${1:-}" != specs ] || step e2e.test go test -c -trimpath -ldflags="$ld" -o "$BIN/e2e.test" ./e2e
cd "$SRC"
cp "$(go tool -n -modfile=internal/tools/helm/go.mod helm)" "$BIN/helm"
go build -o "$BIN/" ./test/kubelets/stream ./kubectl-clarion
