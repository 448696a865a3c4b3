#!/bin/bash
# ops.sh WHAT…: what an operator does to a cluster, under a steady stream of requests through external addresses (layer 2 from the LAN, BGP from
# behind the router); for each, what the streams lost. WHAT: idle rollout delete crash controller freeze
# badimage drain taint kubelet kubelet-dead containerd power delete-node reinstall upgrade
set -euo pipefail; . "$(dirname "$0")/env.sh"; O=$H/ops; mkdir -p "$O"
NSY="-n clarion-system"
web() { # a pod on every node, behind four Services
  k apply -f - >/dev/null <<K
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: $((NODES*2))
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 40
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}]
      tolerations: [{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 300}]
      containers:
      - name: web
        image: $AGNHOST
        args: [netexec, --http-port=80, --udp-port=8081, --delay-shutdown=30]
        readinessProbe: {httpGet: {path: /hostname, port: 80}, periodSeconds: 2}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}
K
  for s in l2:lan:Cluster l2local:lan:Local bgp:routed:Cluster bgplocal:routed:Local; do IFS=: read -r n p t <<<$s; k apply -f - >/dev/null <<K
apiVersion: v1
kind: Service
metadata: {name: $n, annotations: {clarionlb.io/address-pool: $p}}
spec: {type: LoadBalancer, externalTrafficPolicy: $t, selector: {app: web}, ports: [{name: http, port: 80}, {name: udp, port: 8081, protocol: UDP}]}
K
  done
  k rollout status deployment/web --timeout=120s >/dev/null
  for s in l2 l2local bgp bgplocal; do wait_for 30 sh -c "[ -n \"\$(ip netns exec $PFX-cp kubectl get svc $s -o jsonpath='{.status.loadBalancer.ingress[0].ip}')\" ]"; done; }
vip() { k get svc $1 -o jsonpath='{.status.loadBalancer.ingress[0].ip}'; }
owner() { k get svc $1 -o jsonpath='{.status.conditions[?(@.type=="clarionlb.io/Announced")].message}' | grep -o 'node n[0-9]*' | head -1 | tr -dc 0-9; }
pod() { k $NSY get pod -l app.kubernetes.io/component=speaker --field-selector spec.nodeName=n$1 -o jsonpath='{.items[0].metadata.name}'; }
ready() { k $NSY rollout status daemonset/speaker deployment/controller --timeout=180s >/dev/null; wait_for 60 sh -c "[ \$(ip netns exec $PFX-r1 ip route show $(vip bgp) | grep -c nexthop) = $NODES ]" || true; }
streams() { # start them
  pids=(); for s in "l2-tcp c l2" "l2-udp c l2 -udp" "l2local-tcp c l2local" "bgp-tcp x bgp" "bgp-udp x bgp -udp" "bgplocal-tcp x bgplocal" "l2-conns c l2 -conns=40" "l2local-conns c l2local -conns=40" "bgp-conns x bgp -conns=40"; do set -- $s
    ip netns exec $PFX-$2 stream -name $1 -addr $(vip $3) -rate ${RATE:-50} ${4:-} >$O/$1.json & pids+=($!); done; sleep 3; }
streams_end() { sleep ${SETTLE:-5}; kill -INT "${pids[@]}"; wait "${pids[@]}" || true; python3 "$HERE/table.py" "$1" "$O" >>"$O/table" || failed=yes; }
note() { echo "   $(date +%T) $*"; }

do_idle() { sleep 15; }
do_rollout() { local v; v=$(k $NSY get ds speaker -o jsonpath='{.spec.template.spec.containers[0].image}'); [ "${v##*:}" = v0.1.0 ] && v=v0.1.1 || v=v0.1.0; local t=$SECONDS
  k $NSY set image daemonset/speaker speaker=$CLARION:$v >/dev/null; k $NSY set image deployment/controller controller=$CLARION:$v >/dev/null; ready; note "rolled out in $((SECONDS-t)) s"; }
do_upgrade() { "$HERE/install.sh" helm --set image.tag=v0.1.1 >/dev/null; ready; k $NSY get pods -o jsonpath='{range .items[*]}{.spec.containers[0].image}{"\n"}{end}' | sort | uniq -c; }
do_delete() { for i in $(seq $NODES); do k $NSY delete pod $(pod $i) --wait >/dev/null; ready; sleep 3; done; }
do_crash() { for i in $(seq $NODES); do note "kill -9 of n$i's speaker, owner of l2: n$(owner l2)"; on_node $i sh -c 'kill -9 $(pgrep -x speaker)'; sleep 12; ready; done; k $NSY get pods -l app.kubernetes.io/component=speaker --no-headers; }
do_controller() { for p in $(k $NSY get pods -l app.kubernetes.io/component=controller -o name); do k $NSY delete $p --wait >/dev/null; ready; done
  for i in $(seq $NODES); do on_node $i sh -c 'p=$(pgrep -x controller) && kill -9 $p' && note "kill -9 of n$i's controller" || true; sleep 5; done; ready; }
do_freeze() { local i; i=$(owner l2); note "n$i's speaker, owner of l2, stops (SIGSTOP)"; on_node $i sh -c 'kill -STOP $(pgrep -x speaker)'; sleep 5; note "owner of l2 now n$(owner l2), next hops of bgp: $(ns r1 ip route show $(vip bgp) | grep -c nexthop)"; sleep 80; k $NSY get pods -l app.kubernetes.io/component=speaker --no-headers; k $NSY get events --field-selector reason=Killing --no-headers | tail -n 1; ready; }
do_badimage() { k $NSY set image daemonset/speaker speaker=$CLARION:none >/dev/null; sleep 30; k $NSY get pods -l app.kubernetes.io/component=speaker --no-headers; k $NSY rollout undo daemonset/speaker >/dev/null; ready; }
do_drain() { local i; i=$(owner l2); note "drain n$i, owner of l2"; k drain n$i --ignore-daemonsets --delete-emptydir-data --timeout=300s >$O/drain.log 2>&1 || { note "drain failed"; tail -n 2 $O/drain.log; }
  sleep 5; note "owner of l2 now n$(owner l2)"; k get pods -o wide --no-headers | awk '{print $7}' | sort | uniq -c | tr '\n' ' '; k uncordon n$i >/dev/null; ready; }
do_taint() { local i; i=$(owner l2); note "annotate and drain n$i"; k annotate node n$i clarionlb.io/drain=true >/dev/null; sleep 35; k drain n$i --ignore-daemonsets --delete-emptydir-data --timeout=300s >$O/drain.log 2>&1 || tail -n 2 $O/drain.log
  note "owner of l2 now n$(owner l2), next hops of bgp: $(ns r1 ip route show $(vip bgp) | grep -c nexthop)"; k uncordon n$i >/dev/null; k annotate node n$i clarionlb.io/drain- >/dev/null; ready; }
do_kubelet() { for i in $(seq $NODES); do on_node $i sh -c 'kill -9 $(pgrep -x kubelet)'; sleep 8; done; k get nodes --no-headers; }
do_kubelet-dead() { local i; i=$(owner l2); note "kubelet of n$i, owner of l2, dead for ${DEAD:-80} s"; touch $H/n$i/hold-kubelet; on_node $i sh -c 'kill -9 $(pgrep -x kubelet)'; sleep ${DEAD:-80}
  k get nodes --no-headers; k $NSY get pods -o wide --no-headers; note "owner of l2 now n$(owner l2), next hops of bgp: $(ns r1 ip route show $(vip bgp) | grep -c nexthop)"; rm $H/n$i/hold-kubelet; wait_for 60 k wait --for=condition=Ready node/n$i --timeout=1s; ready; note "owner of l2 at the end n$(owner l2)"; }
do_containerd() { for i in $(seq $NODES); do on_node $i sh -c 'kill -9 $(pgrep -x containerd)'; sleep 8; done; k get nodes --no-headers; }
do_power() { local i; i=$(owner l2); note "n$i, owner of l2, loses power"; ns n$i ip link set eth0 down; kill -9 $(cat $H/pid/n$i); sleep 15; note "owner of l2 now n$(owner l2), next hops of bgp: $(ns r1 ip route show $(vip bgp) | grep -c nexthop)"
  for l in $(ns n$i ip -o link show type veth | grep -o 'veth[^@]*'); do ns n$i ip link del $l; done; ns n$i iptables -F; ns n$i iptables -t nat -F; ns n$i ip link set eth0 up; ns n$i ip route replace default via 192.0.2.1; ns n$i ip -6 addr add 2001:db8::$((10+i))/64 dev eth0 nodad; ns n$i ip -6 route replace default via 2001:db8::1
  for j in $(seq $NODES); do [ $j = $i ] || { ns n$i ip route replace 10.244.$j.0/24 via 192.0.2.$((10+j)); ns n$i ip -6 route replace fd00:244:0:$j::/64 via 2001:db8::$((10+j)); }; done
  note "power is back"; "$HERE/node.sh" $i; wait_for 120 k wait --for=condition=Ready node/n$i --timeout=1s; ready; note "ready again; owner of l2 n$(owner l2)"; }

do_delete-node() { local i; i=$(owner l2); note "delete node n$i, owner of l2"; k delete node n$i >/dev/null; sleep 20; k get speakers --no-headers; k get pods -A -o wide --no-headers | grep -c " n$i " || true; note "owner of l2 now n$(owner l2), next hops of bgp: $(ns r1 ip route show $(vip bgp) | grep -c nexthop)"
  on_node $i sh -c 'kill -9 $(pgrep -x kubelet)'; wait_for 60 k wait --for=condition=Ready node/n$i --timeout=1s; ready; note "back; owner of l2 n$(owner l2)"; }
# All but the Services goes and comes again.
do_reinstall() { local before after s; for s in l2 l2local bgp bgplocal; do before+="$(vip $s) "; done
  "$HERE/uninstall.sh" kustomize; sleep 5; "$HERE/install.sh" kustomize; ready; sleep 10; for s in l2 l2local bgp bgplocal; do after+="$(vip $s) "; done
  note "addresses before: $before after: $after"; [ "$before" = "$after" ] || failed=yes; }

web; ready; failed=""
{ echo "| operation    |       l2-tcp |       l2-udp |  l2local-tcp |      bgp-tcp |      bgp-udp | bgplocal-tcp |     l2-conns | l2local-conns |    bgp-conns |"; echo "|---|---|---|---|---|---|---|---|---|---|"; } >"$O/table"
for what; do echo "== $what"; streams; do_$what; streams_end "$what"; tail -n 1 "$O/table"; done
echo "Lost of sent; of 40 kept connections, how many broke."; cat "$O/table"; [ -z "$failed" ]
