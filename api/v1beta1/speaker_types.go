package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// SpeakerStatus is what the speaker on one node does, and why not more. The speaker writes it, only when it changes.
type SpeakerStatus struct {
	// version of the speaker.
	// +optional
	Version string `json:"version,omitempty"`

	// addresses are the node addresses at which other speakers can join this one.
	// +listType=atomic
	// +optional
	Addresses []string `json:"addresses,omitempty"`

	// hardwareAddresses are those that this node announces addresses with, by which other speakers know it on the wire.
	// +listType=atomic
	// +optional
	HardwareAddresses []string `json:"hardwareAddresses,omitempty"`

	// interfaces are those of the node that addresses can be announced on, but for those of the cluster itself.
	// +listType=atomic
	// +optional
	Interfaces []string `json:"interfaces,omitempty"`

	// interfacesNamedOnly are those of them that carry only addresses whose L2Advertisement names the interface.
	// +listType=atomic
	// +optional
	InterfacesNamedOnly []string `json:"interfacesNamedOnly,omitempty"`

	// interfacesDown are those of them that have no carrier.
	// +listType=atomic
	// +optional
	InterfacesDown []string `json:"interfacesDown,omitempty"`

	// missing are the names of nodes that have a speaker which is not alive, as this one sees it; empty when all is well.
	// Each missing node is named by the three living speakers that its name chooses, not by all of them, and no speaker
	// names more than 32.
	// +listType=atomic
	// +optional
	Missing []string `json:"missing,omitempty"`

	// missingMore is how many speakers this one misses beside those that it names. 0 if it names none.
	// +optional
	MissingMore int32 `json:"missingMore,omitempty"`

	// gate says why the node does not attract traffic while others can: its Service proxy is unhealthy, or it is being
	// drained. Empty when nothing speaks against it.
	// +optional
	Gate string `json:"gate,omitempty"`

	// drained says that the node is being drained, and its time to go on announcing by BGP is over.
	// +optional
	Drained bool `json:"drained,omitempty"`

	// localNetwork is what the node answers ARP and NDP for; an earlier release does not say it.
	// +optional
	LocalNetwork *Layer2Status `json:"localNetwork,omitempty"` // "layer2" was a list: objects that have it are still stored

	// sessions are the node's BGP sessions: one for each BGPPeer, or several, by address, for the gateways of a default
	// route with several next hops.
	// +listType=atomic
	// +optional
	Sessions []SessionStatus `json:"sessions,omitempty"`

	// heldDown are addresses that the node could announce to its peers and does not yet, because they came and went too
	// often; 16 at most.
	// +listType=atomic
	// +optional
	HeldDown []string `json:"heldDown,omitempty"`

	// heldDownMore is how many addresses are held down beside those.
	// +optional
	HeldDownMore int32 `json:"heldDownMore,omitempty"`

	// conflicts are addresses that a foreign host on the local network claims; 64 at most.
	// +listType=atomic
	// +optional
	Conflicts []AddressConflict `json:"conflicts,omitempty"`

	// conflictsMore is how many claims were heard beside those.
	// +optional
	ConflictsMore int32 `json:"conflictsMore,omitempty"`

	// problems are configuration objects that this node cannot use as written, and why.
	// +listType=atomic
	// +optional
	Problems []Problem `json:"problems,omitempty"`

	// conditions: Ready, and Guarded.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Layer2Status is what a node answers ARP and NDP for. Who should answer for an address follows from the configuration
// and from which speakers are alive; here is what tells whether the node does, and what differs from it. It does not grow
// with the number of addresses.
type Layer2Status struct {
	// answered is the number of addresses that the node answers for.
	Answered int32 `json:"answered"`
	// digest of these addresses, sixteen hexadecimal digits: the sum modulo 2^64 of the first eight bytes of the SHA-256
	// of each address in network byte order.
	Digest string `json:"digest"`
	// latest are those of them that the node began to answer for last, the newest first; 16 at most.
	// +listType=atomic
	// +optional
	Latest []string `json:"latest,omitempty"`
	// unanswered are addresses that the node should answer for and does not; 16 at most.
	// +listType=atomic
	// +optional
	Unanswered []AddressException `json:"unanswered,omitempty"`
	// unansweredMore is how many there are beside those.
	// +optional
	UnansweredMore int32 `json:"unansweredMore,omitempty"`
	// besides are addresses that the node answers for though another node should; 16 at most.
	// +listType=atomic
	// +optional
	Besides []AddressException `json:"besides,omitempty"`
	// besidesMore is how many there are beside those.
	// +optional
	BesidesMore int32 `json:"besidesMore,omitempty"`
}

// AddressException is an address that a node does not do with what it should.
type AddressException struct {
	// address that it is about.
	Address string `json:"address"`
	// reason for a person.
	// +optional
	Reason string `json:"reason,omitempty"`
}

// SessionStatus is a BGP session.
type SessionStatus struct {
	// peer is the name of the BGPPeer.
	Peer string `json:"peer"`
	// address of the peer.
	// +optional
	Address string `json:"address,omitempty"`
	// localAddress is this side's address in the session.
	// +optional
	LocalAddress string `json:"localAddress,omitempty"`
	// state of the session as in RFC 4271 section 8.2.2: Idle, Connect, Active, OpenSent, OpenConfirm, Established.
	State string `json:"state"`
	// since is when the session entered or left the state Established.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// peerASN is the AS number that the peer gave in its OPEN message.
	// +optional
	PeerASN int64 `json:"peerASN,omitempty"`
	// families that both sides agreed on: IPv4, IPv6.
	// +listType=atomic
	// +optional
	Families []string `json:"families,omitempty"`
	// holdTimeSeconds is the negotiated hold time, in seconds; 0 is none.
	// +optional
	HoldTimeSeconds int32 `json:"holdTimeSeconds,omitempty"`
	// keepaliveSeconds is the time between keepalive messages, in seconds; 0 is none.
	// +optional
	KeepaliveSeconds int32 `json:"keepaliveSeconds,omitempty"`
	// prefixesIPv4 is the number of IPv4 prefixes that are announced in this session.
	PrefixesIPv4 int32 `json:"prefixesIPv4"`
	// prefixesIPv6 is the number of IPv6 prefixes that are announced in this session.
	PrefixesIPv6 int32 `json:"prefixesIPv6"`
	// digest of the addresses of Services that are announced in this session or would be if it were up, alone or in a
	// wider prefix: as that of localNetwork.
	// +optional
	Digest string `json:"digest,omitempty"`
	// gracefulRestart says that both sides agreed on graceful restart.
	// +optional
	GracefulRestart bool `json:"gracefulRestart,omitempty"`
	// bfd is the state of the BFD session: AdminDown, Down, Init, Up. Empty without BFD.
	// +optional
	BFD string `json:"bfd,omitempty"`
	// bfdTransmitMilliseconds is the negotiated time between BFD packets that this side sends.
	// +optional
	BFDTransmitMilliseconds int32 `json:"bfdTransmitMilliseconds,omitempty"`
	// bfdDetectionMilliseconds is the negotiated time without a BFD packet after which the peer is down.
	// +optional
	BFDDetectionMilliseconds int32 `json:"bfdDetectionMilliseconds,omitempty"`
	// lastError is why the session went down or does not come up; it stays when the session is up again.
	// +optional
	LastError string `json:"lastError,omitempty"`
}

// AddressConflict is an address that a foreign host on the local network claims.
type AddressConflict struct {
	// address that is claimed.
	Address string `json:"address"`
	// hardwareAddress of the claimant.
	HardwareAddress string `json:"hardwareAddress"`
	// interface the claim was heard on.
	Interface string `json:"interface"`
	// beforeUse says that the claim was heard before the address was announced for the first time: it is not announced
	// while the claim stands, and the controller gives the Service another.
	// +optional
	BeforeUse bool `json:"beforeUse,omitempty"`
	// since is when the claim was first heard.
	Since metav1.Time `json:"since"`
}

// Problem is a configuration object that cannot be used as written.
type Problem struct {
	// object is the kind and name of the object, as Kind/name.
	Object string `json:"object"`
	// message says which field is wrong and what would be right.
	Message string `json:"message"`
}

// Speaker is what the speaker on the node of the same name does. It is written by that speaker and owned by its Node.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=clarion
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Missing",type=string,JSONPath=`.status.missing`
// +kubebuilder:printcolumn:name="Layer2",type=integer,JSONPath=`.status.localNetwork.answered`
// +kubebuilder:printcolumn:name="Sessions",type=string,JSONPath=`.status.sessions[*].state`
// +kubebuilder:printcolumn:name="Version",type=string,priority=1,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Speaker struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Status SpeakerStatus `json:"status,omitempty"`
}

// SpeakerList is a list of Speaker.
// +kubebuilder:object:root=true
type SpeakerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Speaker `json:"items"`
}
