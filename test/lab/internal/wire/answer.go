// Package wire is what the lab's clients and its pods say to each other.
package wire

// Answer is a pod's answer to a request over HTTP or UDP, as one JSON object.
type Answer struct {
	Server    string `json:"server"`              // the pod's name
	Node      string `json:"node,omitempty"`      // where it runs
	Client    string `json:"client"`              // the address and port that it saw
	Local     string `json:"local,omitempty"`     // the address and port it was reached at
	Forwarded string `json:"forwarded,omitempty"` // X-Forwarded-For, when a proxy sent it
}
