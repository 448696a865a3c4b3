package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Selectors are label selectors of which one must match.
//
// The rule looks at the first eight expressions of each, since CEL bounds what a rule may cost by how many there could be;
// what is wrong with the others makes the condition Ready False.
// +kubebuilder:validation:MaxItems=128
// +kubebuilder:validation:XValidation:rule="self.all(s, !has(s.matchExpressions) || [0, 1, 2, 3, 4, 5, 6, 7].filter(i, i < size(s.matchExpressions)).map(i, s.matchExpressions[i]).all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || size(e.values) == 0)))",message="the operator of an expression must be In or NotIn, with values, or Exists or DoesNotExist, without"
// +listType=atomic
type Selectors []metav1.LabelSelector

// L2AdvertisementSpec says which addresses are announced by ARP and NDP, by which nodes, on which interfaces.
type L2AdvertisementSpec struct {
	// ipAddressPools names the pools whose addresses are announced, besides those that ipAddressPoolSelectors match.
	// Both empty: every pool.
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +listType=set
	// +optional
	IPAddressPools []string `json:"ipAddressPools,omitempty"`

	// ipAddressPoolSelectors selects pools by their labels; a pool needs to match one of them.
	// +optional
	IPAddressPoolSelectors Selectors `json:"ipAddressPoolSelectors,omitempty"`

	// serviceSelectors restricts the advertisement to Services that one of the selectors matches. Empty: all.
	// +optional
	ServiceSelectors Selectors `json:"serviceSelectors,omitempty"`

	// nodeSelectors restricts the announcing nodes to those that one of the selectors matches. Empty: all.
	// +optional
	NodeSelectors Selectors `json:"nodeSelectors,omitempty"`

	// preferredNodeSelectors ranks the announcing nodes: a node's rank is the sum of the weights whose preference
	// matches it. Among the nodes of the highest rank addresses are spread evenly.
	// +kubebuilder:validation:MaxItems=32
	// +listType=atomic
	// +optional
	PreferredNodeSelectors []PreferredNodeSelector `json:"preferredNodeSelectors,omitempty"`

	// interfaces names the interfaces that the addresses are announced on; a name may be a shell pattern ("eth*").
	// A node without any of them is not a candidate. Empty: every interface that is not the cluster's own.
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^[^/ ]+$')",message="must be an interface name or a shell pattern, without '/' or spaces"
	// +listType=set
	// +optional
	Interfaces []string `json:"interfaces,omitempty"`

	// failback says what becomes of an address when a node comes that ranks before its owner: one that was down, or a new
	// one. Always (the default): that node takes the address. Never: the owner keeps it for as long as it can serve it. Each
	// move ends the established TCP connections. Never counts if one of the advertisements of an address says so.
	// +optional
	Failback Failback `json:"failback,omitempty"`
}

// Failback says whether an address goes back to a node that ranks before its owner.
// +kubebuilder:validation:Enum=Always;Never
type Failback string

const (
	// FailbackAlways has an address owned by the node that ranks first.
	FailbackAlways Failback = "Always"
	// FailbackNever leaves an address with its owner for as long as that can serve it.
	FailbackNever Failback = "Never"
)

// PreferredNodeSelector adds weight to the rank of the nodes that preference matches.
type PreferredNodeSelector struct {
	// weight is added to the node's rank, between 1 and 100.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Weight int32 `json:"weight"`
	// preference selects nodes by their labels.
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || [0, 1, 2, 3, 4, 5, 6, 7].filter(i, i < size(self.matchExpressions)).map(i, self.matchExpressions[i]).all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || size(e.values) == 0))",message="the operator of an expression must be In or NotIn, with values, or Exists or DoesNotExist, without"
	Preference metav1.LabelSelector `json:"preference"`
}

// AdvertisementStatus says whether the advertisement is in use as written.
type AdvertisementStatus struct {
	// conditions: Ready.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// L2Advertisement announces the addresses of pools on the local network, by ARP and NDP.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=l2ad,categories=clarion
// +kubebuilder:printcolumn:name="Pools",type=string,JSONPath=`.spec.ipAddressPools`
// +kubebuilder:printcolumn:name="Interfaces",type=string,JSONPath=`.spec.interfaces`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type L2Advertisement struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec L2AdvertisementSpec `json:"spec,omitempty"`
	// +optional
	Status AdvertisementStatus `json:"status,omitempty"`
}

// L2AdvertisementList is a list of L2Advertisement.
// +kubebuilder:object:root=true
type L2AdvertisementList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []L2Advertisement `json:"items"`
}

// AddressType is a kind of address that a BGPAdvertisement announces.
// +kubebuilder:validation:Enum=LoadBalancerIP;ExternalIP;ClusterIP;ServiceCIDR;PodCIDR
type AddressType string

const (
	// AddressLoadBalancerIP is the addresses in status.loadBalancer.ingress of the Services.
	AddressLoadBalancerIP AddressType = "LoadBalancerIP"
	// AddressExternalIP is the addresses in spec.externalIPs of the Services.
	AddressExternalIP AddressType = "ExternalIP"
	// AddressClusterIP is the Services' cluster addresses, a route each.
	AddressClusterIP AddressType = "ClusterIP"
	// AddressServiceCIDR is the cluster's ServiceCIDR ranges (KEP-1880), from every node.
	AddressServiceCIDR AddressType = "ServiceCIDR"
	// AddressPodCIDR is the node's own spec.podCIDRs.
	AddressPodCIDR AddressType = "PodCIDR"
)

// BGPAdvertisementSpec says which prefixes are announced to which BGP peers, by which nodes, with which attributes.
// +kubebuilder:validation:XValidation:rule="!has(self.serviceSelectors) || size(self.serviceSelectors) == 0 || ((!has(self.aggregationLength) || self.aggregationLength == 32) && (!has(self.aggregationLengthV6) || self.aggregationLengthV6 == 128))",message="serviceSelectors cannot be combined with aggregation: an aggregate covers Services that are not selected"
// +kubebuilder:validation:XValidation:rule="'LoadBalancerIP' in self.addressTypes || ((!has(self.ipAddressPools) || size(self.ipAddressPools) == 0) && (!has(self.ipAddressPoolSelectors) || size(self.ipAddressPoolSelectors) == 0))",message="pools are selected for the address type LoadBalancerIP, which addressTypes leaves out"
// +kubebuilder:validation:XValidation:rule="(has(self.addressTypes) && 'ExternalIP' in self.addressTypes) == (has(self.externalIPRanges) && size(self.externalIPRanges) > 0)",message="the address type ExternalIP needs externalIPRanges, and they need it: which external IPs may be announced is not for whoever creates a Service to say"
// +kubebuilder:validation:XValidation:rule="'LoadBalancerIP' in self.addressTypes || 'ExternalIP' in self.addressTypes || 'ClusterIP' in self.addressTypes || !has(self.serviceSelectors) || size(self.serviceSelectors) == 0",message="serviceSelectors select addresses of Services, which addressTypes leaves out"
type BGPAdvertisementSpec struct {
	// ipAddressPools names the pools whose addresses are announced, besides those that ipAddressPoolSelectors match.
	// Both empty: every pool. Applies to the address type LoadBalancerIP.
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +listType=set
	// +optional
	IPAddressPools []string `json:"ipAddressPools,omitempty"`

	// ipAddressPoolSelectors selects pools by their labels; a pool needs to match one of them.
	// +optional
	IPAddressPoolSelectors Selectors `json:"ipAddressPoolSelectors,omitempty"`

	// serviceSelectors restricts the advertisement to Services that one of the selectors matches. Empty: all.
	// Applies to the address types LoadBalancerIP, ExternalIP and ClusterIP.
	// +optional
	ServiceSelectors Selectors `json:"serviceSelectors,omitempty"`

	// nodeSelectors restricts the announcing nodes to those that one of the selectors matches. Empty: all.
	// +optional
	NodeSelectors Selectors `json:"nodeSelectors,omitempty"`

	// peers names the BGPPeers to announce to, besides those that peerSelectors match. Both empty: every peer.
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +listType=set
	// +optional
	Peers []string `json:"peers,omitempty"`

	// peerSelectors selects BGPPeers by their labels; a peer needs to match one of them.
	// +optional
	PeerSelectors Selectors `json:"peerSelectors,omitempty"`

	// addressTypes says what is announced: LoadBalancerIP, ExternalIP, ClusterIP, ServiceCIDR, PodCIDR.
	// +kubebuilder:default={LoadBalancerIP}
	// +kubebuilder:validation:MinItems=1
	// +listType=set
	// +optional
	AddressTypes []AddressType `json:"addressTypes,omitempty"`

	// externalIPRanges are the ranges that spec.externalIPs of Services must be in to be announced, as CIDRs. Addresses of
	// nodes, pods, ClusterIPs, BGP peers, IPAddressPools and other Services are never announced as external IPs, whatever
	// the ranges say. Applies to the address type ExternalIP, which needs it.
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	// +optional
	ExternalIPRanges []CIDR `json:"externalIPRanges,omitempty"`

	// aggregationLength is the prefix length that IPv4 Service addresses are announced with, 1 to 32.
	// +kubebuilder:default=32
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=32
	// +optional
	AggregationLength *int32 `json:"aggregationLength,omitempty"`

	// aggregationLengthV6 is the prefix length that IPv6 Service addresses are announced with, 1 to 128.
	// +kubebuilder:default=128
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=128
	// +optional
	AggregationLengthV6 *int32 `json:"aggregationLengthV6,omitempty"`

	// localPref is the LOCAL_PREF attribute on iBGP sessions, 0 to 4294967295; the higher is preferred (RFC 4271
	// section 5.1.5). Not sent on eBGP sessions. Unset: 100.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	// +optional
	LocalPref *int64 `json:"localPref,omitempty"`

	// med is the MULTI_EXIT_DISC attribute, 0 to 4294967295; the lower is preferred (RFC 4271 section 5.1.4). Unset:
	// not sent.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	// +optional
	MED *int64 `json:"med,omitempty"`

	// asPathPrepend is how many times the local AS number is put before the AS path, besides once as always; 0 to 16.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=16
	// +optional
	ASPathPrepend int32 `json:"asPathPrepend,omitempty"`

	// communities are attached to the routes: "65000:100" (RFC 1997), "large:65000:1:2" (RFC 8092), a well-known name
	// (no-export, no-advertise, no-export-subconfed, no-peer, graceful-shutdown, accept-own, blackhole) or a name that
	// a Community object defines.
	// +kubebuilder:validation:MaxItems=63
	// +listType=set
	// +optional
	Communities []CommunityReference `json:"communities,omitempty"`

	// weighted sends the link bandwidth extended community (RFC 10005), in proportion to the ready endpoints on the
	// node, so that routers can send each node its share.
	// +optional
	Weighted bool `json:"weighted,omitempty"`
}

// CIDR is a range of addresses in CIDR notation ("203.0.113.0/24").
// +kubebuilder:validation:MaxLength=43
// +kubebuilder:validation:XValidation:rule="isCIDR(self)",message="must be a CIDR (203.0.113.0/24)"
type CIDR string

// CommunityReference is a community's value or its name.
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+:[0-9]+|large:[0-9]+:[0-9]+:[0-9]+|[A-Za-z][A-Za-z0-9._-]*)$')",message="must be N:N, large:N:N:N or the name of a community"
// +kubebuilder:validation:XValidation:rule="!self.matches('^[0-9]+:[0-9]+$') || self.split(':').all(n, n.size() <= 5 && int(n) <= 65535)",message="the numbers of a standard community must be between 0 and 65535; for larger ones write large:N:N:N"
// +kubebuilder:validation:XValidation:rule="!self.matches('^large:[0-9]+:[0-9]+:[0-9]+$') || self.substring(6).split(':').all(n, n.size() <= 10 && int(n) <= 4294967295)",message="the numbers of a large community must be between 0 and 4294967295"
type CommunityReference string

// BGPAdvertisement announces the addresses of Services, or the cluster's ranges, to BGP peers.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=bgpad,categories=clarion
// +kubebuilder:printcolumn:name="Types",type=string,JSONPath=`.spec.addressTypes`
// +kubebuilder:printcolumn:name="Pools",type=string,JSONPath=`.spec.ipAddressPools`
// +kubebuilder:printcolumn:name="Peers",type=string,JSONPath=`.spec.peers`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type BGPAdvertisement struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:default={}
	// +optional
	Spec BGPAdvertisementSpec `json:"spec,omitempty"`
	// +optional
	Status AdvertisementStatus `json:"status,omitempty"`
}

// BGPAdvertisementList is a list of BGPAdvertisement.
// +kubebuilder:object:root=true
type BGPAdvertisementList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BGPAdvertisement `json:"items"`
}

// CommunitySpec gives names to community values.
type CommunitySpec struct {
	// communities are the names and their values.
	// +kubebuilder:validation:MaxItems=256
	// +listType=map
	// +listMapKey=name
	// +optional
	Communities []CommunityAlias `json:"communities,omitempty"`
}

// CommunityAlias is a name for a community value.
type CommunityAlias struct {
	// name is what a BGPAdvertisement writes in its communities. It must not be one of the well-known names.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z][A-Za-z0-9._-]*$')",message="must begin with a letter and hold only letters, digits, '.', '_' and '-'"
	// +kubebuilder:validation:XValidation:rule="!(self in ['no-export', 'no-advertise', 'no-export-subconfed', 'no-peer', 'graceful-shutdown', 'accept-own', 'blackhole', 'large'])",message="is a well-known name: choose another"
	Name string `json:"name"`
	// value is "N:N" (RFC 1997, each 0 to 65535) or "large:N:N:N" (RFC 8092, each 0 to 4294967295).
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+:[0-9]+|large:[0-9]+:[0-9]+:[0-9]+)$')",message="must be N:N or large:N:N:N"
	// +kubebuilder:validation:XValidation:rule="!self.matches('^[0-9]+:[0-9]+$') || self.split(':').all(n, n.size() <= 5 && int(n) <= 65535)",message="the numbers of a standard community must be between 0 and 65535; for larger ones write large:N:N:N"
	// +kubebuilder:validation:XValidation:rule="!self.matches('^large:[0-9]+:[0-9]+:[0-9]+$') || self.substring(6).split(':').all(n, n.size() <= 10 && int(n) <= 4294967295)",message="the numbers of a large community must be between 0 and 4294967295"
	Value string `json:"value"`
}

// Community gives names to BGP community values, for use in BGPAdvertisements.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=clarion
// +kubebuilder:printcolumn:name="Names",type=string,JSONPath=`.spec.communities[*].name`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type Community struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec CommunitySpec `json:"spec,omitempty"`
	// +optional
	Status AdvertisementStatus `json:"status,omitempty"`
}

// CommunityList is a list of Community.
// +kubebuilder:object:root=true
type CommunityList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Community `json:"items"`
}
