// Package allocate says what the API's objects mean to package ipam: which addresses a Service asks for, what the pools
// are beside what the cluster has itself, and where the addresses of the local network would be announced. It is pure.
package allocate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clarionlb/clarion/api/v1beta1"
	"github.com/clarionlb/clarion/internal/ipam"
	"github.com/clarionlb/clarion/internal/pool"
)

// What users of MetalLB have on their Services means the same here. Of several names of one annotation the first that
// is there counts.
var (
	addressesNames = []string{v1beta1.AnnotationAddresses, "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"}
	poolNames      = []string{v1beta1.AnnotationAddressPool, "metallb.io/address-pool", "metallb.universe.tf/address-pool"}
	sharingNames   = []string{v1beta1.AnnotationAllowSharedIP, "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"}
)

// Class is which Services of type LoadBalancer are Clarion's.
type Class struct {
	// Name of spec.loadBalancerClass.
	Name string
	// Default says that those without a class are too.
	Default bool
}

// Serves says whether a Service asks for addresses from this controller.
func (c Class) Serves(svc *corev1.Service) bool {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return false
	}
	if svc.Spec.LoadBalancerClass == nil {
		return c.Default
	}
	return *svc.Spec.LoadBalancerClass == c.Name
}

// Request is a Service as allocation sees it. Of one that is not served, or is about to go, that is what it holds.
func (c Class) Request(svc *corev1.Service, namespaceLabels labels.Set) ipam.Request {
	r := ipam.Request{
		Service: types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name},
		Created: svc.CreationTimestamp.Time,
	}
	for _, ip := range svc.Spec.ExternalIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			r.Held = append(r.Held, a.Unmap())
		}
	}
	serves := c.Serves(svc)
	if !serves || svc.DeletionTimestamp != nil || foreign(svc) {
		r.Other, r.Terminating = true, serves && svc.DeletionTimestamp != nil && Managed(svc)
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			r.Held = append(r.Held, Ingress(svc)...)
		}
		return r
	}
	r.Labels, r.NamespaceLabels = svc.Labels, namespaceLabels
	r.Families, r.Current, r.Managed = familiesOf(svc), Ingress(svc), Managed(svc)
	if p := svc.Spec.IPFamilyPolicy; p != nil {
		r.RequireAll = *p == corev1.IPFamilyPolicyRequireDualStack
	}
	for _, p := range svc.Spec.Ports {
		r.Ports = append(r.Ports, ipam.Port{Protocol: string(p.Protocol), Number: uint16(p.Port)})
	}
	if svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		r.Local = labels.Set(svc.Spec.Selector).String()
		if r.Local == "" {
			r.Local = "endpoints of " + svc.Name // made by hand, so no other Service's
		}
	}
	_, r.SharingKey = Annotation(svc, sharingNames)
	var err error
	if r.Addresses, err = requestedAddresses(svc); err != nil {
		r.Problem = err.Error()
	}
	_, names := Annotation(svc, poolNames)
	r.Pools = splitList(names)
	return r
}

// Annotation is the first of the named annotations that the Service has, and its value.
func Annotation(svc *corev1.Service, names []string) (name, value string) {
	for _, n := range names {
		if v, ok := svc.Annotations[n]; ok {
			return n, strings.TrimSpace(v)
		}
	}
	return "", ""
}

// Annotations are the names of those annotations that Request reads.
func Annotations() [][]string { return [][]string{addressesNames, poolNames, sharingNames} }

// splitList reads a comma-separated list, without repetitions.
func splitList(s string) []string {
	var out []string
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" && !slices.Contains(out, item) {
			out = append(out, item)
		}
	}
	return out
}

// requestedAddresses reads the addresses that a Service asks for by annotation or spec.loadBalancerIP. When it has both
// they must agree.
func requestedAddresses(svc *corev1.Service) ([]netip.Addr, error) {
	name, value := Annotation(svc, addressesNames)
	var out []netip.Addr
	for _, item := range splitList(value) {
		a, err := pool.ParseAddr(item)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", name, err)
		}
		if slices.ContainsFunc(out, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			return nil, fmt.Errorf("annotation %s: %q has two addresses of one family: ask for at most one of each", name, value)
		}
		out = append(out, a)
	}
	ip := svc.Spec.LoadBalancerIP
	if ip == "" {
		return out, nil
	}
	a, err := pool.ParseAddr(ip)
	switch {
	case err != nil:
		return nil, fmt.Errorf("spec.loadBalancerIP: %w", err)
	case len(out) == 0:
		return []netip.Addr{a}, nil
	case !slices.Contains(out, a):
		return nil, fmt.Errorf("spec.loadBalancerIP is %s, annotation %s says %s: remove one of them", a, name, value)
	}
	return out, nil
}

// familiesOf is the families of the Service's cluster addresses: it can be reached by no other.
func familiesOf(svc *corev1.Service) []pool.Family {
	var out []pool.Family
	for _, ip := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil && !slices.Contains(out, pool.FamilyOf(a)) {
			out = append(out, pool.FamilyOf(a))
		}
	}
	return out
}

// Ingress is the addresses in the Service's status.
func Ingress(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, i := range svc.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(i.IP); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// IngressOf is what the status says of addresses that are reached as they are (KEP-1860).
func IngressOf(addrs []netip.Addr) (out []corev1.LoadBalancerIngress) {
	for _, a := range addrs {
		out = append(out, corev1.LoadBalancerIngress{IP: a.String(), IPMode: new(corev1.LoadBalancerIPModeVIP)})
	}
	return out
}

// Says says whether the Service's status names just these addresses, to be reached as they are.
func Says(svc *corev1.Service, addrs []netip.Addr) bool {
	return slices.EqualFunc(svc.Status.LoadBalancer.Ingress, addrs, func(i corev1.LoadBalancerIngress, a netip.Addr) bool {
		return i.IP == a.String() && i.Hostname == "" && (i.IPMode == nil || *i.IPMode == corev1.LoadBalancerIPModeVIP)
	})
}

// Managed says whether Clarion has written the Service's status before.
func Managed(svc *corev1.Service) bool {
	return meta.FindStatusCondition(svc.Status.Conditions, v1beta1.ConditionAllocated) != nil
}

// foreign says whether another controller has given the Service a host name. Only addresses can be adopted.
func foreign(svc *corev1.Service) bool {
	return !Managed(svc) && slices.ContainsFunc(svc.Status.LoadBalancer.Ingress, func(i corev1.LoadBalancerIngress) bool {
		return i.Hostname != ""
	})
}
