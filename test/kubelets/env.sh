# Where things are, and what every script uses.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SRC=$(cd "$HERE/../.." && pwd)
ROOT=${ROOT:-/var/cache/clarion-kubelets}   # all that these scripts write
BIN=$ROOT/bin IMG=$ROOT/images H=$ROOT/state
NODES=${NODES:-3}                       # nodes n1..nN
PFX=${PFX:-clarion-ke}                          # prefix of every network namespace and cgroup
AGNHOST=registry.k8s.io/e2e-test-images/agnhost:2.63.0 PAUSE=registry.k8s.io/pause:3.10.2 CLARION=ghcr.io/clarionlb/clarion
broke() { echo "${0##*/}: line $1: ${2%%$'\n'*} failed (logs: $H/log)" >&2; }
set -E; trap 'broke $LINENO "$BASH_COMMAND"' ERR
export ROOT SRC NODES PFX KUBECONFIG=$H/admin.conf PATH=$BIN:/usr/sbin:/sbin:$PATH
ns() { ip netns exec "$PFX-$1" "${@:2}"; }
k() { ns cp kubectl "$@"; }
spawn() { # name netns command…: in the background, its pid in $H/pid/name, its output in $H/log/name.log
  (let_go; exec setsid ip netns exec "$PFX-$2" "${@:3}" >>"$H/log/$1.log" 2>&1 </dev/null) & echo $! >"$H/pid/$1"; }
let_go() { # of what the caller had open, such as a lock: what is started here outlives it
  local fd; for fd in /proc/self/fd/*; do fd=${fd##*/}; [ "$fd" -le 2 ] || [ "$fd" = 255 ] || eval "exec $fd>&-"; done; }
wait_for() { # seconds command…
  local end=$((SECONDS+$1)); shift; until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "gave up on: $*" >&2; return 1; }; sleep 0.2; done; }
on_node() { # I command…: inside the node's namespaces, all of them
  nsenter -t "$(cat "$H/n$1/pid")" -m -u -i -n -p -C "${@:2}"; }
