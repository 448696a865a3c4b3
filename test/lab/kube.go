package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	adminToken = "lab-admin" // good for this lab's API server, which no network but the lab's reaches
	proxyToken = "lab-kube-proxy"
)

// controllers are those of kube-controller-manager that need no kubelet, cloud or scheduler.
var controllers = []string{
	"clusterrole-aggregation-controller", "endpoints-controller", "endpointslice-controller", "endpointslice-mirroring-controller",
	"garbage-collector-controller", "namespace-controller", "root-ca-certificate-publisher-controller", "service-cidr-controller", "serviceaccount-controller",
}

func (l *Lab) kubePath(name string) string { return filepath.Join(l.state, "kube", name) }

func (l *Lab) apiURL() string {
	return "https://" + net.JoinHostPort(l.Host(control).IPv4.String(), "6443")
}

// startCluster brings up the control plane, then a Node and a kube-proxy for each node.
func (l *Lab) startCluster(ctx context.Context) error {
	if err := l.writeCredentials(); err != nil {
		return err
	}
	etcd, err := l.Start(control, "etcd", []string{filepath.Join(l.tools, "etcd"),
		"--data-dir=" + l.kubePath("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380"})
	if err != nil {
		return err
	}
	if err := etcd.waitReady(ctx, 30*time.Second, func() error { return l.connectable(ctx, control, "127.0.0.1:2379") }); err != nil {
		return err
	}
	api, err := l.Start(control, "kube-apiserver", []string{filepath.Join(l.tools, "kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=::", "--secure-port=6443", "--advertise-address=" + l.Host(control).IPv4.String(),
		"--tls-cert-file=" + l.kubePath("server.crt"), "--tls-private-key-file=" + l.kubePath("server.key"),
		"--service-cluster-ip-range=" + clusterIP4 + "," + clusterIP6,
		"--service-account-key-file=" + l.kubePath("sa.key"), "--service-account-signing-key-file=" + l.kubePath("sa.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--token-auth-file=" + l.kubePath("tokens.csv"), "--authorization-mode=Node,RBAC",
		// Without kubelets nothing would take the not-ready taint off, or mount a pod's token.
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
	})
	if err != nil {
		return err
	}
	if err := l.connect(); err != nil {
		return err
	}
	if err := api.waitReady(ctx, time.Minute, func() error { return l.apiReady(ctx) }); err != nil {
		return err
	}
	l.pr.step("etcd and kube-apiserver answer")
	_, err = l.Start(control, "kube-controller-manager", []string{filepath.Join(l.tools, "kube-controller-manager"),
		"--kubeconfig=" + l.kubePath("admin.kubeconfig"), "--controllers=" + strings.Join(controllers, ","),
		"--leader-elect=false", "--secure-port=0", "--root-ca-file=" + l.kubePath("ca.crt"),
		"--kube-api-qps=1000", "--kube-api-burst=2000", "--concurrent-service-endpoint-syncs=20",
	})
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for i, node := range l.Nodes() {
		g.Go(func() error { return l.startNode(gctx, node, i+1) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if l.opts.Nodes > 0 {
		l.pr.step("%d nodes with kube-proxy (%s)", l.opts.Nodes, l.opts.ProxyMode)
	}
	return l.writeWrapper("kubectl", filepath.Join(l.tools, "kubectl"))
}

// writeWrapper puts a command into DIR/bin that a person may call from anywhere as root: it enters the control
// plane's namespace and takes the administrator's kubeconfig.
func (l *Lab) writeWrapper(name, program string) error {
	script := fmt.Sprintf("#!/bin/sh\nKUBECONFIG=%s PATH=%s:$PATH exec ip netns exec %s %s \"$@\"\n",
		l.kubePath("admin.kubeconfig"), filepath.Join(l.state, "bin"), l.NS(control), program)
	return os.WriteFile(filepath.Join(l.state, "bin", name), []byte(script), 0o755)
}

// connectable reports whether something accepts TCP connections at an address in a host's namespace.
func (l *Lab) connectable(ctx context.Context, host, address string) error {
	c, err := l.Dial(ctx, host, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}

// Get asks a URL from a host, and gives the body of an answer with status 200.
func (l *Lab) Get(ctx context.Context, host, url string) ([]byte, error) {
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return l.Dial(ctx, host, network, addr)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.1000s", url, res.Status, body)
	}
	return body, err
}

func (l *Lab) apiReady(ctx context.Context) error {
	hc, err := rest.HTTPClientFor(l.Config())
	if err != nil {
		return err
	}
	defer hc.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.apiURL()+"/readyz", nil)
	if err != nil {
		return err
	}
	res, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(res.Body)
		return fmt.Errorf("readyz: %s", b)
	}
	return nil
}

// startNode makes a Node as its kubelet would and runs its kube-proxy until that is healthy.
func (l *Lab) startNode(ctx context.Context, name string, n int) error {
	h := l.Host(name)
	pods4, pods6 := podPrefixes(n)
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: goruntime.GOARCH,
		}},
		Spec: corev1.NodeSpec{PodCIDR: pods4.String(), PodCIDRs: []string{pods4.String(), pods6.String()}},
	}
	c := l.Client()
	if err := c.Create(ctx, node); err != nil {
		return err
	}
	node.Status = corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: h.IPv4.String()},
			{Type: corev1.NodeInternalIP, Address: h.IPv6.String()},
			{Type: corev1.NodeHostName, Address: name},
		},
		Conditions: []corev1.NodeCondition{nodeReady(true)},
		NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: kubeVersion, OperatingSystem: "linux", Architecture: goruntime.GOARCH},
	}
	if err := c.Status().Update(ctx, node); err != nil {
		return err
	}
	_, err := l.Start(name, "kube-proxy", append([]string{filepath.Join(l.tools, "kube-proxy"),
		"--kubeconfig=" + l.kubePath("kube-proxy.kubeconfig"), "--hostname-override=" + name,
		"--proxy-mode=" + l.opts.ProxyMode, "--cluster-cidr=" + podRange4 + "," + podRange6,
		// The kernel's connection tracking limits are the machine's, not a namespace's.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		"--healthz-bind-address=0.0.0.0:10256",
	}, l.opts.ProxyArgs...))
	if err != nil {
		return err
	}
	return l.proxyReady(ctx, name)
}

// proxyReady waits until a node's kube-proxy has written its rules for the first time.
func (l *Lab) proxyReady(ctx context.Context, node string) error {
	return l.Process(node, "kube-proxy").waitReady(ctx, time.Minute, func() error {
		_, err := l.Get(ctx, node, "http://127.0.0.1:10256/healthz")
		return err
	})
}

func nodeReady(ready bool) corev1.NodeCondition {
	c := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
		LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}
	if !ready {
		c.Status, c.Reason, c.Message = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status."
	}
	return c
}

// SetNodeReady writes a Node's Ready condition and that of its pods, as kube-controller-manager does some 40 s after a
// kubelet fell silent (false) or the kubelet itself when it returns (true). The lab does not do this by itself when
// a link is cut: until a test calls it, the API shows what it would show in a real outage's first 40 s.
func (l *Lab) SetNodeReady(ctx context.Context, name string, ready bool) error {
	c := l.Client()
	var node corev1.Node
	if err := c.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		return err
	}
	before := node.DeepCopy()
	node.Status.Conditions = []corev1.NodeCondition{nodeReady(ready)}
	if err := c.Status().Patch(ctx, &node, client.MergeFrom(before)); err != nil {
		return err
	}
	var pods corev1.PodList
	if err := c.List(ctx, &pods); err != nil {
		return err
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Spec.NodeName != name {
			continue
		}
		before := pod.DeepCopy()
		setReady(pod, ready)
		if err := c.Status().Patch(ctx, pod, client.MergeFrom(before)); err != nil {
			return err
		}
	}
	return nil
}

// connect makes the administrator's client. The connections are opened in the control plane's namespace.
func (l *Lab) connect() error {
	cfg, err := clientcmd.BuildConfigFromFlags("", l.kubePath("admin.kubeconfig"))
	if err != nil {
		return err
	}
	cfg.QPS = -1
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		return l.Dial(ctx, control, network, addr)
	}
	scheme := l.opts.Scheme
	if scheme == nil {
		scheme = runtime.NewScheme()
		if err := clientgoscheme.AddToScheme(scheme); err != nil {
			return err
		}
		if err := apiextensionsv1.AddToScheme(scheme); err != nil {
			return err
		}
	}
	c, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.config, l.client = cfg, c
	return nil
}

// Config is the administrator's way to the API server from this process, whatever its namespace.
func (l *Lab) Config() *rest.Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	return rest.CopyConfig(l.config)
}

// Client is the administrator's client, without a cache. Call it after Up.
func (l *Lab) Client() client.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.client
}

// Kubectl runs kubectl as the administrator and returns what it printed.
func (l *Lab) Kubectl(ctx context.Context, args ...string) (string, error) {
	return l.run(control, l.kubectl(ctx, args...))
}

func (l *Lab) kubectl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(l.tools, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+l.kubePath("admin.kubeconfig"), "HOME="+l.state)
	return cmd
}

// Apply applies YAML documents in their order, server-side, and waits until the CustomResourceDefinitions among them
// are served. Objects without a namespace go to "default" where their kind wants one.
func (l *Lab) Apply(ctx context.Context, manifests string) error {
	return l.each(ctx, manifests, func(c client.Client, u *unstructured.Unstructured) error {
		if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner("lab"), client.ForceOwnership); err != nil {
			return err
		}
		if u.GetKind() != "CustomResourceDefinition" {
			return nil
		}
		return Eventually(ctx, 10*time.Second, func() error {
			crd := &unstructured.Unstructured{}
			crd.SetGroupVersionKind(u.GroupVersionKind())
			if err := c.Get(ctx, client.ObjectKeyFromObject(u), crd); err != nil {
				return err
			}
			conditions, _, err := unstructured.NestedSlice(crd.Object, "status", "conditions")
			for _, cond := range conditions {
				if m, ok := cond.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
					return nil
				}
			}
			return errors.Join(err, errors.New("not established yet"))
		})
	})
}

// Delete deletes the objects of YAML documents; those that do not exist are passed over.
func (l *Lab) Delete(ctx context.Context, manifests string) error {
	return l.each(ctx, manifests, func(c client.Client, u *unstructured.Unstructured) error {
		return client.IgnoreNotFound(c.Delete(ctx, u))
	})
}

func (l *Lab) each(ctx context.Context, manifests string, f func(client.Client, *unstructured.Unstructured) error) error {
	c := l.Client()
	for dec := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifests), 4096); ; {
		u := &unstructured.Unstructured{}
		if err := dec.Decode(&u.Object); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if len(u.Object) == 0 {
			continue
		}
		name := fmt.Sprintf("%s %s", u.GetKind(), u.GetName())
		// A definition applied a moment ago may take the API server a moment more to serve.
		err := Eventually(ctx, 10*time.Second, func() error {
			namespaced, err := c.IsObjectNamespaced(u)
			if err == nil && namespaced && u.GetNamespace() == "" {
				u.SetNamespace(metav1.NamespaceDefault)
			}
			if meta.IsNoMatchError(err) {
				return err
			}
			return nil
		})
		if err == nil {
			err = f(c, u)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// Kubeconfig returns the path of a configuration for "admin" or for a ServiceAccount, "system:serviceaccount:NS:NAME",
// which gets a token of its own that is valid for a day. It is good in every namespace from which the control
// plane's LAN address can be reached.
func (l *Lab) Kubeconfig(ctx context.Context, user string) (string, error) {
	return l.KubeconfigOn(ctx, user, "")
}

// KubeconfigOn is Kubeconfig with a token that is bound to a node and names it, as the token of a pod on that node does.
func (l *Lab) KubeconfigOn(ctx context.Context, user, node string) (string, error) {
	if user == "admin" {
		return l.kubePath("admin.kubeconfig"), nil
	}
	parts := strings.Split(user, ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
		return "", fmt.Errorf("user %q: want admin or system:serviceaccount:NAMESPACE:NAME", user)
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: parts[2], Name: parts[3]}}
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To[int64](24 * 60 * 60)}}
	path := l.kubePath(parts[2] + "-" + parts[3] + ".kubeconfig")
	if node != "" {
		req.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: node}
		path = l.kubePath(parts[2] + "-" + parts[3] + "-" + node + ".kubeconfig")
	}
	if err := l.Client().SubResource("token").Create(ctx, sa, req); err != nil {
		return "", fmt.Errorf("token for %s: %w", user, err)
	}
	return path, l.writeKubeconfig(path, req.Status.Token)
}

// writeKubeconfig makes a file that any user may read, since programs run as users of their own.
func (l *Lab) writeKubeconfig(path, token string) error {
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"lab": {Server: l.apiURL(), CertificateAuthority: l.kubePath("ca.crt")}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"user": {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{"lab": {Cluster: "lab", AuthInfo: "user"}},
		CurrentContext: "lab",
	}, path)
	if err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

// EnsureNamespace creates a Kubernetes namespace that may exist already.
func (l *Lab) EnsureNamespace(ctx context.Context, name string) error {
	err := l.Client().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// writeCredentials makes the lab's certification authority, the API server's certificate, the key that signs
// ServiceAccount tokens, and the kubeconfigs of the components.
func (l *Lab) writeCredentials() error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour)}
	}
	ca := template("lab")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	h := l.Host(control)
	server := template("kube-apiserver")
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.DNSNames = []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}
	for _, a := range []string{h.IPv4.String(), h.IPv6.String(), "127.0.0.1", "::1", apiService4, apiService6} {
		server.IPAddresses = append(server.IPAddresses, net.ParseIP(a))
	}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	saKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tokens := adminToken + ",admin,admin,system:masters\n" + proxyToken + ",system:kube-proxy,kube-proxy\n"
	files := map[string][]byte{
		"ca.crt":     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}),
		"server.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: serverDER}),
		"tokens.csv": []byte(tokens),
	}
	for name, k := range map[string]*ecdsa.PrivateKey{"server.key": key, "sa.key": saKey} {
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			return err
		}
		files[name] = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	}
	if _, err := tls.X509KeyPair(files["server.crt"], files["server.key"]); err != nil {
		return err
	}
	for name, b := range files {
		mode := os.FileMode(0o600)
		if name == "ca.crt" {
			mode = 0o644
		}
		if err := os.WriteFile(l.kubePath(name), b, mode); err != nil {
			return err
		}
	}
	if err := l.writeKubeconfig(l.kubePath("admin.kubeconfig"), adminToken); err != nil {
		return err
	}
	return l.writeKubeconfig(l.kubePath("kube-proxy.kubeconfig"), proxyToken)
}
