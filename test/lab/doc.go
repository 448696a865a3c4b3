// Package lab is a real Kubernetes in network namespaces, up in seconds: etcd, kube-apiserver, kube-controller-manager,
// one kube-proxy per node, FRR routers, and clients on both sides of them. It is what `make lab` shows to a person and
// what the end-to-end tests run against. Nothing in it is simulated except the kubelet, whose part the lab plays:
// it runs a pod's server in a namespace of its own and writes the Node and Pod objects.
//
// Every host is a network namespace called clarion-NAME-HOST; no packet leaves them, and nothing is bound in the
// root namespace, so that several labs of different names stand side by side with the same addresses inside.
//
//	            outside      198.51.100.100  2001:db8:1::100
//	               │         default routes: ECMP over both routers
//	 ══════════════╪══════════════════════ wan: 198.51.100.0/24  2001:db8:1::/64
//	        │.1            │.2             one bridge in namespace "switch", ports router1-wan, router2-wan, outside
//	     router1        router2            FRR (zebra, bgpd, bfdd), AS 64512, each with its own ECMP hash seed;
//	        │.1            │.2             any node may open a BGP session to either of them (eBGP, AS of its choice)
//	 ══════════════╪══════════════════════ lan: 192.0.2.0/24  2001:db8::/64
//	  │.10     │.11    │.12    │.13   │.100    one bridge in namespace "switch", a port per host, named after it
//	control  node1   node2   node3  client     (IPv6: the same digits, 2001:db8::11 is node1)
//	           │
//	          pods   10.244.N.0/24  fd00:244:N::/64 on node N; namespace pod-NAMESPACE-NAME
//
// ClusterIPs are 10.96.0.0/16 and fd00:96::/112. External addresses that tests and samples may use:
//
//   - 192.0.2.200 to 192.0.2.250 and 2001:db8::200 to 2001:db8::2ff: on the LAN's own subnet, for layer 2.
//   - 203.0.113.0/24 and 2001:db8:f::/64: the routers hold these as connected to the LAN, so that an address announced
//     by layer 2 outside the LAN's subnet is reached through them; a BGP route for a longer prefix wins.
//   - 198.18.0.0/15 and anything else: known to the routers by BGP only, otherwise unreachable.
//
// Everyone's default route is ECMP over both routers, by the layer-4 hash. Nodes masquerade what pods send out of the
// pod network, as a CNI plug-in does. The bridges have no spanning tree, no forward delay and no multicast snooping.
//
// # In a test
//
//	l := lab.New(lab.Options{Name: "e2e", Progress: os.Stderr})
//	if err := l.Up(ctx); err != nil { … }       // ctx's end takes the lab down
//	defer l.Down()
//	clarion, err := l.StartClarion(ctx, lab.ClarionOptions{})
//	pod, err := l.RunPod(ctx, lab.PodSpec{Name: "web-1", Node: "node1", Labels: map[string]string{"app": "web"}})
//	err = l.Apply(ctx, serviceYAML)
//	err = lab.Eventually(ctx, 5*time.Second, func() error { … })
//	replies := l.HTTP(ctx, "outside", "http://198.18.0.1/", 300)
//	l.CutLink("node1")
//
// The API is reached with l.Client(), l.Config() (both from the root namespace) or l.Kubectl(); a program started with
// l.Start in a namespace takes a file of l.Kubeconfig. l.In runs a function in a host's namespace, l.Exec a command, and
// l.Dial opens a connection from there. What a client or a pod sees of an address, l.HostOf names.
//
// Faults: CutLink (carrier lost), SilenceLink (frames lost, carrier kept), MuteLink and DeafenLink (one way), Loss, Delay,
// undone by RestoreLink; Partition, CutFromAPI and ClosePort, undone by Rejoin and OpenPort; Heal undoes all of them; KillNode and StartNode; and the signals of a Process.
//
// # By hand
//
//	make lab                                   up, with Clarion, and a guided tour; stays up
//	export PATH=/run/clarion-lab/lab/bin:$PATH
//	kubectl get services -A
//	ip netns exec clarion-lab-outside curl http://198.18.0.1/
//	make lab-down
//
// A lab needs root, Linux with network namespaces, and Debian's packages (see Deps). The Kubernetes programs
// are built from their Go modules on first use, about five minutes on two cores, and kept in the user's cache folder.
package lab
