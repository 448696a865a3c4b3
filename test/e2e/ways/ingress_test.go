package ways

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/clarionlb/clarion/test/e2e/world"
	"github.com/clarionlb/clarion/test/lab"
)

// answer is what the lab's pods say.
type answer struct{ Server, Node, Client, Forwarded string }

// fetch makes a request whose host name leads to an address.
func fetch(ctx context.Context, c *http.Client, url string) (a answer, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return a, err
	}
	res, err := c.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return a, err
	}
	if res.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %s: %s", url, res.Status, b)
	}
	return a, json.Unmarshal(b, &a)
}

// client makes HTTP requests from a host, to one address if to is given, whatever the URL's host name is.
func (w *way) client(from string, to ...string) *http.Client {
	return &http.Client{Timeout: lab.RequestTimeout, Transport: &http.Transport{DisableKeepAlives: true, DialContext: w.dialer(from, to...)}}
}

// certificate makes a key with a certificate of its own for a host name, as files, and the pool that trusts it.
func (w *way) certificate(t *testing.T, name string) (cert, key string, trust *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	world.Must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	world.Must(t, err)
	keyDER, err := x509.MarshalECPrivateKey(k)
	world.Must(t, err)
	cert, key = filepath.Join(w.Dir(), name+".crt"), filepath.Join(w.Dir(), name+".key")
	world.Must(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	world.Must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600))
	parsed, err := x509.ParseCertificate(der)
	world.Must(t, err)
	trust = x509.NewCertPool()
	trust.AddCert(parsed)
	return cert, key, trust
}

// nginxRoutes sends requests for shop.example to one Service and those below /blog to another, both by their names in the
// cluster's DNS.
const nginxRoutes = `
	resolver %s valid=1s ipv6=off;
	server {
		listen 8080 default_server; listen [::]:8080 default_server;
		return 404;
	}
	server {
		listen 8080; listen [::]:8080; listen 8443 ssl; listen [::]:8443 ssl;
		server_name shop.example;
		ssl_certificate %s;
		ssl_certificate_key %s;
		proxy_set_header X-Forwarded-For $remote_addr;
		location / { set $up shop.default.svc.cluster.local; proxy_pass http://$up; }
		location /blog { set $up blog.default.svc.cluster.local; proxy_pass http://$up; }
	}
`

// ingress runs nginx on two nodes behind a Service with policy Local, as an Ingress controller is run, in front of two
// backends on the third.
func (w *way) ingress(t *testing.T) (addrs []netip.Addr, trust *x509.CertPool) {
	t.Helper()
	cert, key, trust := w.certificate(t, "shop.example")
	for _, app := range []string{"shop", "blog"} {
		w.pod(t, lab.PodSpec{Name: app + "-1", Node: w.Nodes()[2], Labels: map[string]string{"app": app}})
		w.service(t, app, func(svc *corev1.Service) {
			clusterIPService(svc)
			svc.Spec.Selector = map[string]string{"app": app}
		})
	}
	label := map[string]string{"app": "ingress"}
	for _, node := range w.Nodes()[:2] {
		command, err := w.Nginx(node, fmt.Sprintf(nginxRoutes, lab.DNSAddress4, cert, key))
		world.Must(t, err)
		w.pod(t, lab.PodSpec{Name: "ingress-" + node, Node: node, Labels: label, Command: command})
	}
	svc := w.service(t, "ingress", func(svc *corev1.Service) {
		local(svc)
		svc.Spec.Selector = label
		svc.Spec.Ports = []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: world.TargetPort},
			{Name: "https", Port: 443, TargetPort: intstr.FromInt32(8443)},
		}
	})
	addrs = w.addresses(t, svc)
	for _, a := range addrs {
		w.NextHops(t, world.Alone(a), w.Nodes()[:2]...)
	}
	return addrs, trust
}

// A proxy in pods behind an external address routes by host and path, gives its backends the client's address, and is the
// end of the client's TLS session.
func testIngress(t *testing.T, w *way) {
	addrs, trust := w.ingress(t)
	for _, a := range addrs {
		secure := w.client("outside", at(a, 443))
		secure.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: trust}
		plain := w.client("outside", at(a, 80))
		for _, c := range []struct {
			client      *http.Client
			url, server string
		}{
			{plain, "http://shop.example/", "shop-1"},
			{plain, "http://shop.example/blog/1", "blog-1"},
			{secure, "https://shop.example/", "shop-1"},
			{secure, "https://shop.example/blog/1", "blog-1"},
		} {
			want := world.AddrOf(w.Host("outside"), a).String()
			world.Eventually(t, func() error {
				for range 10 { // by both nodes
					got, err := fetch(t.Context(), c.client, c.url)
					if err != nil || got.Server != c.server || got.Forwarded != want {
						return fmt.Errorf("%s at %s: %s answers, for the client %q, want %s for %q (error %w)", c.url, a, got.Server, got.Forwarded, c.server, want, err)
					}
				}
				return nil
			})
		}
		res, err := plain.Get("http://elsewhere.example/")
		world.Must(t, err)
		res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("a host that nobody serves: %s", res.Status)
		}
	}
}

// haproxyConfig balances, with policy Local, over the node ports of the nodes that kube-proxy says can serve, passes on
// to an external address that it reaches through the routers, and passes TLS on unopened.
const haproxyConfig = `defaults
  timeout connect 1s
  timeout client 5s
  timeout server 5s
  retries 3
  option redispatch
listen node-ports
  mode http
  bind 192.0.2.100:8081
  bind [2001:db8::100]:8081
  option forwardfor
  option httpchk GET /
  default-server check port %d inter 200ms fall 1 rise 1
  server node1 192.0.2.11:%[2]d
  server node2 192.0.2.12:%[2]d
  server node3 [2001:db8::13]:%[2]d
listen external-address
  mode tcp
  bind 192.0.2.100:8082
  bind [2001:db8::100]:8082
  server web %[3]s
frontend tls
  mode tcp
  bind 192.0.2.100:8443
  bind [2001:db8::100]:8443
  tcp-request inspect-delay 2s
  tcp-request content accept if { req.ssl_hello_type 1 }
  use_backend ingress if { req.ssl_sni -i shop.example }
backend ingress
  mode tcp
  server ingress %[4]s
`

// A load balancer that a site has already goes on working in front of the cluster: over node ports, and as a client of
// addresses that Clarion announces.
func testEquipment(t *testing.T, w *way) {
	label := map[string]string{"app": "shelf"}
	var pods []*lab.Pod
	for _, node := range w.Nodes() {
		pods = append(pods, w.pod(t, lab.PodSpec{Name: "shelf-" + node, Node: node, Labels: label, Drain: 3 * time.Second}))
	}
	ports := w.service(t, "node-ports", func(svc *corev1.Service) { local(svc); svc.Spec.Selector = label })
	w.addresses(t, ports)
	external := w.addresses(t, w.service(t, "behind-haproxy", nil))
	addrs, trust := w.ingress(t)
	p, err := w.HAProxy(t.Context(), "client", 8081, fmt.Sprintf(haproxyConfig, ports.Spec.HealthCheckNodePort, ports.Spec.Ports[0].NodePort, at(external[1], 80), at(addrs[0], 443)))
	world.Must(t, err)
	t.Cleanup(p.Kill)

	front := w.Host("client")
	for _, a := range []netip.Addr{front.IPv4, front.IPv6} {
		byNodePort := "http://" + at(a, 8081) + "/"
		w.Reachable(t, "outside", byNodePort)
		replies := w.HTTP(t.Context(), "outside", byNodePort, 30)
		world.Answered(t, byNodePort, replies)
		if got := lab.CountServers(replies); len(got) != 3 {
			t.Errorf("%s: HAProxy used the pods %v, want all three", a, got)
		}
		for _, r := range replies {
			if r.Err == nil && (w.HostOf(r.Client.Addr()) != "client" || r.Forwarded != world.AddrOf(w.Host("outside"), a).String()) {
				t.Fatalf("%s saw %s, for the client %q; want HAProxy's host, for %s", r.Server, r.Client, r.Forwarded, world.AddrOf(w.Host("outside"), a))
			}
		}
		w.Reachable(t, "outside", "http://"+at(a, 8082)+"/")

		tlsClient := w.client("outside", at(a, 8443))
		tlsClient.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: trust}
		world.Eventually(t, func() error {
			got, err := fetch(t.Context(), tlsClient, "https://shop.example/")
			if err == nil && got.Server != "shop-1" {
				err = fmt.Errorf("%s answers, want shop-1", got.Server)
			}
			return err
		})
	}

	// A pod that terminates takes its node out of HAProxy's choice before it stops serving.
	w.steady(t, "outside", []string{"http://" + at(front.IPv4, 8081) + "/"}, func() { world.Must(t, pods[0].Terminate(t.Context())) })
}
