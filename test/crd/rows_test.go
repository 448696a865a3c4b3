package crd

import (
	"fmt"
	"strings"
)

// bases are objects that are accepted as they are, by kind.
var bases = map[string]string{
	"IPAddressPool": `
apiVersion: clarionlb.io/v1beta1
kind: IPAddressPool
metadata: {name: test}
spec: {addresses: [203.0.113.0/24]}`,
	"L2Advertisement": `
apiVersion: clarionlb.io/v1beta1
kind: L2Advertisement
metadata: {name: test}`,
	"BGPAdvertisement": `
apiVersion: clarionlb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: test}`,
	"BGPPeer": `
apiVersion: clarionlb.io/v1beta1
kind: BGPPeer
metadata: {name: test}
spec: {myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.1}`,
	"BFDProfile": `
apiVersion: clarionlb.io/v1beta1
kind: BFDProfile
metadata: {name: test}`,
	"Community": `
apiVersion: clarionlb.io/v1beta1
kind: Community
metadata: {name: test}
spec: {communities: [{name: blue, value: "64500:1"}]}`,
}

// row is a change to the base object of a kind, as a merge patch, and what the API server answers to the result.
type row struct{ kind, name, patch, want string }

// list is a YAML list of n items: format with the numbers 0 to n-1.
func list(n int, format string) string {
	items := make([]string, n)
	for i := range items {
		items[i] = fmt.Sprintf(format, i)
	}
	return "[" + strings.Join(items, ", ") + "]"
}

// long is a text of n letters.
func long(n int) string { return strings.Repeat("a", n) }

// at is the YAML of value under a path of fields.
func at(path, value string) string {
	fields := strings.Split(path, ".")
	for i := len(fields) - 1; i >= 0; i-- {
		value = fmt.Sprintf("{%s: %s}", fields[i], value)
	}
	return value
}

func rejected() []row {
	rows := []row{
		{"IPAddressPool", "no spec", `spec: null`, `spec: Required value`},
		{"IPAddressPool", "no addresses", `spec: {addresses: null}`, `spec.addresses: Required value`},
		{"IPAddressPool", "empty addresses", `spec: {addresses: []}`, `spec.addresses in body should have at least 1 items`},
		{"IPAddressPool", "onShrink", `spec: {onShrink: Drop}`, `spec.onShrink: Unsupported value: "Drop": supported values: "Keep", "Reallocate"`},
		{"IPAddressPool", "reuseDelay over a day", `spec: {reuseDelay: 24h1s}`, `between 0s and 24h`},
		{"IPAddressPool", "reuseDelay negative", `spec: {reuseDelay: -1s}`, `between 0s and 24h`},
		{"IPAddressPool", "reuseDelay without unit", `spec: {reuseDelay: "60"}`, `between 0s and 24h`},
		{"IPAddressPool", "reuseDelay long", `spec: {reuseDelay: ` + strings.Repeat("1s", 17) + `}`, `spec.reuseDelay: Too long`},

		{"IPAddressPool", "reservation without address", `spec: {reservations: [{namespace: web, name: blog}]}`, `reservations[0].address: Required value`},
		{"IPAddressPool", "reservation without namespace", `spec: {reservations: [{address: 203.0.113.1, name: blog}]}`, `reservations[0].namespace: Required value`},
		{"IPAddressPool", "reservation without name", `spec: {reservations: [{address: 203.0.113.1, namespace: web}]}`, `reservations[0].name: Required value`},
		{"IPAddressPool", "reservation of a CIDR", `spec: {reservations: [{address: 203.0.113.0/31, namespace: web, name: blog}]}`, `must be an IP address`},
		{"IPAddressPool", "reservation not canonical", `spec: {reservations: [{address: "2001:DB8:0::1", namespace: web, name: blog}]}`, `must be in canonical form`},
		{"IPAddressPool", "reservation address long", `spec: {reservations: [{address: ` + long(46) + `, namespace: web, name: blog}]}`, `address: Too long`},
		{"IPAddressPool", "reservation namespace", `spec: {reservations: [{address: 203.0.113.1, namespace: web/blog, name: blog}]}`, `namespace in body should match`},
		{"IPAddressPool", "reservation namespace long", `spec: {reservations: [{address: 203.0.113.1, namespace: ` + long(64) + `, name: blog}]}`, `namespace: Too long`},
		{"IPAddressPool", "reservation name", `spec: {reservations: [{address: 203.0.113.1, namespace: web, name: ""}]}`, `name in body should match`},
		{"IPAddressPool", "reservation name long", `spec: {reservations: [{address: 203.0.113.1, namespace: web, name: ` + long(64) + `}]}`, `name: Too long`},
		{"IPAddressPool", "address reserved twice", `spec: {reservations: [{address: 203.0.113.1, namespace: web, name: a}, {address: 203.0.113.1, namespace: web, name: b}]}`, `Duplicate value`},
		{"IPAddressPool", "many reservations", `spec: {reservations: ` + list(257, `{address: "2001:db8::1:%x", namespace: web, name: blog}`) + `}`, `reservations: Too many`},

		{"IPAddressPool", "maxPerNamespace negative", `spec: {serviceAllocation: {maxPerNamespace: -1}}`, `should be greater than or equal to 0`},
		{"IPAddressPool", "priority negative", `spec: {serviceAllocation: {priority: -1}}`, `should be greater than or equal to 0`},
		{"IPAddressPool", "priority high", `spec: {serviceAllocation: {priority: 2147483648}}`, `should be less than or equal to 2147483647`},
		{"IPAddressPool", "namespace name", `spec: {serviceAllocation: {namespaces: [Web]}}`, `namespaces[0] in body should match`},
		{"IPAddressPool", "namespace name long", `spec: {serviceAllocation: {namespaces: [` + long(64) + `]}}`, `namespaces[0]: Too long`},
		{"IPAddressPool", "namespace twice", `spec: {serviceAllocation: {namespaces: [web, web]}}`, `namespaces[1]: Duplicate value`},
		{"IPAddressPool", "many namespaces", `spec: {serviceAllocation: {namespaces: ` + list(257, "ns%d") + `}}`, `namespaces: Too many`},

		{"L2Advertisement", "interface with slash", `spec: {interfaces: [eth0/1]}`, `must be an interface name or a shell pattern`},
		{"L2Advertisement", "interface empty", `spec: {interfaces: [""]}`, `must be an interface name or a shell pattern`},
		{"L2Advertisement", "interface long", `spec: {interfaces: [` + long(64) + `]}`, `interfaces[0]: Too long`},
		{"L2Advertisement", "interface twice", `spec: {interfaces: [eth0, eth0]}`, `interfaces[1]: Duplicate value`},
		{"L2Advertisement", "many interfaces", `spec: {interfaces: ` + list(65, "eth%d") + `}`, `interfaces: Too many`},
		{"L2Advertisement", "weight 0", `spec: {preferredNodeSelectors: [{weight: 0, preference: {}}]}`, `weight in body should be greater than or equal to 1`},
		{"L2Advertisement", "weight 101", `spec: {preferredNodeSelectors: [{weight: 101, preference: {}}]}`, `weight in body should be less than or equal to 100`},
		{"L2Advertisement", "no weight", `spec: {preferredNodeSelectors: [{preference: {}}]}`, `weight: Required value`},
		{"L2Advertisement", "no preference", `spec: {preferredNodeSelectors: [{weight: 1}]}`, `preference: Required value`},
		{"L2Advertisement", "preference without key", `spec: {preferredNodeSelectors: [{weight: 1, preference: {matchExpressions: [{operator: Exists}]}}]}`, `key: Required value`},
		{"L2Advertisement", "preference without operator", `spec: {preferredNodeSelectors: [{weight: 1, preference: {matchExpressions: [{key: rack}]}}]}`, `operator: Required value`},
		{"L2Advertisement", "preference with an operator in lower case", `spec: {preferredNodeSelectors: [{weight: 1, preference: {matchExpressions: [{key: rack, operator: exists}]}}]}`, `the operator of an expression must be`},
		{"L2Advertisement", "failback in lower case", `spec: {failback: never}`, `Unsupported value: "never"`},
		{"L2Advertisement", "many preferences", `spec: {preferredNodeSelectors: ` + list(33, `{weight: 1, preference: {matchLabels: {rack: r%d}}}`) + `}`, `preferredNodeSelectors: Too many`},

		{"BGPAdvertisement", "no address type", `spec: {addressTypes: []}`, `should have at least 1 items`},
		{"BGPAdvertisement", "unknown address type", `spec: {addressTypes: [LoadBalancerIP, NodeIP]}`, `Unsupported value: "NodeIP"`},
		{"BGPAdvertisement", "address type twice", `spec: {addressTypes: [ClusterIP, ClusterIP]}`, `Duplicate value`},
		{"BGPAdvertisement", "pools without their type", `spec: {addressTypes: [ServiceCIDR], ipAddressPools: [public]}`, `which addressTypes leaves out`},
		{"BGPAdvertisement", "pool selectors without their type", `spec: {addressTypes: [ExternalIP], externalIPRanges: [198.51.100.0/24], ipAddressPoolSelectors: [{matchLabels: {tier: gold}}]}`, `which addressTypes leaves out`},
		{"BGPAdvertisement", "external IPs without ranges", `spec: {addressTypes: [ExternalIP]}`, `the address type ExternalIP needs externalIPRanges`},
		{"BGPAdvertisement", "external IPs with no range", `spec: {addressTypes: [LoadBalancerIP, ExternalIP], externalIPRanges: []}`, `the address type ExternalIP needs externalIPRanges`},
		{"BGPAdvertisement", "ranges without external IPs", `spec: {externalIPRanges: [198.51.100.0/24]}`, `the address type ExternalIP needs externalIPRanges`},
		{"BGPAdvertisement", "an external address that is no range", `spec: {addressTypes: [ExternalIP], externalIPRanges: [198.51.100.1]}`, `must be a CIDR`},
		{"BGPAdvertisement", "an external range long", `spec: {addressTypes: [ExternalIP], externalIPRanges: [` + long(65) + `]}`, `externalIPRanges[0]: Too long`},
		{"BGPAdvertisement", "an external range twice", `spec: {addressTypes: [ExternalIP], externalIPRanges: [198.51.100.0/24, 198.51.100.0/24]}`, `externalIPRanges[1]: Duplicate value`},
		{"BGPAdvertisement", "many external ranges", `spec: {addressTypes: [ExternalIP], externalIPRanges: ` + list(65, `198.51.100.%d/32`) + `}`, `externalIPRanges: Too many`},
		{"BGPAdvertisement", "Service selectors without their types", `spec: {addressTypes: [ServiceCIDR, PodCIDR], serviceSelectors: [{matchLabels: {tier: gold}}]}`, `serviceSelectors select addresses of Services`},
		{"BGPAdvertisement", "aggregate of selected Services", `spec: {aggregationLength: 24, serviceSelectors: [{matchLabels: {tier: gold}}]}`, `serviceSelectors cannot be combined with aggregation`},
		{"BGPAdvertisement", "IPv6 aggregate of selected Services", `spec: {aggregationLengthV6: 64, serviceSelectors: [{matchLabels: {tier: gold}}]}`, `serviceSelectors cannot be combined with aggregation`},
		{"BGPAdvertisement", "prefix length 0", `spec: {aggregationLength: 0}`, `aggregationLength in body should be greater than or equal to 1`},
		{"BGPAdvertisement", "prefix length 33", `spec: {aggregationLength: 33}`, `aggregationLength in body should be less than or equal to 32`},
		{"BGPAdvertisement", "IPv6 prefix length 0", `spec: {aggregationLengthV6: 0}`, `aggregationLengthV6 in body should be greater than or equal to 1`},
		{"BGPAdvertisement", "IPv6 prefix length 129", `spec: {aggregationLengthV6: 129}`, `aggregationLengthV6 in body should be less than or equal to 128`},
		{"BGPAdvertisement", "localPref negative", `spec: {localPref: -1}`, `should be greater than or equal to 0`},
		{"BGPAdvertisement", "localPref high", `spec: {localPref: 4294967296}`, `should be less than or equal to 4294967295`},
		{"BGPAdvertisement", "med negative", `spec: {med: -1}`, `should be greater than or equal to 0`},
		{"BGPAdvertisement", "med high", `spec: {med: 4294967296}`, `should be less than or equal to 4294967295`},
		{"BGPAdvertisement", "prepend negative", `spec: {asPathPrepend: -1}`, `should be greater than or equal to 0`},
		{"BGPAdvertisement", "prepend high", `spec: {asPathPrepend: 17}`, `should be less than or equal to 16`},
		{"BGPAdvertisement", "community of one number", `spec: {communities: ["65000"]}`, `must be N:N, large:N:N:N or the name of a community`},
		{"BGPAdvertisement", "community of three numbers", `spec: {communities: ["65000:1:2"]}`, `must be N:N, large:N:N:N or the name of a community`},
		{"BGPAdvertisement", "community empty", `spec: {communities: [""]}`, `must be N:N, large:N:N:N or the name of a community`},
		{"BGPAdvertisement", "community number high", `spec: {communities: ["65000:65536"]}`, `between 0 and 65535`},
		{"BGPAdvertisement", "community number very high", `spec: {communities: ["18446744073709551616:1"]}`, `between 0 and 65535`},
		{"BGPAdvertisement", "large community number high", `spec: {communities: ["large:65000:1:4294967296"]}`, `between 0 and 4294967295`},
		{"BGPAdvertisement", "large community of two numbers", `spec: {communities: ["large:65000:1"]}`, `must be N:N, large:N:N:N or the name of a community`},
		{"BGPAdvertisement", "community long", `spec: {communities: [` + long(64) + `]}`, `communities[0]: Too long`},
		{"BGPAdvertisement", "community twice", `spec: {communities: ["65000:1", "65000:1"]}`, `communities[1]: Duplicate value`},
		{"BGPAdvertisement", "many communities", `spec: {communities: ` + list(64, `"65000:%d"`) + `}`, `communities: Too many`},

		{"BGPPeer", "no spec", `spec: null`, `spec: Required value`},
		{"BGPPeer", "no own AS number", `spec: {myASN: null}`, `spec.myASN: Required value`},
		{"BGPPeer", "own AS number 0", `spec: {myASN: 0}`, `myASN in body should be greater than or equal to 1`},
		{"BGPPeer", "own AS number high", `spec: {myASN: 4294967296}`, `myASN in body should be less than or equal to`},
		{"BGPPeer", "local AS number 0", `spec: {localASN: 0}`, `localASN in body should be greater than or equal to 1`},
		{"BGPPeer", "local AS number high", `spec: {localASN: 4294967296}`, `localASN in body should be less than or equal to`},
		{"BGPPeer", "peer's AS number 0", `spec: {peerASN: 0}`, `exactly one of peerASN and dynamicASN must be set`},
		{"BGPPeer", "peer's AS number negative", `spec: {peerASN: -1}`, `peerASN in body should be greater than or equal to 0`},
		{"BGPPeer", "peer's AS number high", `spec: {peerASN: 4294967296}`, `peerASN in body should be less than or equal to`},
		{"BGPPeer", "no AS number for the peer", `spec: {peerASN: null}`, `exactly one of peerASN and dynamicASN must be set`},
		{"BGPPeer", "two AS numbers for the peer", `spec: {dynamicASN: external}`, `exactly one of peerASN and dynamicASN must be set`},
		{"BGPPeer", "dynamic AS number", `spec: {peerASN: null, dynamicASN: any}`, `Unsupported value: "any": supported values: "internal", "external"`},
		{"BGPPeer", "no address", `spec: {peerAddress: null}`, `exactly one of peerAddress, interface and autoDiscovery must be set`},
		{"BGPPeer", "address and interface", `spec: {interface: eth0}`, `exactly one of peerAddress, interface and autoDiscovery must be set`},
		{"BGPPeer", "address and discovery", `spec: {autoDiscovery: {mode: DefaultGateway}}`, `exactly one of peerAddress, interface and autoDiscovery must be set`},
		{"BGPPeer", "interface and discovery", `spec: {peerAddress: null, interface: eth0, autoDiscovery: {mode: DefaultGateway}}`, `exactly one of peerAddress, interface and autoDiscovery must be set`},
		{"BGPPeer", "discovery without mode", `spec: {peerAddress: null, autoDiscovery: {}}`, `mode: Required value`},
		{"BGPPeer", "discovery mode", `spec: {peerAddress: null, autoDiscovery: {mode: LLDP}}`, `Unsupported value: "LLDP"`},
		{"BGPPeer", "discovery family", `spec: {peerAddress: null, autoDiscovery: {mode: DefaultGateway, addressFamily: ipv4}}`, `Unsupported value: "ipv4"`},
		{"BGPPeer", "address is a name", `spec: {peerAddress: router1}`, `spec.peerAddress: Invalid value: "router1": must be an IP address`},
		{"BGPPeer", "address with leading zeros", `spec: {peerAddress: 192.0.2.001}`, `must be an IP address`},
		{"BGPPeer", "address long", `spec: {peerAddress: ` + long(46) + `}`, `peerAddress: Too long`},
		{"BGPPeer", "address unspecified", `spec: {peerAddress: "::"}`, `must be the address of one host`},
		{"BGPPeer", "address multicast", `spec: {peerAddress: 224.0.0.1}`, `must be the address of one host`},
		{"BGPPeer", "address broadcast", `spec: {peerAddress: 255.255.255.255}`, `must be the address of one host`},
		{"BGPPeer", "address link-local", `spec: {peerAddress: "fe80::1"}`, `set interface instead of peerAddress`},
		{"BGPPeer", "source is a name", `spec: {sourceAddress: eth0}`, `spec.sourceAddress: Invalid value: "eth0": must be an IP address`},
		{"BGPPeer", "source long", `spec: {sourceAddress: ` + long(46) + `}`, `sourceAddress: Too long`},
		{"BGPPeer", "source of the other family", `spec: {sourceAddress: "2001:db8::11"}`, `sourceAddress must be of the same family as peerAddress`},
		{"BGPPeer", "interface long", `spec: {peerAddress: null, interface: ` + long(16) + `}`, `interface: Too long`},
		{"BGPPeer", "interface with slash", `spec: {peerAddress: null, interface: eth0/1}`, `must be an interface name`},
		{"BGPPeer", "vrf with space", `spec: {vrf: "red blue"}`, `must be an interface name`},
		{"BGPPeer", "vrf long", `spec: {vrf: ` + long(16) + `}`, `vrf: Too long`},
		{"BGPPeer", "port 0", `spec: {peerPort: 0}`, `peerPort in body should be greater than or equal to 1`},
		{"BGPPeer", "port high", `spec: {peerPort: 65536}`, `peerPort in body should be less than or equal to 65535`},
		{"BGPPeer", "hold time 2s", `spec: {holdTime: 2s}`, `holdTime must be whole seconds: 0s, or between 3s and 65535s`},
		{"BGPPeer", "hold time high", `spec: {holdTime: 18h12m16s}`, `holdTime must be whole seconds: 0s, or between 3s and 65535s`},
		{"BGPPeer", "hold time with a fraction", `spec: {holdTime: 3500ms}`, `holdTime must be whole seconds`},
		{"BGPPeer", "hold time without unit", `spec: {holdTime: "90"}`, `holdTime must be whole seconds`},
		{"BGPPeer", "hold time long", `spec: {holdTime: ` + strings.Repeat("1s", 17) + `}`, `holdTime: Too long`},
		{"BGPPeer", "keepalive with a fraction", `spec: {keepaliveTime: 1500ms}`, `keepaliveTime must be whole seconds, at most 65535s`},
		{"BGPPeer", "keepalive high", `spec: {keepaliveTime: 65536s}`, `keepaliveTime must be whole seconds, at most 65535s`},
		{"BGPPeer", "keepalive long", `spec: {keepaliveTime: ` + strings.Repeat("1s", 17) + `}`, `keepaliveTime: Too long`},
		{"BGPPeer", "keepalive longer than hold time", `spec: {holdTime: 9s, keepaliveTime: 10s}`, `keepaliveTime must not be longer than holdTime; a third of it is usual`},
		{"BGPPeer", "connect time negative", `spec: {connectTime: -5s}`, `connectTime must be whole seconds, at most 65535s`},
		{"BGPPeer", "connect time long", `spec: {connectTime: ` + strings.Repeat("1s", 17) + `}`, `connectTime: Too long`},
		{"BGPPeer", "connect time of a passive session", `spec: {passive: true, connectTime: 5s}`, `connectTime is for sessions that the speaker opens`},
		{"BGPPeer", "router ID is IPv6", `spec: {routerID: "2001:db8::1"}`, `must be an IPv4 address other than 0.0.0.0`},
		{"BGPPeer", "router ID 0", `spec: {routerID: 0.0.0.0}`, `must be an IPv4 address other than 0.0.0.0`},
		{"BGPPeer", "router ID long", `spec: {routerID: ` + long(16) + `}`, `routerID: Too long`},
		{"BGPPeer", "password long", `spec: {password: ` + long(81) + `}`, `password: Too long`},
		{"BGPPeer", "two passwords", `spec: {password: x, passwordSecret: {name: router}}`, `password and passwordSecret exclude each other`},
		{"BGPPeer", "secret's name long", `spec: {passwordSecret: {name: ` + long(254) + `}}`, `name: Too long`},
		{"BGPPeer", "secret's namespace long", `spec: {passwordSecret: {name: router, namespace: ` + long(64) + `}}`, `namespace: Too long`},
		{"BGPPeer", "role", `spec: {role: provider}`, `Unsupported value: "provider"`},
		{"BGPPeer", "link bandwidth", `spec: {linkBandwidth: some}`, `Unsupported value: "some"`},
		{"BGPPeer", "BFD profile long", `spec: {bfdProfile: ` + long(254) + `}`, `bfdProfile: Too long`},
		{"BGPPeer", "restart time 0", `spec: {gracefulRestart: {restartTime: 0s}}`, `restartTime must be whole seconds, between 1s and 4095s`},
		{"BGPPeer", "restart time high", `spec: {gracefulRestart: {restartTime: 4096s}}`, `restartTime must be whole seconds, between 1s and 4095s`},
		{"BGPPeer", "restart time long", `spec: {gracefulRestart: {restartTime: ` + strings.Repeat("1s", 17) + `}}`, `restartTime: Too long`},
		{"BGPPeer", "graceful restart yes and no", `spec: {enableGracefulRestart: false, gracefulRestart: {restartTime: 60s}}`, `contradicts gracefulRestart`},
		{"BGPPeer", "multihop and TTL security", `spec: {ebgpMultiHop: true, ttlSecurity: true}`, `ebgpMultiHop and ttlSecurity exclude each other`},
		{"BGPPeer", "multihop iBGP", `spec: {ebgpMultiHop: true, peerASN: 64500}`, `ebgpMultiHop is for eBGP: peerASN is the local AS number`},
		{"BGPPeer", "multihop iBGP by localASN", `spec: {ebgpMultiHop: true, localASN: 64512}`, `ebgpMultiHop is for eBGP: peerASN is the local AS number`},
		{"BGPPeer", "multihop iBGP by dynamicASN", `spec: {ebgpMultiHop: true, peerASN: null, dynamicASN: internal}`, `ebgpMultiHop is for eBGP: dynamicASN internal is iBGP`},
		{"BGPPeer", "maximum of prefixes 0", `spec: {maxPrefixesReceived: 0}`, `should be greater than or equal to 1`},
		{"BGPPeer", "maximum of prefixes high", `spec: {maxPrefixesReceived: 4294967296}`, `should be less than or equal to`},

		{"Community", "no name", `spec: {communities: [{value: "64500:1"}]}`, `communities[0].name: Required value`},
		{"Community", "no value", `spec: {communities: [{name: blue}]}`, `communities[0].value: Required value`},
		{"Community", "name is a number", `spec: {communities: [{name: "1", value: "64500:1"}]}`, `must begin with a letter`},
		{"Community", "name is well known", `spec: {communities: [{name: no-export, value: "64500:1"}]}`, `is a well-known name`},
		{"Community", "name long", `spec: {communities: [{name: ` + long(64) + `, value: "64500:1"}]}`, `name: Too long`},
		{"Community", "name twice", `spec: {communities: [{name: blue, value: "64500:1"}, {name: blue, value: "64500:2"}]}`, `communities[1]: Duplicate value`},
		{"Community", "value is a name", `spec: {communities: [{name: blue, value: no-export}]}`, `must be N:N or large:N:N:N`},
		{"Community", "value's number high", `spec: {communities: [{name: blue, value: "65536:1"}]}`, `between 0 and 65535`},
		{"Community", "value's large number high", `spec: {communities: [{name: blue, value: "large:4294967296:1:1"}]}`, `between 0 and 4294967295`},
		{"Community", "value long", `spec: {communities: [{name: blue, value: "` + strings.Repeat("1", 64) + `"}]}`, `value: Too long`},
		{"Community", "many names", `spec: {communities: ` + list(257, `{name: n%d, value: "64500:1"}`) + `}`, `communities: Too many`},
	}

	// The syntax of addresses is the same wherever there are several.
	for _, field := range []string{"addresses", "excludeAddresses"} {
		for _, r := range []struct{ name, value, want string }{
			{"is a name", `pool`, `must be a CIDR (203.0.113.0/24), a range (203.0.113.10-203.0.113.20) or an address`},
			{"is empty", ``, `must be a CIDR`},
			{"has a wrong octet", `203.0.113.256`, `must be a CIDR`},
			{"has a leading zero", `203.0.113.01`, `must be a CIDR`},
			{"is an IPv4-mapped address", `::ffff:203.0.113.1`, `must be a CIDR`},
			{"has a zone", `fe80::1%eth0`, `must be a CIDR`},
			{"has a long prefix", `203.0.113.0/33`, `must be a CIDR`},
			{"has a long IPv6 prefix", `2001:db8::/129`, `must be a CIDR`},
			{"is a range without an end", `203.0.113.1-`, `a range must be two addresses with a '-' between them`},
			{"is a range of three", `203.0.113.1-203.0.113.2-203.0.113.3`, `a range must be two addresses with a '-' between them`},
			{"is a range with a short end", `203.0.113.1-20`, `a range must be two addresses with a '-' between them`},
			{"is a range of CIDRs", `203.0.113.0/28-203.0.113.16/28`, `a range must be two addresses with a '-' between them`},
			{"is a range of two families", `203.0.113.1-2001:db8::1`, `a range must not mix IPv4 and IPv6`},
			{"is a range of two families, IPv6 first", `2001:db8::1-203.0.113.1`, `a range must not mix IPv4 and IPv6`},
			{"is a range backwards", `203.0.113.10-203.0.113.9`, `the range starts after its end`},
			{"is a range backwards in the first octet", `203.0.113.10 - 198.51.100.250`, `the range starts after its end`},
			{"is unspecified", `0.0.0.0`, `unspecified, loopback, link-local, multicast and broadcast addresses cannot be announced`},
			{"is loopback", `127.0.0.1`, `unspecified, loopback, link-local, multicast and broadcast addresses cannot be announced`},
			{"is the broadcast address", `255.255.255.255`, `unspecified, loopback, link-local, multicast and broadcast addresses cannot be announced`},
			{"is link-local", `fe80::/64`, `unspecified, loopback, link-local, multicast and broadcast addresses cannot be announced`},
			{"is multicast", `224.0.0.0/24`, `unspecified, loopback, link-local, multicast and broadcast addresses cannot be announced`},
			{"is IPv6 multicast", `ff02::/16`, `unspecified, loopback, link-local, multicast and broadcast addresses cannot be announced`},
			{"is everything", `0.0.0.0/0`, `unspecified, loopback, link-local, multicast and broadcast addresses cannot be announced`},
			{"is everything of IPv6", `::/0`, `unspecified, loopback, link-local, multicast and broadcast addresses cannot be announced`},
			{"is a range to multicast", `198.51.100.0 - 224.0.0.0`, `unspecified, loopback, link-local, multicast and broadcast addresses cannot be announced`},
			{"is a range from loopback", `::1-::ff`, `unspecified, loopback, link-local, multicast and broadcast addresses cannot be announced`},
			{"is long", strings.Repeat(" ", 82) + `203.0.113.1-203.0.113.2`, `Too long`},
		} {
			rows = append(rows, row{"IPAddressPool", field + " " + r.name, at("spec."+field, `["`+r.value+`"]`), r.want})
		}
		rows = append(rows,
			row{"IPAddressPool", field + " twice", at("spec."+field, `[198.51.100.1, 198.51.100.1]`), field + `[1]: Duplicate value`},
			row{"IPAddressPool", "many " + field, at("spec."+field, list(151, `"2001:db8::1:%x"`)), field + `: Too many`},
		)
	}

	// Selectors are the same wherever there are several.
	for _, s := range []struct{ kind, path string }{
		{"IPAddressPool", "spec.serviceAllocation.namespaceSelectors"},
		{"IPAddressPool", "spec.serviceAllocation.serviceSelectors"},
		{"L2Advertisement", "spec.ipAddressPoolSelectors"},
		{"L2Advertisement", "spec.serviceSelectors"},
		{"L2Advertisement", "spec.nodeSelectors"},
		{"BGPAdvertisement", "spec.ipAddressPoolSelectors"},
		{"BGPAdvertisement", "spec.serviceSelectors"},
		{"BGPAdvertisement", "spec.nodeSelectors"},
		{"BGPAdvertisement", "spec.peerSelectors"},
		{"BGPPeer", "spec.nodeSelectors"},
	} {
		rows = append(rows,
			row{s.kind, s.path + " without key", at(s.path, `[{matchExpressions: [{operator: Exists}]}]`), s.path + `[0].matchExpressions[0].key: Required value`},
			row{s.kind, s.path + " without operator", at(s.path, `[{matchExpressions: [{key: tier}]}]`), s.path + `[0].matchExpressions[0].operator: Required value`},
			row{s.kind, s.path + " with an operator in lower case", at(s.path, `[{matchLabels: {tier: gold}}, {matchExpressions: [{key: tier, operator: in, values: [gold]}]}]`), `the operator of an expression must be`},
			row{s.kind, s.path + " without values", at(s.path, `[{matchExpressions: [{key: tier, operator: Exists}, {key: tier, operator: NotIn}]}]`), `the operator of an expression must be`},
			row{s.kind, s.path + " with values for nothing", at(s.path, `[{matchExpressions: [{key: tier, operator: DoesNotExist, values: [gold]}]}]`), `the operator of an expression must be`},
			row{s.kind, s.path + " too many", at(s.path, list(129, `{matchLabels: {tier: t%d}}`)), s.path + `: Too many`},
		)
	}

	// Names of other objects are the same wherever there are several.
	for _, s := range []struct{ kind, path string }{
		{"L2Advertisement", "spec.ipAddressPools"},
		{"BGPAdvertisement", "spec.ipAddressPools"},
		{"BGPAdvertisement", "spec.peers"},
	} {
		rows = append(rows,
			row{s.kind, s.path + " empty", at(s.path, `[""]`), `should be at least 1 chars long`},
			row{s.kind, s.path + " long", at(s.path, `[`+long(254)+`]`), s.path + `[0]: Too long`},
			row{s.kind, s.path + " twice", at(s.path, `[public, public]`), s.path + `[1]: Duplicate value`},
			row{s.kind, s.path + " too many", at(s.path, list(129, `n%d`)), s.path + `: Too many`},
		)
	}

	// Numbers of BFD profiles.
	for _, s := range []struct {
		field     string
		low, high int
	}{
		{"receiveInterval", 10, 60000},
		{"transmitInterval", 10, 60000},
		{"echoInterval", 10, 60000},
		{"detectMultiplier", 2, 255},
		{"minimumTtl", 1, 254},
	} {
		rows = append(rows,
			row{"BFDProfile", s.field + " low", at("spec."+s.field, fmt.Sprint(s.low-1)), fmt.Sprintf("should be greater than or equal to %d", s.low)},
			row{"BFDProfile", s.field + " high", at("spec."+s.field, fmt.Sprint(s.high+1)), fmt.Sprintf("should be less than or equal to %d", s.high)},
		)
	}
	return rows
}

func accepted() []row {
	rows := []row{
		{kind: "IPAddressPool", name: "everything", patch: `
spec:
  addresses: [203.0.113.0/24, "2001:db8:f::/64"]
  excludeAddresses: [203.0.113.0-203.0.113.9, 203.0.113.255, "2001:db8:f::/120"]
  reservations:
  - {address: 203.0.113.80, namespace: web, name: blog}
  - {address: "2001:db8:f::80", namespace: web, name: blog}
  autoAssign: false
  avoidBuggyIPs: true
  serviceAllocation:
    priority: 2147483647
    maxPerNamespace: 7
    namespaces: [web, shop-1]
    namespaceSelectors: [{matchLabels: {tenant: a}}]
    serviceSelectors:
    - matchExpressions: [{key: tier, operator: In, values: [gold, silver]}, {key: internal, operator: DoesNotExist}]
  onShrink: Reallocate
  reuseDelay: 1m30s
  sharing: {crossNamespace: true}`},
		{kind: "IPAddressPool", name: "as many addresses as may be", patch: `spec: {addresses: ` + list(150, `"192.0.2.%d-192.0.2.200"`) + `, excludeAddresses: ` + list(150, `"2001:db8:f::%x - 2001:db8:f::ffff"`) + `}`},
		{kind: "IPAddressPool", name: "as many reservations as may be", patch: `spec: {reservations: ` + list(256, `{address: "2001:db8::1:%x", namespace: web, name: blog}`) + `}`},
		{kind: "L2Advertisement", name: "everything", patch: `
spec:
  ipAddressPools: [lan]
  ipAddressPoolSelectors: [{matchLabels: {tier: gold}}]
  serviceSelectors: [{matchExpressions: [{key: tier, operator: NotIn, values: [bronze]}]}]
  nodeSelectors: [{matchLabels: {rack: r1}}, {matchLabels: {rack: r2}}]
  preferredNodeSelectors:
  - {weight: 1, preference: {matchLabels: {rack: r1}}}
  - {weight: 100, preference: {matchExpressions: [{key: fast, operator: Exists}]}}
  interfaces: [eth0, "bond*", enp0s31f6.100]
  failback: Never`},
		{kind: "BGPAdvertisement", name: "everything", patch: `
spec:
  ipAddressPools: [public]
  ipAddressPoolSelectors: [{matchLabels: {tier: gold}}]
  nodeSelectors: [{matchLabels: {rack: r1}}]
  peers: [tor1]
  peerSelectors: [{matchLabels: {rack: r1}}]
  addressTypes: [LoadBalancerIP, ExternalIP, ClusterIP, ServiceCIDR, PodCIDR]
  externalIPRanges: [198.51.100.0/24, "2001:db8:e::/64"]
  aggregationLength: 24
  aggregationLengthV6: 64
  localPref: 4294967295
  med: 0
  asPathPrepend: 16
  communities: [no-export, blue, "0:0", "65535:65535", "large:4294967295:0:4294967295"]
  weighted: true`},
		{kind: "BGPAdvertisement", name: "many expressions in a selector", patch: `spec: {nodeSelectors: [{}, {matchExpressions: ` + list(30, `{key: k%d, operator: In, values: [a, b]}`) + `}]}`},
		{kind: "BGPAdvertisement", name: "selected Services, one by one", patch: `spec: {serviceSelectors: [{matchLabels: {tier: gold}}], aggregationLength: 32, aggregationLengthV6: 128}`},
		{kind: "BGPAdvertisement", name: "selected Services' cluster addresses", patch: `spec: {addressTypes: [ClusterIP], serviceSelectors: [{matchLabels: {tier: gold}}]}`},
		{kind: "BGPAdvertisement", name: "the cluster's ranges", patch: `spec: {addressTypes: [ServiceCIDR, PodCIDR]}`},
		{kind: "BGPPeer", name: "everything", patch: `
spec:
  localASN: 64501
  sourceAddress: 192.0.2.11
  peerPort: 65535
  holdTime: 9s
  keepaliveTime: 3s
  connectTime: 1m0s
  routerID: 192.0.2.11
  nodeSelectors: [{matchLabels: {rack: r1}}]
  passwordSecret: {name: tor1, namespace: clarion-system}
  bfdProfile: fast
  gracefulRestart: {restartTime: 4095s}
  ebgpMultiHop: true
  vrf: red
  dualStackAddressFamily: true
  maxPrefixesReceived: 1`},
		{kind: "BGPPeer", name: "no hold time", patch: `spec: {holdTime: 0s, keepaliveTime: 30s}`},
		{kind: "BGPPeer", name: "MetalLB's zeros", patch: `spec: {peerASN: 0, dynamicASN: external, holdTime: 0s, keepaliveTime: 0s, connectTime: 0s, passwordSecret: {}, password: "", bfdProfile: "", vrf: "", interface: "", sourceAddress: "", routerID: ""}`},
		{kind: "BGPPeer", name: "keepalive as long as hold time", patch: `spec: {holdTime: 9s, keepaliveTime: 9s}`},
		{kind: "BGPPeer", name: "empty dynamic AS number", patch: `spec: {dynamicASN: "", peerASN: 64512, passive: true, connectTime: 0s}`},
		{kind: "BGPPeer", name: "role and link bandwidth", patch: `spec: {role: customer, linkBandwidth: both}`},
		{kind: "BGPPeer", name: "hold time 0", patch: `spec: {holdTime: "0"}`},
		{kind: "BGPPeer", name: "longest hold time", patch: `spec: {holdTime: 18h12m15s, keepaliveTime: 21845s}`},
		{kind: "BGPPeer", name: "shortest hold time", patch: `spec: {holdTime: 3000ms, keepaliveTime: 1s}`},
		{kind: "BGPPeer", name: "keepalive alone", patch: `spec: {keepaliveTime: 30s}`},
		{kind: "BGPPeer", name: "unnumbered", patch: `spec: {peerAddress: null, interface: eth0, peerASN: null, dynamicASN: external}`},
		{kind: "BGPPeer", name: "default gateway", patch: `spec: {peerAddress: null, autoDiscovery: {mode: DefaultGateway, addressFamily: IPv6}}`},
		{kind: "BGPPeer", name: "iBGP", patch: `spec: {peerASN: 64500}`},
		{kind: "BGPPeer", name: "four-octet AS numbers", patch: `spec: {myASN: 4294967295, peerASN: 4200000000}`},
		{kind: "BGPPeer", name: "multihop by localASN", patch: `spec: {ebgpMultiHop: true, peerASN: 64500, localASN: 64501}`},
		{kind: "BGPPeer", name: "IPv6", patch: `spec: {peerAddress: "2001:db8::1", sourceAddress: "2001:DB8:0:0::11"}`},
		{kind: "BGPPeer", name: "IPv4 link-local, as clouds have it", patch: `spec: {peerAddress: 169.254.169.1}`},
		{kind: "BGPPeer", name: "router on the node", patch: `spec: {peerAddress: 127.0.0.1}`},
		{kind: "BGPPeer", name: "passive with TTL security", patch: `spec: {passive: true, ttlSecurity: true, password: x}`},
		{kind: "BGPPeer", name: "graceful restart switched on twice", patch: `spec: {enableGracefulRestart: true, gracefulRestart: {}}`},
		{kind: "BFDProfile", name: "lowest", patch: `spec: {receiveInterval: 10, transmitInterval: 10, echoInterval: 10, detectMultiplier: 2, minimumTtl: 1}`},
		{kind: "BFDProfile", name: "highest", patch: `spec: {receiveInterval: 60000, transmitInterval: 60000, echoInterval: 60000, detectMultiplier: 255, minimumTtl: 254, echoMode: true, passiveMode: true}`},
		{kind: "Community", name: "everything", patch: `spec: {communities: [{name: Blue.2_x-y, value: "0:65535"}, {name: red, value: "large:4294967295:0:1"}]}`},
		{kind: "Community", name: "none", patch: `spec: null`},
	}
	for _, a := range []string{
		"203.0.113.0/24", "192.168.10.100/24", "2001:db8::1/64", "203.0.113.1/32", "64.0.0.0/3", "203.0.113.1", "203.0.113.1-203.0.113.1", "203.0.113.9 - 203.0.113.10",
		"9.255.255.255-10.0.0.0", "192.0.2.255-192.0.3.0", "2001:db8::/64", "2001:db8::1", "2001:db8::1-2001:db8::ffff",
		"2001:DB8::1 -2001:db8:0:0::2", "2000::/3",
	} {
		rows = append(rows, row{kind: "IPAddressPool", name: a, patch: at("spec.addresses", `["`+a+`"]`)})
	}
	return rows
}
