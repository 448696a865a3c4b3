package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ShrinkPolicy says what happens to an assigned address that is no longer in its pool.
// +kubebuilder:validation:Enum=Keep;Reallocate
type ShrinkPolicy string

const (
	// ShrinkKeep leaves the Service its address, with the reason OutOfPool in its Allocated condition.
	ShrinkKeep ShrinkPolicy = "Keep"
	// ShrinkReallocate gives the Service another address at once.
	ShrinkReallocate ShrinkPolicy = "Reallocate"
)

// IPAddressPoolSpec says which addresses there are and who may have them.
type IPAddressPoolSpec struct {
	// addresses are the pool's addresses. Each entry is a CIDR ("203.0.113.0/24"), a range ("203.0.113.10-203.0.113.20",
	// both ends included) or a single address. IPv4 and IPv6 may be mixed in a pool, not in one range. A CIDR with host
	// bits ("192.168.10.100/24") is taken as its network.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=150
	// +listType=set
	Addresses []AddressRange `json:"addresses"`

	// excludeAddresses are never given out, though they are within addresses. Same syntax as addresses.
	// +kubebuilder:validation:MaxItems=150
	// +listType=set
	// +optional
	ExcludeAddresses []AddressRange `json:"excludeAddresses,omitempty"`

	// reservations hold single addresses for single Services: such an address is given to no other Service, and to
	// this one without its asking, whatever serviceAllocation says of it. Of an address that the pool excludes it has no
	// effect.
	// +kubebuilder:validation:MaxItems=256
	// +listType=map
	// +listMapKey=address
	// +optional
	Reservations []Reservation `json:"reservations,omitempty"`

	// autoAssign set to false keeps the pool for Services that ask for it, by its name or by one of its addresses.
	// +kubebuilder:default=true
	// +optional
	AutoAssign *bool `json:"autoAssign,omitempty"`

	// avoidBuggyIPs skips IPv4 addresses that end in .0 or .255, which some old equipment drops.
	// +kubebuilder:default=false
	// +optional
	AvoidBuggyIPs bool `json:"avoidBuggyIPs,omitempty"`

	// serviceAllocation restricts the pool to some Services and orders pools. Services it does not admit get no
	// address of this pool, whatever they ask for, but for those that have a reservation. A pool that has this field is
	// tried before pools without.
	// +optional
	ServiceAllocation *ServiceAllocation `json:"serviceAllocation,omitempty"`

	// onShrink says what happens to an assigned address that an edit takes out of the pool: Keep leaves it to its
	// Service, Reallocate gives that Service another.
	// +kubebuilder:default=Keep
	// +optional
	OnShrink ShrinkPolicy `json:"onShrink,omitempty"`

	// reuseDelay is how long a released address rests before another Service may have it, so that neighbour caches
	// and connections to its last Service die first. It is given up when no other address is left. Between 0s and 24h.
	// +kubebuilder:default="60s"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^(0|([0-9]{1,9}([.][0-9]{1,9})?(ns|us|µs|ms|s|m|h))+)$') && duration(self) <= duration('24h')",message="reuseDelay must be a duration between 0s and 24h, such as 60s"
	// +optional
	ReuseDelay *metav1.Duration `json:"reuseDelay,omitempty"`

	// sharing says how far Services may share one address of this pool with the annotation clarionlb.io/allow-shared-ip.
	// +optional
	Sharing *Sharing `json:"sharing,omitempty"`
}

// AddressRange is a CIDR, a range "first-last" or a single address.
//
// None of its addresses may be unspecified, loopback, link-local, multicast or the broadcast address: those cannot be
// announced.
//
// The order of a range's ends is checked here for IPv4 only, since CEL has no order on addresses and bounds what a
// rule may cost; an IPv6 range in the wrong order makes the pool's Ready condition False, and so does a range or CIDR
// with an address inside that cannot be announced.
// +kubebuilder:validation:MaxLength=96
// +kubebuilder:validation:XValidation:rule="self.contains('-') || isIP(self) || isCIDR(self)",message="must be a CIDR (203.0.113.0/24), a range (203.0.113.10-203.0.113.20) or an address"
// +kubebuilder:validation:XValidation:rule="!self.contains('-') || (self.split('-').size() == 2 && self.split('-').all(a, isIP(a.trim())))",message="a range must be two addresses with a '-' between them"
// +kubebuilder:validation:XValidation:rule="!self.contains('-') || self.split('-').size() != 2 || !isIP(self.split('-')[0].trim()) || !isIP(self.split('-')[1].trim()) || ip(self.split('-')[0].trim()).family() == ip(self.split('-')[1].trim()).family()",message="a range must not mix IPv4 and IPv6"
// +kubebuilder:validation:XValidation:rule="!self.matches('^ *[0-9]{1,3}([.][0-9]{1,3}){3} *- *[0-9]{1,3}([.][0-9]{1,3}){3} *$') || [self.replace('-', '.').split('.').map(o, int(o.trim()))].all(o, o[0] * 16777216 + o[1] * 65536 + o[2] * 256 + o[3] <= o[4] * 16777216 + o[5] * 65536 + o[6] * 256 + o[7])",message="the range starts after its end: write the lower address first"
// +kubebuilder:validation:XValidation:rule="isIP(self) ? ip(self).isGlobalUnicast() : isCIDR(self) ? cidr(self).ip().isGlobalUnicast() : self.split('-').all(a, !isIP(a.trim()) || ip(a.trim()).isGlobalUnicast())",message="unspecified, loopback, link-local, multicast and broadcast addresses cannot be announced"
type AddressRange string

// Reservation holds one address for one Service.
type Reservation struct {
	// address is the reserved address, in canonical form ("2001:db8::1"), so that no address is reserved twice.
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an IP address"
	// +kubebuilder:validation:XValidation:rule="!isIP(self) || ip.isCanonical(self)",message="must be in canonical form: IPv6 in lower case, without leading zeros, the longest run of zeros as '::'"
	Address string `json:"address"`
	// namespace of the Service.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespace string `json:"namespace"`
	// name of the Service.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
}

// ServiceAllocation restricts a pool to some Services and orders pools.
type ServiceAllocation struct {
	// priority orders pools that have a serviceAllocation: the lower number is tried first; 0 and unset come last. Pools
	// of equal priority are tried in the order of their names.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=2147483647
	// +optional
	Priority int `json:"priority,omitempty"`

	// namespaces admits Services of these namespaces.
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +listType=set
	// +optional
	Namespaces []string `json:"namespaces,omitempty"`

	// namespaceSelectors admits Services of namespaces that one of the selectors matches, besides those in namespaces.
	// +optional
	NamespaceSelectors Selectors `json:"namespaceSelectors,omitempty"`

	// serviceSelectors admits only Services that one of the selectors matches, on top of the namespace rules.
	// +optional
	ServiceSelectors Selectors `json:"serviceSelectors,omitempty"`

	// maxPerNamespace is how many addresses of each family the Services of one namespace may have of this pool, shared
	// ones included; 0 and unset: any number. Those that they have already when it is lowered stay theirs.
	// +kubebuilder:validation:Minimum=0
	// +optional
	MaxPerNamespace int32 `json:"maxPerNamespace,omitempty"`
}

// Sharing says how far Services may share one address.
type Sharing struct {
	// crossNamespace allows Services of different namespaces to share an address when they have the same sharing key.
	// +kubebuilder:default=false
	// +optional
	CrossNamespace bool `json:"crossNamespace,omitempty"`
}

// IPAddressPoolStatus says how full the pool is and whether it is in use as written.
type IPAddressPoolStatus struct {
	// assignedIPv4 is the number of the pool's IPv4 addresses that Services have.
	AssignedIPv4 int64 `json:"assignedIPv4"`
	// assignedIPv6 is the number of the pool's IPv6 addresses that Services have.
	AssignedIPv6 int64 `json:"assignedIPv6"`
	// availableIPv4 is the number of the pool's IPv4 addresses that could still be given out.
	AvailableIPv4 int64 `json:"availableIPv4"`
	// availableIPv6 is the number of the pool's IPv6 addresses that could still be given out; it stops at 2^63-1.
	AvailableIPv6 int64 `json:"availableIPv6"`
	// quarantined are addresses of the pool that a foreign host on the local network was found to use before they were
	// announced for the first time. They are given to nobody while the host is heard, and for ten minutes after.
	// +listType=set
	// +optional
	Quarantined []string `json:"quarantined,omitempty"`
	// kept are addresses that Services have from the pool though spec.addresses no longer include them. The pool's
	// advertisements go on announcing them.
	// +listType=set
	// +optional
	Kept []string `json:"kept,omitempty"`
	// resting are addresses that were released less than reuseDelay ago, at most the last 256. Only the Service that had
	// one may ask for it before its rest is over.
	// +kubebuilder:validation:MaxItems=256
	// +listType=map
	// +listMapKey=address
	// +optional
	Resting []RestingAddress `json:"resting,omitempty"`
	// conditions: Ready, and Conflict where there is one.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// RestingAddress is an address that was released a short while ago.
type RestingAddress struct {
	// address that rests.
	Address string `json:"address"`
	// service that had it, as namespace/name.
	Service string `json:"service"`
	// until is when others may ask for it.
	Until metav1.Time `json:"until"`
}

// IPAddressPool is a set of addresses that Services of type LoadBalancer get theirs from.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=pool,categories=clarion
// +kubebuilder:printcolumn:name="Auto",type=boolean,JSONPath=`.spec.autoAssign`
// +kubebuilder:printcolumn:name="Used v4",type=integer,JSONPath=`.status.assignedIPv4`
// +kubebuilder:printcolumn:name="Free v4",type=integer,JSONPath=`.status.availableIPv4`
// +kubebuilder:printcolumn:name="Used v6",type=integer,JSONPath=`.status.assignedIPv6`
// +kubebuilder:printcolumn:name="Free v6",type=integer,JSONPath=`.status.availableIPv6`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type IPAddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPAddressPoolSpec `json:"spec"`
	// +optional
	Status IPAddressPoolStatus `json:"status,omitempty"`
}

// IPAddressPoolList is a list of IPAddressPool.
// +kubebuilder:object:root=true
type IPAddressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []IPAddressPool `json:"items"`
}
