package page

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// State says how well something is.
type State string

// The states. What nobody can tell is Unknown; Off is what is not to do anything.
const (
	Good    State = "good"
	Bad     State = "bad"
	Unknown State = "unknown"
	Off     State = "off"
)

// Picture is a cluster as it was read once.
type Picture struct {
	Overview Overview
	Services []Service
	// Explain says of an object, as Kind/name, what kubectl clarion explain says of it.
	Explain func(object string) (any, error)
	// Pool is a pool, address by address.
	Pool func(name string) (Grid, error)
	// Taken is when a dump was taken, zero for a cluster.
	Taken time.Time
}

// Overview is all of a cluster but its Services, which may be many.
type Overview struct {
	Cluster    string            `json:"cluster"`
	Dump       *time.Time        `json:"dump,omitempty"` // when it was taken, if it is one
	Controller Controller        `json:"controller"`
	Routers    []Router          `json:"routers"`
	Nodes      []Node            `json:"nodes"`
	Sessions   []Session         `json:"sessions"`
	Pools      []Pool            `json:"pools"`
	Problems   []Problem         `json:"problems"`
	Services   Count             `json:"services"`
	NotShown   map[string]string `json:"notShown,omitempty"`
	// Local says that addresses are answered for on the local network.
	Local bool `json:"local"`
}

// Count is how many Services there are.
type Count struct {
	All     int `json:"all"`
	Bad     int `json:"bad"`
	Unknown int `json:"unknown"`
}

// Controller is the one that leads.
type Controller struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	State   State  `json:"state"`
}

// Router is a BGPPeer.
type Router struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	AS      string `json:"as"`
	Up      int    `json:"up"`     // sessions
	Wanted  int    `json:"wanted"` // sessions
	State   State  `json:"state"`
	Text    string `json:"text,omitempty"` // what is wrong
}

// Node is a node that should have a speaker.
type Node struct {
	Name     string `json:"name"`
	Zone     string `json:"zone,omitempty"`
	State    State  `json:"state"`
	Text     string `json:"text,omitempty"` // what is wrong with it, or why it is off
	Version  string `json:"version,omitempty"`
	Answers  int    `json:"answers"`  // addresses, on the local network
	Sessions int    `json:"sessions"` // that are up
}

// Session is a session that there is or should be.
type Session struct {
	Node        string `json:"node"`
	Peer        string `json:"peer"`
	Address     string `json:"address,omitempty"` // of the peer
	State       State  `json:"state"`
	Text        string `json:"text"`
	BGP         string `json:"bgp,omitempty"`
	BFD         string `json:"bfd,omitempty"`
	Detection   int32  `json:"bfdDetectionMilliseconds,omitempty"`
	HoldSeconds int32  `json:"holdTimeSeconds,omitempty"`
	IPv4        int32  `json:"ipv4"` // prefixes
	IPv6        int32  `json:"ipv6"`
	Since       string `json:"since,omitempty"`
	LastError   string `json:"lastError,omitempty"`
}

// Pool is an IPAddressPool, and those of its addresses that the map shows one by one.
type Pool struct {
	Name        string    `json:"name"`
	State       State     `json:"state"`
	Text        string    `json:"text"` // as explain says it
	Ranges      string    `json:"ranges"`
	Used4       int64     `json:"used4"`
	Free4       int64     `json:"free4"`
	Used6       int64     `json:"used6"`
	Free6       int64     `json:"free6"`
	Resting     int       `json:"resting"`
	Quarantined int       `json:"quarantined"`
	Kept        int       `json:"kept"`
	Bad         int       `json:"bad"`    // used ones that nobody announces as they should be
	Hidden      int       `json:"hidden"` // used ones that are not in Shown
	Shown       []Address `json:"shown"`
	Owners      []string  `json:"owners"` // nodes that are to answer for some of them on the local network
}

// Address is one that Services have.
type Address struct {
	Address  string   `json:"address"`
	Services []string `json:"services"`
	State    State    `json:"state"`
	Text     string   `json:"text"`
	Owner    string   `json:"owner,omitempty"` // that should answer on the local network
	By       []string `json:"by"`              // nodes that answer
	Announce []string `json:"announce"`        // nodes that announce it to a peer; none where there are many nodes
}

// Service is one that is to be reached from outside.
type Service struct {
	Name      string   `json:"name"` // namespace/name
	State     State    `json:"state"`
	Answer    string   `json:"answer"` // of explain
	Addresses []string `json:"addresses"`
}

// Problem is something that is not as someone wanted it.
type Problem struct {
	About string `json:"about"` // Kind/name
	Text  string `json:"text"`
}

// Event is something that has changed.
type Event struct {
	Number int       `json:"number"` // counts up from 1
	Time   time.Time `json:"time"`   // when it was seen
	State  State     `json:"state"`  // Bad: something broke, Good: it is well again, Unknown: neither
	Text   string    `json:"text"`
	About  string    `json:"about,omitempty"` // Kind/name
}

// Grid is a pool, address by address.
type Grid struct {
	Name    string   `json:"name"`
	Ranges  []Range  `json:"ranges"`
	Outside []Cell   `json:"outside,omitempty"` // in use, and in the pool no more
	History []Sample `json:"history"`
}

// Range is a range of a pool.
type Range struct {
	Title string `json:"title"`
	// Cells are all of its addresses; those alone that are not free where there are very many, with Rest set.
	Cells []Cell `json:"cells"`
	Rest  string `json:"rest,omitempty"`
}

// Cell is an address of a pool.
type Cell struct {
	Address string `json:"address"`
	// State is free, used, reserved, quarantined, resting, kept or excluded.
	State string `json:"state"`
	Text  string `json:"text,omitempty"`
	Bad   bool   `json:"bad,omitempty"` // nobody announces it as it should be
}

// Sample is how full a pool was from a time on.
type Sample struct {
	Time time.Time `json:"time"`
	Used int64     `json:"used"`
	Free int64     `json:"free"`
}

// Listed are Services that were asked for.
type Listed struct {
	Total int       `json:"total"` // that match
	Items []Service `json:"items"`
}

// most is how many Services are sent at once.
const most = 200

// list are the Services with all words of a search in what is said of them, those that are not well first.
func list(all []Service, search, state string, offset, limit int) Listed {
	words := strings.Fields(strings.ToLower(search))
	out := Listed{Items: []Service{}}
	for _, s := range all {
		if state != "" && string(s.State) != state {
			continue
		}
		said := strings.ToLower(s.Answer + " " + s.Name + " " + strings.Join(s.Addresses, " "))
		if slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(said, w) }) {
			continue
		}
		if out.Total++; out.Total > offset && len(out.Items) < min(limit, most) {
			out.Items = append(out.Items, s)
		}
	}
	return out
}

// Sort puts Services that are not well first, then by name.
func Sort(all []Service) {
	rank := map[State]int{Bad: 0, Unknown: 1, Good: 2}
	slices.SortFunc(all, func(a, b Service) int {
		return cmp.Or(cmp.Compare(rank[a.State], rank[b.State]), strings.Compare(a.Name, b.Name))
	})
}
