package crd

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/clarionlb/clarion/api/v1beta1"
)

// What is left out means what the fields' documentation says.
func TestDefaults(t *testing.T) {
	for kind, want := range map[string]string{
		"IPAddressPool": `
addresses: [203.0.113.0/24]
autoAssign: true
avoidBuggyIPs: false
onShrink: Keep
reuseDelay: 60s`,
		"L2Advertisement":  ``,
		"BGPAdvertisement": `{addressTypes: [LoadBalancerIP], aggregationLength: 32, aggregationLengthV6: 128}`,
		"BGPPeer":          `{myASN: 64500, peerASN: 64512, peerAddress: 192.0.2.1, peerPort: 179}`,
		"BFDProfile":       `{receiveInterval: 300, transmitInterval: 300, detectMultiplier: 3, echoInterval: 50, minimumTtl: 254}`,
		"Community":        `communities: [{name: blue, value: "64500:1"}]`,
	} {
		t.Run(kind, func(t *testing.T) {
			o := object(t, bases[kind], "")
			if err := api.Create(t.Context(), o, client.DryRunAll); err != nil {
				t.Fatal(err)
			}
			got, err := yaml.Marshal(o.Object["spec"])
			if err != nil {
				t.Fatal(err)
			}
			var g, w any
			if err := yaml.Unmarshal(got, &g); err != nil {
				t.Fatal(err)
			}
			if err := yaml.Unmarshal([]byte(want), &w); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(w, g); diff != "" {
				t.Errorf("spec (-want +got):\n%s", diff)
			}
		})
	}
}

// Statuses survive the way into the API server and back, and kubectl get shows of them what one asks first.
func TestStatusAndColumns(t *testing.T) {
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	ready := []metav1.Condition{{Type: v1beta1.ConditionReady, Status: metav1.ConditionFalse, LastTransitionTime: now,
		Reason: "Invalid", Message: "why"}}
	meta := metav1.ObjectMeta{Name: "test"}
	for _, row := range []struct {
		object  client.Object
		plural  string
		columns string
	}{
		{
			&v1beta1.IPAddressPool{ObjectMeta: meta,
				Spec:   v1beta1.IPAddressPoolSpec{Addresses: []v1beta1.AddressRange{"203.0.113.0/24"}},
				Status: v1beta1.IPAddressPoolStatus{AssignedIPv4: 1, AvailableIPv4: 255, AssignedIPv6: 2, AvailableIPv6: 1<<63 - 1, Conditions: ready}},
			"ipaddresspools", `
NAME AUTO USED V4 FREE V4 USED V6 FREE V6             READY ADDRESSES          AGE MESSAGE
test true 1       255     2       9223372036854775807 False ["203.0.113.0/24"] -   why`,
		},
		{
			&v1beta1.L2Advertisement{ObjectMeta: meta,
				Spec:   v1beta1.L2AdvertisementSpec{IPAddressPools: []string{"lan"}, Interfaces: []string{"eth0"}},
				Status: v1beta1.AdvertisementStatus{Conditions: ready}},
			"l2advertisements", `
NAME POOLS   INTERFACES READY AGE MESSAGE
test ["lan"] ["eth0"]   False -   why`,
		},
		{
			&v1beta1.BGPAdvertisement{ObjectMeta: meta,
				Spec:   v1beta1.BGPAdvertisementSpec{IPAddressPools: []string{"routed"}, Peers: []string{"tor1"}},
				Status: v1beta1.AdvertisementStatus{Conditions: ready}},
			"bgpadvertisements", `
NAME TYPES              POOLS      PEERS    READY AGE MESSAGE
test ["LoadBalancerIP"] ["routed"] ["tor1"] False -   why`,
		},
		{
			&v1beta1.BGPPeer{ObjectMeta: meta,
				Spec:   v1beta1.BGPPeerSpec{MyASN: 64500, PeerASN: ptr.To[int64](64512), PeerAddress: "192.0.2.1", BFDProfile: "fast"},
				Status: v1beta1.BGPPeerStatus{SessionsWanted: 3, SessionsUp: 2, Conditions: ready}},
			"bgppeers", `
NAME ADDRESS   INTERFACE ASN   UP WANTED BFD  READY AGE MESSAGE
test 192.0.2.1           64512 2  3      fast False -   why`,
		},
		{
			&v1beta1.BFDProfile{ObjectMeta: meta, Status: v1beta1.AdvertisementStatus{Conditions: ready}},
			"bfdprofiles", `
NAME RECEIVE TRANSMIT MULTIPLIER READY AGE MESSAGE
test 300     300      3          False -   why`,
		},
		{
			&v1beta1.Community{ObjectMeta: meta,
				Spec:   v1beta1.CommunitySpec{Communities: []v1beta1.CommunityAlias{{Name: "blue", Value: "64500:1"}}},
				Status: v1beta1.AdvertisementStatus{Conditions: ready}},
			"communities", `
NAME NAMES READY AGE MESSAGE
test blue  False -   why`,
		},
		{
			&v1beta1.Speaker{ObjectMeta: meta, Status: v1beta1.SpeakerStatus{
				Version:      "v1",
				Addresses:    []string{"192.0.2.11", "2001:db8::11"},
				Missing:      []string{"node3"},
				Gate:         "being drained",
				LocalNetwork: &v1beta1.Layer2Status{Answered: 1, Digest: "4b8feb9364512928", Latest: []string{"192.0.2.1"}},
				Sessions: []v1beta1.SessionStatus{{Peer: "tor1", Address: "192.0.2.1", State: "Established", Since: &now, PeerASN: 64512,
					Families: []string{"IPv4"}, HoldTimeSeconds: 9, KeepaliveSeconds: 3, PrefixesIPv4: 1, PrefixesIPv6: 0,
					GracefulRestart: true, BFD: "Up", LastError: "hold timer expired"}},
				Conflicts:  []v1beta1.AddressConflict{{Address: "192.0.2.200", HardwareAddress: "02:00:00:00:00:01", Interface: "eth0", Since: now}},
				Problems:   []v1beta1.Problem{{Object: "BGPPeer/tor2", Message: "no such Secret"}},
				Conditions: ready,
			}},
			"speakers", `
NAME READY MISSING   LAYER2 SESSIONS    VERSION AGE
test False ["node3"] 1      Established v1      -`,
		},
	} {
		t.Run(row.plural, func(t *testing.T) {
			written := row.object.DeepCopyObject().(client.Object)
			if err := api.Create(t.Context(), row.object); err != nil { // without its status, as the API server has it
				t.Fatal(err)
			}
			t.Cleanup(func() {
				none := client.RawPatch(types.MergePatchType, []byte(`{"status":null}`)) // a pool in use is not deleted
				err := api.Status().Patch(context.Background(), row.object, none)
				if err = errors.Join(err, api.Delete(context.Background(), row.object)); err != nil {
					t.Error(err)
				}
			})
			read := written.DeepCopyObject().(client.Object)
			read.SetResourceVersion(row.object.GetResourceVersion())
			if err := api.Status().Update(t.Context(), read); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(status(t, written), status(t, read)); diff != "" {
				t.Errorf("status (-written +read):\n%s", diff)
			}
			out, err := cluster.Kubectl(t.Context(), "get", row.plural, "-o", "wide")
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			out = regexp.MustCompile(` \d+s( |\n)`).ReplaceAllString(out, " -$1")
			if got, want := words(out), words(row.columns); got != want {
				t.Errorf("kubectl get %s -o wide:\n%s\nwant\n%s", row.plural, got, want)
			}
		})
	}
}

// status is an object's status as it is in JSON.
func status(t *testing.T, o client.Object) any {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	return m["status"]
}

// words is a table without its alignment.
func words(table string) string {
	var lines []string
	for line := range strings.Lines(strings.TrimSpace(table)) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}
