package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BGPPeerSpec describes a router that speakers hold BGP sessions with.
// +kubebuilder:validation:XValidation:rule="(has(self.peerASN) && self.peerASN != 0) != (has(self.dynamicASN) && size(self.dynamicASN) > 0)",message="exactly one of peerASN and dynamicASN must be set"
// +kubebuilder:validation:XValidation:rule="[has(self.peerAddress) && size(self.peerAddress) > 0, has(self.interface) && size(self.interface) > 0, has(self.autoDiscovery)].filter(x, x).size() == 1",message="exactly one of peerAddress, interface and autoDiscovery must be set"
// +kubebuilder:validation:XValidation:rule="!(has(self.password) && size(self.password) > 0) || !(has(self.passwordSecret) && has(self.passwordSecret.name) && size(self.passwordSecret.name) > 0)",message="password and passwordSecret exclude each other"
// +kubebuilder:validation:XValidation:rule="!(has(self.ebgpMultiHop) && self.ebgpMultiHop && has(self.ttlSecurity) && self.ttlSecurity)",message="ebgpMultiHop and ttlSecurity exclude each other"
// +kubebuilder:validation:XValidation:rule="!(has(self.ebgpMultiHop) && self.ebgpMultiHop && has(self.peerASN) && self.peerASN == (has(self.localASN) ? self.localASN : self.myASN))",message="ebgpMultiHop is for eBGP: peerASN is the local AS number"
// +kubebuilder:validation:XValidation:rule="!(has(self.ebgpMultiHop) && self.ebgpMultiHop && has(self.dynamicASN) && self.dynamicASN == 'internal')",message="ebgpMultiHop is for eBGP: dynamicASN internal is iBGP"
// +kubebuilder:validation:XValidation:rule="!has(self.keepaliveTime) || !has(self.holdTime) || duration(self.holdTime) == duration('0s') || duration(self.keepaliveTime) <= duration(self.holdTime)",message="keepaliveTime must not be longer than holdTime; a third of it is usual"
// +kubebuilder:validation:XValidation:rule="!(has(self.passive) && self.passive && has(self.connectTime) && duration(self.connectTime) > duration('0s'))",message="connectTime is for sessions that the speaker opens: it excludes passive"
// +kubebuilder:validation:XValidation:rule="!has(self.gracefulRestart) || !has(self.enableGracefulRestart) || self.enableGracefulRestart",message="enableGracefulRestart: false contradicts gracefulRestart: leave one of them out"
// +kubebuilder:validation:XValidation:rule="!has(self.sourceAddress) || !has(self.peerAddress) || !isIP(self.sourceAddress) || !isIP(self.peerAddress) || ip(self.sourceAddress).family() == ip(self.peerAddress).family()",message="sourceAddress must be of the same family as peerAddress"
type BGPPeerSpec struct {
	// myASN is the AS number of the cluster, 1 to 4294967295.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
	MyASN int64 `json:"myASN"`

	// localASN replaces myASN towards this peer, 1 to 4294967295.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
	// +optional
	LocalASN *int64 `json:"localASN,omitempty"`

	// peerASN is the AS number that the peer must have, 1 to 4294967295; 0 is the same as unset.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	// +optional
	PeerASN *int64 `json:"peerASN,omitempty"`

	// dynamicASN takes the peer's AS number from its OPEN message: "internal" accepts only the local AS number,
	// "external" only another.
	// +kubebuilder:validation:Enum=internal;external;""
	// +optional
	DynamicASN string `json:"dynamicASN,omitempty"`

	// peerAddress is the peer's address.
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || isIP(self)",message="must be an IP address"
	// +kubebuilder:validation:XValidation:rule="!isIP(self) || ip(self).isGlobalUnicast() || ip(self).isLinkLocalUnicast() || ip(self).isLoopback()",message="must be the address of one host, neither unspecified nor multicast"
	// +kubebuilder:validation:XValidation:rule="!isIP(self) || ip(self).family() == 4 || !ip(self).isLinkLocalUnicast()",message="a link-local peer is found by its interface: set interface instead of peerAddress"
	// +optional
	PeerAddress string `json:"peerAddress,omitempty"`

	// interface peers with the router on this interface over IPv6 link-local addresses, without configured addresses
	// ("unnumbered"); IPv4 routes then have IPv6 next hops (RFC 8950).
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="self.matches('^[^/ ]*$')",message="must be an interface name, without '/' or spaces"
	// +optional
	Interface string `json:"interface,omitempty"`

	// autoDiscovery finds the peer's address on each node.
	// +optional
	AutoDiscovery *AutoDiscovery `json:"autoDiscovery,omitempty"`

	// sourceAddress is the node's address that the session uses. Unset: the kernel's choice.
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || isIP(self)",message="must be an IP address"
	// +optional
	SourceAddress string `json:"sourceAddress,omitempty"`

	// peerPort is the peer's TCP port, 1 to 65535.
	// +kubebuilder:default=179
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	// +optional
	PeerPort int32 `json:"peerPort,omitempty"`

	// holdTime is the proposed hold time: how long the session lives without a message from the peer. Whole seconds, 3s to
	// 65535s (RFC 4271 section 4.2); the lower one of the two sides counts. 0s or unset: three times keepaliveTime, and 90s
	// without one. A change counts from the next session on.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^(0|([0-9]{1,9}(ms|s|m|h))+)$') && duration(self).getMilliseconds() % 1000 == 0 && (duration(self) == duration('0s') || (duration(self) >= duration('3s') && duration(self) <= duration('65535s')))",message="holdTime must be whole seconds: 0s, or between 3s and 65535s"
	// +optional
	HoldTime *metav1.Duration `json:"holdTime,omitempty"`

	// keepaliveTime is the longest time between keepalive messages, whole seconds, not longer than holdTime. 0s or unset: a
	// third of the negotiated hold time, which is also the most that is used (RFC 4271 section 4.4). A change counts from
	// the next session on.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^(0|([0-9]{1,9}(ms|s|m|h))+)$') && duration(self) >= duration('0s') && duration(self) <= duration('65535s') && duration(self).getMilliseconds() % 1000 == 0",message="keepaliveTime must be whole seconds, at most 65535s"
	// +optional
	KeepaliveTime *metav1.Duration `json:"keepaliveTime,omitempty"`

	// connectTime is the longest time between attempts to connect, whole seconds, 1s to 65535s. 0s or unset: 1s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^(0|([0-9]{1,9}(ms|s|m|h))+)$') && duration(self) >= duration('0s') && duration(self) <= duration('65535s') && duration(self).getMilliseconds() % 1000 == 0",message="connectTime must be whole seconds, at most 65535s"
	// +optional
	ConnectTime *metav1.Duration `json:"connectTime,omitempty"`

	// routerID is the BGP identifier, written as an IPv4 address. Unset: the node's IPv4 address, and on a node without
	// one a number made of the node's name.
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="size(self) == 0 || isIP(self) && ip(self).family() == 4 && self != '0.0.0.0'",message="must be an IPv4 address other than 0.0.0.0"
	// +optional
	RouterID string `json:"routerID,omitempty"`

	// nodeSelectors restricts the session to nodes that one of the selectors matches. Empty: all.
	// +optional
	NodeSelectors Selectors `json:"nodeSelectors,omitempty"`

	// password authenticates the session by TCP MD5 signatures (RFC 2385). It is readable to everyone who may read this
	// object: prefer passwordSecret.
	// +kubebuilder:validation:MaxLength=80
	// +optional
	Password string `json:"password,omitempty"`

	// passwordSecret names a Secret of type kubernetes.io/basic-auth in Clarion's namespace whose key "password"
	// authenticates the session by TCP MD5 signatures (RFC 2385).
	// +optional
	PasswordSecret *SecretReference `json:"passwordSecret,omitempty"`

	// bfdProfile names a BFDProfile: the session goes down as soon as BFD says so (RFC 5882).
	// +kubebuilder:validation:MaxLength=253
	// +optional
	BFDProfile string `json:"bfdProfile,omitempty"`

	// enableGracefulRestart asks the peer to keep the routes while a speaker restarts (RFC 4724), with the defaults of
	// gracefulRestart.
	// +optional
	EnableGracefulRestart bool `json:"enableGracefulRestart,omitempty"`

	// gracefulRestart asks the peer to keep the routes while a speaker restarts (RFC 4724), with these settings.
	// +optional
	GracefulRestart *GracefulRestart `json:"gracefulRestart,omitempty"`

	// ebgpMultiHop allows an eBGP peer that is more than one hop away.
	// +optional
	EBGPMultiHop bool `json:"ebgpMultiHop,omitempty"`

	// ttlSecurity drops packets of the session that were forwarded on the way: sent and accepted with TTL 255 only
	// (GTSM, RFC 5082). The peer must do the same.
	// +optional
	TTLSecurity bool `json:"ttlSecurity,omitempty"`

	// passive waits for the peer to open the session.
	// +optional
	Passive bool `json:"passive,omitempty"`

	// vrf binds the session to this VRF device.
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="self.matches('^[^/ ]*$')",message="must be an interface name, without '/' or spaces"
	// +optional
	VRF string `json:"vrf,omitempty"`

	// dualStackAddressFamily carries IPv4 and IPv6 routes in one session. Unset or false: routes of the family of the
	// session's addresses only; a session on an interface always carries both.
	// +optional
	DualStackAddressFamily bool `json:"dualStackAddressFamily,omitempty"`

	// disableMP has no effect. It is accepted because MetalLB's files may hold it, where it has none either.
	// +optional
	DisableMP bool `json:"disableMP,omitempty"`

	// role customer says in OPEN that the cluster is the customer of the router (RFC 9234): a router that says that it is
	// anything but the provider is refused.
	// +kubebuilder:validation:Enum=customer;""
	// +optional
	Role string `json:"role,omitempty"`

	// linkBandwidth is the form in which weights of weighted advertisements are sent (RFC 10005): as a community that stays
	// with the router's AS, as one that routers may hand on, or both. Unset: nonTransitive.
	// +kubebuilder:validation:Enum=nonTransitive;transitive;both;""
	// +optional
	LinkBandwidth string `json:"linkBandwidth,omitempty"`

	// maxPrefixesReceived ends the session when the peer sends more prefixes than this, 1 to 4294967295. Clarion uses none
	// of them. Unset: nothing ends the session, and no more than 100000 are counted.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
	// +optional
	MaxPrefixesReceived *int64 `json:"maxPrefixesReceived,omitempty"`
}

// AutoDiscovery finds the peer's address on each node.
type AutoDiscovery struct {
	// mode DefaultGateway peers with the gateway of the node's default route, with each of them if it has several.
	// +kubebuilder:validation:Enum=DefaultGateway
	Mode string `json:"mode"`
	// addressFamily of the default route.
	// +kubebuilder:validation:Enum=IPv4;IPv6
	// +kubebuilder:default=IPv4
	// +optional
	AddressFamily string `json:"addressFamily,omitempty"`
}

// GracefulRestart are the settings of BGP graceful restart (RFC 4724).
type GracefulRestart struct {
	// restartTime is how long the peer keeps the routes after the session broke, whole seconds, 1s to 4095s.
	// +kubebuilder:default="120s"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^(0|([0-9]{1,9}(ms|s|m|h))+)$') && duration(self) >= duration('1s') && duration(self) <= duration('4095s') && duration(self).getMilliseconds() % 1000 == 0",message="restartTime must be whole seconds, between 1s and 4095s"
	// +optional
	RestartTime *metav1.Duration `json:"restartTime,omitempty"`
}

// SecretReference names a Secret.
type SecretReference struct {
	// name of the Secret; empty is the same as no reference.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Name string `json:"name,omitempty"`
	// namespace of the Secret. Clarion reads Secrets of its own namespace only, and says so where another one is given.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// BGPPeerStatus counts the sessions with the peer.
type BGPPeerStatus struct {
	// sessionsWanted is the number of nodes that should have a session with this peer.
	// +optional
	SessionsWanted int32 `json:"sessionsWanted"`
	// sessionsUp is the number of nodes whose session is established.
	// +optional
	SessionsUp int32 `json:"sessionsUp"`
	// conditions: Ready, and Established when every wanted session is up.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// BGPPeer is a router that speakers hold BGP sessions with.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=clarion
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.peerAddress`
// +kubebuilder:printcolumn:name="Interface",type=string,priority=1,JSONPath=`.spec.interface`
// +kubebuilder:printcolumn:name="ASN",type=integer,JSONPath=`.spec.peerASN`
// +kubebuilder:printcolumn:name="Up",type=integer,JSONPath=`.status.sessionsUp`
// +kubebuilder:printcolumn:name="Wanted",type=integer,JSONPath=`.status.sessionsWanted`
// +kubebuilder:printcolumn:name="BFD",type=string,JSONPath=`.spec.bfdProfile`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type BGPPeer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BGPPeerSpec `json:"spec"`
	// +optional
	Status BGPPeerStatus `json:"status,omitempty"`
}

// BGPPeerList is a list of BGPPeer.
// +kubebuilder:object:root=true
type BGPPeerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BGPPeer `json:"items"`
}

// BFDProfileSpec are the settings of BFD sessions (RFC 5880).
type BFDProfileSpec struct {
	// receiveInterval is the shortest time between control packets that this side can take, in milliseconds, 10 to 60000.
	// +kubebuilder:default=300
	// +kubebuilder:validation:Minimum=10
	// +kubebuilder:validation:Maximum=60000
	// +optional
	ReceiveInterval *int32 `json:"receiveInterval,omitempty"`

	// transmitInterval is the shortest time between control packets that this side sends, in milliseconds, 10 to 60000.
	// +kubebuilder:default=300
	// +kubebuilder:validation:Minimum=10
	// +kubebuilder:validation:Maximum=60000
	// +optional
	TransmitInterval *int32 `json:"transmitInterval,omitempty"`

	// detectMultiplier is how many packets may be missed before the session is down, 2 to 255.
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=255
	// +optional
	DetectMultiplier *int32 `json:"detectMultiplier,omitempty"`

	// echoMode switches on the echo function (RFC 5880 section 6.4): this side sends packets that the peer forwards back to
	// it, and tells the peer that it does the same for its packets. Only sessions over one hop of IPv4 have it; others with
	// the same profile work without. The peer, and this node, must forward IPv4; if nothing comes back, the session says so
	// and relies on control packets.
	// +optional
	EchoMode *bool `json:"echoMode,omitempty"`

	// echoInterval is the shortest time between echo packets, in milliseconds, 10 to 60000: those that are sent, and those
	// that this side is ready to send back. The path counts as down when detectMultiplier of them have not come back.
	// +kubebuilder:default=50
	// +kubebuilder:validation:Minimum=10
	// +kubebuilder:validation:Maximum=60000
	// +optional
	EchoInterval *int32 `json:"echoInterval,omitempty"`

	// passiveMode sends nothing before a packet of the peer was received (RFC 5880 section 6.1).
	// +optional
	PassiveMode *bool `json:"passiveMode,omitempty"`

	// minimumTtl is the lowest TTL that packets of a multihop session may arrive with, 1 to 254 (RFC 5883).
	// +kubebuilder:default=254
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=254
	// +optional
	MinimumTTL *int32 `json:"minimumTtl,omitempty"`
}

// BFDProfile holds the settings of BFD sessions; BGPPeers refer to it by name.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=clarion
// +kubebuilder:printcolumn:name="Receive",type=integer,JSONPath=`.spec.receiveInterval`
// +kubebuilder:printcolumn:name="Transmit",type=integer,JSONPath=`.spec.transmitInterval`
// +kubebuilder:printcolumn:name="Multiplier",type=integer,JSONPath=`.spec.detectMultiplier`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type BFDProfile struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:default={}
	// +optional
	Spec BFDProfileSpec `json:"spec,omitempty"`
	// +optional
	Status AdvertisementStatus `json:"status,omitempty"`
}

// BFDProfileList is a list of BFDProfile.
// +kubebuilder:object:root=true
type BFDProfileList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BFDProfile `json:"items"`
}
