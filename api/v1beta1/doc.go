// Package v1beta1 holds the words that users of Clarion write: the kinds of the API group clarionlb.io, all of them
// cluster-scoped. It owns types, the validation that one object can say about itself (CEL rules, checked by the API
// server) and print columns. It holds no logic; what the words mean is decided in internal/pool, internal/ipam and
// internal/announce.
//
// Where a field means what the field of the same kind in MetalLB's API means, it has the same name, so that files can
// be carried over by changing their apiVersion line.
//
// +kubebuilder:object:generate=true
// +groupName=clarionlb.io
package v1beta1
