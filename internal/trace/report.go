package trace

import "net/netip"

// Port is the TCP port of a node's loopback at which its speaker checks an address for whoever asks.
const Port = 9122

// Path is what a report is asked for with: GET Path?address=ADDRESS.
const Path = "/trace"

// Report is what the speaker of a node says of an address of a Service, and what became of the connections that it opened.
type Report struct {
	Node string `json:"node"`
	// Gate says why the node attracts no traffic while others can; "" when nothing speaks against it.
	Gate string `json:"gate,omitempty"`
	// Proxy is whether the node's Service proxy says that it is healthy; nil when it is not asked.
	Proxy *bool `json:"proxy,omitempty"`
	// Guarded says that what the proxy does not rewrite of packets for the address is unreachable.
	Guarded bool `json:"guarded"`
	// New says that the node has been able to serve the address for some seconds only: the Service proxy may be about to
	// write its rules.
	New bool `json:"new,omitempty"`
	// Checks are the connections.
	Checks []Check `json:"checks,omitempty"`
	// Left is how many were not tried because they are more than a speaker tries.
	Left int `json:"left,omitempty"`
	// Problem is why some were not tried.
	Problem string `json:"problem,omitempty"`
}

// Check is a connection that a node has opened.
type Check struct {
	Service  string         `json:"service"` // namespace/name
	Protocol string         `json:"protocol"`
	Port     uint16         `json:"port"` // of the Service
	To       netip.AddrPort `json:"to"`
	// Backend says that it went to an endpoint, not to the address of the Service.
	Backend bool `json:"backend,omitempty"`
	// Outcome: Answered, Refused, Unreachable, Silent, or Failed when the node could not try.
	Outcome string `json:"outcome"`
	Error   string `json:"error,omitempty"`
	// From is the address that the node connected from.
	From netip.Addr `json:"from"`
	// RewrittenTo is where the Service proxy sent it; the zero value when that is not known.
	RewrittenTo netip.AddrPort `json:"rewrittenTo,omitzero"`
	// AsItIs says that no rule of the Service proxy has rewritten it.
	AsItIs bool `json:"asItIs,omitempty"`
	// Microseconds that it took.
	Microseconds int64 `json:"microseconds"`
}

// Outcomes of a Check.
const (
	Answered = "Answered"
	Silent   = "Silent"
)

// fails says whether a connection failed: that nothing answers a datagram is no failure.
func (c Check) fails() bool {
	return c.Outcome != Answered && (c.Outcome != Silent || c.Protocol != "UDP")
}
