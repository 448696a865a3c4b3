package main

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clarionlb/clarion/internal/allocate"
)

// metallbFromPool is an annotation in which MetalLB says which pool an address is from.
const metallbFromPool = "metallb.io/ip-allocated-from-pool"

// trimService drops from Services in the cache what nobody here reads. It keeps what internal/snapshot uses.
func trimService(o any) (any, error) {
	svc, ok := o.(*corev1.Service)
	if !ok {
		return o, nil
	}
	svc.ManagedFields, svc.OwnerReferences, svc.Finalizers = nil, nil, nil
	var kept map[string]string
	for _, names := range append(allocate.Annotations(), []string{metallbFromPool}) {
		if name, _ := allocate.Annotation(svc, names); name != "" {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[name] = svc.Annotations[name]
		}
	}
	if svc.Annotations = kept; svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		svc.Annotations, svc.Spec.Selector = nil, nil
	}
	for i, p := range svc.Spec.Ports {
		svc.Spec.Ports[i] = corev1.ServicePort{Protocol: p.Protocol, Port: p.Port}
	}
	return svc, nil
}

// trimNamespace keeps a Namespace's labels.
func trimNamespace(o any) (any, error) {
	ns, ok := o.(*corev1.Namespace)
	if !ok {
		return o, nil
	}
	ns.ObjectMeta = metav1.ObjectMeta{Name: ns.Name, UID: ns.UID, ResourceVersion: ns.ResourceVersion, Labels: ns.Labels}
	ns.Spec, ns.Status = corev1.NamespaceSpec{}, corev1.NamespaceStatus{}
	return ns, nil
}
