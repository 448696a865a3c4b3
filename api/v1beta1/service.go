package v1beta1

// What users write on a Service, and what Clarion writes back. The names of the three annotations are also accepted
// under the prefixes in AnnotationAliasPrefixes.
const (
	// LoadBalancerClass is the spec.loadBalancerClass of the Services that are Clarion's. Services without a class
	// are Clarion's too while the controller runs with --default-class.
	LoadBalancerClass = "clarionlb.io/clarion"

	// AnnotationAddresses asks for one or two addresses, of different families, separated by a comma.
	AnnotationAddresses = "clarionlb.io/addresses"
	// AnnotationAddressPool names the pools to allocate from, in order of preference, separated by commas.
	AnnotationAddressPool = "clarionlb.io/address-pool"
	// AnnotationAllowSharedIP is the sharing key: Services with the same key may share an address.
	AnnotationAllowSharedIP = "clarionlb.io/allow-shared-ip"

	// AnnotationDrain, set to "true" on a Node, moves what the node announces to other nodes, without loss.
	AnnotationDrain = "clarionlb.io/drain"

	// ConditionAllocated says whether the Service has the addresses it should have. Written by the controller.
	ConditionAllocated = "clarionlb.io/Allocated"
	// ConditionAnnounced says whether the Service's addresses are announced, by whom, and if not, why.
	// Written by the controller.
	ConditionAnnounced = "clarionlb.io/Announced"
)

// Condition types on Clarion's own objects.
const (
	// ConditionReady is True when the object is in use as written. When it is False the message says which field
	// is wrong and what would be right; nothing but this object is disabled by it.
	ConditionReady = "Ready"

	// ReasonEnded is the reason of a Speaker's Ready that a speaker writes when it ends: it announces nothing any more.
	ReasonEnded = "Ended"
	// ConditionConflict is True on a pool whose addresses meet those of an older pool, a node or a ServiceCIDR.
	ConditionConflict = "Conflict"
	// ConditionEstablished is True on a BGPPeer when every node that should have a session with it has one.
	ConditionEstablished = "Established"
	// ConditionGuarded of a Speaker is False when packets for announced addresses that no Service has may go round between
	// routers and this node; the message says why, and what to do.
	ConditionGuarded = "Guarded"
)
