package v1beta1

// What users write on a Service, and what Clarion writes back. The names of the three annotations are also accepted
// under the prefixes in AnnotationAliasPrefixes.
const (
	// LoadBalancerClass is the spec.loadBalancerClass of the Services that are Clarion's, unless the controller runs with
	// another --load-balancer-class. Services without a class are Clarion's too while it runs with --default-class.
	LoadBalancerClass = "clarionlb.io/clarion"

	// LeaseName names the Lease of the controller that leads, in Clarion's namespace. Its annotations are what that
	// controller says of itself.
	LeaseName = "clarion-controller"
	// AnnotationClass on that Lease is the loadBalancerClass that the controller serves.
	AnnotationClass = "clarionlb.io/load-balancer-class"
	// AnnotationDefaultClass on that Lease says whether it serves Services without a class: "true" or "false".
	AnnotationDefaultClass = "clarionlb.io/default-class"
	// AnnotationIgnoreExcludeLabel on that Lease says whether nodes with the label
	// node.kubernetes.io/exclude-from-external-load-balancers announce too: "true" or "false".
	AnnotationIgnoreExcludeLabel = "clarionlb.io/ignore-exclude-label"
	// AnnotationVersion on that Lease is the controller's version.
	AnnotationVersion = "clarionlb.io/version"

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

// Reasons of the condition clarionlb.io/Allocated of a Service. The condition is True with the first two.
const (
	// ReasonAllocated: the Service has the addresses that it should have.
	ReasonAllocated = "Allocated"
	// ReasonOutOfPool: it has them, and keeps them though a pool no longer gives one of them to it.
	ReasonOutOfPool = "OutOfPool"
	// ReasonPoolExhausted: pools that admit the Service have no address left.
	ReasonPoolExhausted = "PoolExhausted"
	// ReasonNoMatchingPool: no pool admits the Service or has addresses of the family.
	ReasonNoMatchingPool = "NoMatchingPool"
	// ReasonQuotaExceeded: pools that admit the Service give its namespace no more (serviceAllocation.maxPerNamespace).
	ReasonQuotaExceeded = "QuotaExceeded"
	// ReasonAddressNotInPool: no pool gives out the address that the Service asks for.
	ReasonAddressNotInPool = "AddressNotInPool"
	// ReasonAddressInUse: another Service has it, or the cluster itself.
	ReasonAddressInUse = "AddressInUse"
	// ReasonAddressReserved: it is reserved for another Service.
	ReasonAddressReserved = "AddressReserved"
	// ReasonAddressQuarantined: a foreign host on the local network uses it, or did so a short while ago.
	ReasonAddressQuarantined = "AddressQuarantined"
	// ReasonAddressResting: another Service had it a short while ago (reuseDelay).
	ReasonAddressResting = "AddressResting"
	// ReasonSharingConflict: Services with sharing keys have it, and the asking one cannot join them.
	ReasonSharingConflict = "SharingConflict"
	// ReasonFamilyMismatch: the Service asks for an address of a family that it does not have.
	ReasonFamilyMismatch = "FamilyMismatch"
	// ReasonInvalidRequest: the annotations cannot be read, or contradict each other.
	ReasonInvalidRequest = "InvalidRequest"
	// ReasonPoolStatusNotWritten: the Service is to have an address of a pool whose status counts none yet, and that status
	// cannot be written. A pool is protected from deletion by its count, so that comes first.
	ReasonPoolStatusNotWritten = "PoolStatusNotWritten"
	// ReasonForeign is no condition's: another controller has given the Service addresses that are in no pool. It is left
	// alone.
	ReasonForeign = "Foreign"
)

// Reasons of the conditions Ready and Conflict of an IPAddressPool.
const (
	// ReasonReady: the pool is in use as written.
	ReasonReady = "Ready"
	// ReasonInvalid: a field is wrong, and nothing is given out until it is right.
	ReasonInvalid = "Invalid"
	// ReasonPoolOverlap: an older pool has some of the addresses.
	ReasonPoolOverlap = "PoolOverlap"
	// ReasonNodeAddress: a node has some of the addresses.
	ReasonNodeAddress = "NodeAddress"
	// ReasonServiceCIDR: a range of Services' cluster addresses has some of the addresses.
	ReasonServiceCIDR = "ServiceCIDR"
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
	// ConditionProxyAnswers of a Speaker is False when addresses are announced though the node's Service proxy has not said in
	// time that it serves them; there is none otherwise. The message names one of them.
	ConditionProxyAnswers = "ProxyAnswers"
)
