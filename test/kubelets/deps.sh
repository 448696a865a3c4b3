#!/bin/bash
# The Debian packages that all of this needs (as root); none of the services in them is started.
set -euo pipefail
for p in containerd runc busybox nc gcc openssl python3 /usr/lib/cni/ptp /usr/lib/frr/bgpd iptables nft conntrack ip curl wget; do command -v $p >/dev/null || missing=yes; done
[ -n "${missing:-}" ] || exit 0
[ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; trap 'rm /usr/sbin/policy-rc.d' EXIT; }
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends containerd runc containernetworking-plugins iptables nftables conntrack iproute2 frr busybox curl wget netcat-openbsd gcc libc6-dev openssl python3 procps
