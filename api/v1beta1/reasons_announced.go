package v1beta1

// Reasons of the condition Announced of a Service.
const (
	// ReasonAnnounced: somebody announces every address.
	ReasonAnnounced = "Announced"
	// ReasonPending: a speaker is about to announce an address, or has not said yet that it does.
	ReasonPending = "Pending"
	// ReasonNotInPool: an address is in no IPAddressPool; Clarion has not given it.
	ReasonNotInPool = "NotInPool"
	// ReasonNoAdvertisement: no L2Advertisement or BGPAdvertisement selects an address.
	ReasonNoAdvertisement = "NoAdvertisement"
	// ReasonNoReadyEndpoint: nothing behind the Service could answer.
	ReasonNoReadyEndpoint = "NoReadyEndpoint"
	// ReasonNoEligibleNode: an advertisement selects an address, but no node can announce it.
	ReasonNoEligibleNode = "NoEligibleNode"
	// ReasonSessionDown: an address is announced by BGP only, and no session with the peers is up. It is also the reason
	// of a BGPPeer's Established.
	ReasonSessionDown = "SessionDown"
	// ReasonAddressConflict: a foreign host on the local network uses an address, whether or not it is announced.
	ReasonAddressConflict = "AddressConflict"
	// ReasonNotAnswered: the node that should answer for an address on the local network says that it does not, and why.
	ReasonNotAnswered = "NotAnswered"
	// ReasonViewsDiffer: what a speaker says that it announces is not what it should announce as the controller sees the
	// cluster, and it does not say what differs.
	ReasonViewsDiffer = "ViewsDiffer"
)

// Established is the state of a BGP session in which routes are exchanged (RFC 4271 section 8.2.2), and the reason of a
// BGPPeer's condition of that name.
const Established = "Established"

// ReasonJoining is the reason of a Speaker's Ready while it has not joined the others: it announces nothing on the local
// network yet.
const ReasonJoining = "Joining"

// ReasonNoAnswer is the reason of a Speaker's ProxyAnswers.
const ReasonNoAnswer = "NoAnswer"

// Reasons of the condition Guarded of a Speaker.
const (
	// ReasonGuarded: packets for announced addresses that no Service has are unreachable.
	ReasonGuarded = "Guarded"
	// ReasonSwitchedOff: the speaker runs with --guard=false.
	ReasonSwitchedOff = "SwitchedOff"
	// ReasonKernelRefuses: the kernel does not take the guard's rules; the message says which, and why.
	ReasonKernelRefuses = "KernelRefuses"
	// ReasonNoInterface: no interface of the node leads outside, as far as their names say.
	ReasonNoInterface = "NoInterface"
)
