#!/bin/bash
# images.sh [dns]: make the images that pods ask for in $IMG, with CoreDNS if asked. Those of Clarion are made anew each time, two releases of the same code for
# rolling updates: by Docker where it runs, or else by what makes the image of a release.
set -euo pipefail; . "$(dirname "$0")/env.sh"; mkdir -p "$IMG"; t=$(mktemp -d); trap 'rm -rf "$t"' EXIT
image() { # name config names…: one layer with what make_NAME puts into a folder
  [ ! -e "$IMG/$1.tar" ] || return 0
  mkdir -p "$t/$1"; "make_$1" "$t/$1"; python3 "$HERE/mkimage.py" "$IMG/$1.tar" "$t/$1" "${@:2}"; }

make_pause() { gcc -Os -static -DVERSION=v3.10.2 -o "$1/pause" "$(cd "$HERE/kube" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)/build/pause/linux/pause.c"; }

# Kubernetes' own is an Alpine with a shell, curl and nc; here it is busybox, with Debian's curl, ip, nc and wget (that of
# busybox crashes on Debian 12; GNU's tries 20 times unless told otherwise, which no spec expects).
make_agnhost() {
  mkdir -p "$1"/{bin,etc,tmp,uploads,root,usr/bin,proc,sys,dev}; chmod 1777 "$1/tmp"
  cp "$BIN/agnhost" "$1/"; ln -s agnhost "$1/agnhost-2"
  local b l; cp "$(command -v busybox)" "$1/bin/"
  for b in $(busybox --list); do [ "$b" = busybox ] || ln -s busybox "$1/bin/$b"; done
  for b in curl ip wget nc; do rm -f "$1/bin/$b"; cp -L "$(command -v $b)" "$1/bin/$b"; done
  for b in agnhost bin/{busybox,curl,ip,wget,nc}; do
    { ldd "$1/$b" || true; } | { grep -o '/[^ ]*' || true; } | while read -r l; do mkdir -p "$1$(dirname "$l")"; cp -Ln "$l" "$1$l"; done
  done
  printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$1/etc/passwd"; echo 'root:x:0:' >"$1/etc/group"
  echo 'hosts: files dns' >"$1/etc/nsswitch.conf"; echo tries=1 >"$1/etc/wgetrc"; }

make_coredns() { (cd "$SRC/test/lab/coredns" && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$1/" .); }

image pause '{"Entrypoint":["/pause"],"User":"65535:65535"}' "$PAUSE"
image agnhost '{"Entrypoint":["/agnhost"],"Cmd":["pause"],"Env":["PATH=/bin:/usr/bin"]}' "$AGNHOST"
[ "${1:-}" != dns ] || image coredns '{"Entrypoint":["/coredns"]}' example/coredns:lab
cd "$SRC"
for v in v0.1.0 v0.1.1; do
  if docker info >/dev/null 2>&1; then
    docker build -q -t "$CLARION:$v" . && docker save -o "$IMG/clarion-$v.tar" "$CLARION:$v"
  else
    go run ./release -version $v -images "linux/$(go env GOARCH)" -image "$IMG/clarion-$v.tar"
  fi
done
