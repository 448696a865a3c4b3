package walk

import (
	"maps"
	"slices"
	"time"
)

// The verbs.
const (
	// Edits. Those with a duration are undone.
	Make        = "make"        // a Service
	Unmake      = "unmake"      // delete it
	Remake      = "remake"      // delete a Service and make it again at once
	Move        = "move"        // have a Service ask for another address
	Widen       = "widen"       // a pool, by another range
	Unadvertise = "unadvertise" // delete an advertisement, and make it again
	Unpeer      = "unpeer"      // delete a BGPPeer, and make it again
	Drain       = "drain"       // a node, by annotation
	Exclude     = "exclude"     // a node, by label
	Unready     = "unready"     // a node's pod
	NewKey      = "newkey"      // delete the Secret with the speakers' key
	// Faults of a node's link.
	Cut     = "cut"     // carrier lost
	Silence = "silence" // carrier kept
	Mute    = "mute"    // what the node sends is lost
	Deafen  = "deafen"  // what is sent to the node is lost
	Flap    = "flap"
	Lose    = "lose"  // some of the frames
	Delay   = "delay" // frames
	// Faults between programs.
	CutAPI    = "cutapi"    // a node from the API server
	CutGossip = "cutgossip" // a node's speaker from those of the others
	// Faults of programs: killed, ended, or stopped for a while.
	Speaker     = "speaker"
	Speakers    = "speakers" // all of them
	Controller  = "controller"
	Controllers = "controllers" // both
	APIServer   = "apiserver"
	Proxy       = "proxy"
	Router      = "router"
	// Others.
	Claim = "claim" // a foreign host has a Service's address
	Pods  = "pods"  // interfaces of pods come by the hundred, and go
	// Look is no step of the cluster's: everything must be as it should be.
	Look = "look"
)

// What faults hold while they last: see can.
const (
	api          = "api"
	link         = "link"
	outOfService = "out of service"
	speaker      = "speaker"
	controller   = "controller"
)

// The documents' recovery times, with what a busy machine adds.
const (
	takeover = 3 * time.Second  // another node answers on the local network: 0.2 s
	strange  = 12 * time.Second // the same, when the backup has never heard an owner, or has its own trouble: 3 s times its rank
	hold     = 9 * time.Second  // BGP's hold time, as configured
	again    = 10 * time.Second // a session is opened again, and routes are exchanged
	edited   = 10 * time.Second // an edit is carried out everywhere, when all programs are well
	foreign  = 35 * time.Second // a foreign host is asked twice a minute whether it is there
)

type verb struct {
	weight int
	lasts  [2]time.Duration // at least and at most
	on     func(*walk) []string
	args   []string
	holds  string
	edit   bool // it needs the API server, when it is done and when it is undone
	slows  bool // while it lasts, edits may not reach everybody
	// excuse returns the times in which requests to a Service may be lost; nil: none.
	excuse func(h *history, s Service, d Done) []span
}

func nodes(w *walk) []string   { return w.Nodes }
func routers(w *walk) []string { return w.Routers }
func made(w *walk) []string    { return slices.Sorted(maps.Keys(w.services)) }

var (
	instant = [2]time.Duration{}
	short   = [2]time.Duration{time.Second, 8 * time.Second}
	medium  = [2]time.Duration{time.Second, 20 * time.Second}
	ends    = []string{"kill", "term", "stop"}
)

var verbs map[string]verb

func init() {
	verbs = map[string]verb{
		Make:        {2, instant, nil, nil, "", true, false, itself(0)},
		Unmake:      {1, instant, made, nil, "", true, false, nil},
		Remake:      {2, instant, made, nil, "", true, false, itself(0)},
		Move:        {2, instant, made, nil, "", true, false, itself(0)},
		Widen:       {1, medium, nil, []string{"lan", "routed"}, Widen, true, false, nil},
		Unadvertise: {1, short, nil, []string{"l2", "bgp"}, Unadvertise, true, false, unadvertised},
		Unpeer:      {1, short, routers, nil, Router, true, false, routerAway},
		Drain:       {3, medium, nodes, nil, outOfService, true, false, nil},
		Exclude:     {2, medium, nodes, nil, outOfService, true, false, nil},
		Unready:     {2, medium, nodes, nil, Unready, true, false, podAway},
		NewKey:      {1, instant, nil, nil, "", true, false, nil},

		Cut:     {3, medium, nodes, nil, link, false, true, linkAway},
		Silence: {2, medium, nodes, nil, link, false, true, linkAway},
		Mute:    {1, medium, nodes, nil, link, false, true, linkAway},
		Deafen:  {1, medium, nodes, nil, link, false, true, linkAway},
		Flap:    {1, short, nodes, nil, link, false, true, linkBad},
		Lose:    {1, medium, nodes, []string{"5", "20", "60"}, link, false, true, linkBad},
		Delay:   {1, medium, nodes, []string{"1ms", "20ms"}, link, false, true, linkSlow},

		CutAPI:    {3, medium, nodes, nil, CutAPI, false, true, nil},
		CutGossip: {3, medium, nodes, nil, CutGossip, false, true, nil},

		Speaker:     {5, medium, nodes, ends, speaker, false, true, nil},
		Speakers:    {1, short, nil, ends, speaker, false, true, everything},
		Controller:  {2, medium, nil, ends, controller, false, true, nil},
		Controllers: {2, medium, nil, ends, controller, false, true, nil},
		APIServer:   {2, medium, nil, ends, api, false, true, nil},
		Proxy:       {2, medium, nodes, ends[:2], Proxy, false, true, nil},
		Router:      {2, short, routers, ends[:2], Router, false, true, routerAway},

		Claim: {2, medium, made, nil, Claim, false, false, itself(foreign)},
		Pods:  {2, medium, nodes, []string{"100"}, Pods, false, false, nil},

		Look: {},
	}
}

// OfService says whether a verb is for a Service that is there.
func OfService(do string) bool { return slices.Contains([]string{Unmake, Remake, Move, Claim}, do) }

// Done is a step as it was carried out.
type Done struct {
	Step
	Began, Ended time.Duration // since the walk began; the end of its undoing, or of itself if it is not undone
}

// span is a time.
type span struct{ from, to time.Duration }

// history is what was done, for those who judge.
type history []Done

// Excuse returns the step by which requests to a Service that were sent at a time may be lost. It returns false if there is none.
func Excuse(done []Done, s Service, at time.Duration) (Done, bool) {
	h := history(done)
	for _, d := range h {
		v := verbs[d.Do]
		if v.excuse == nil {
			continue
		}
		for _, w := range v.excuse(&h, s, d) {
			if at >= w.from-100*time.Millisecond && at <= w.to {
				return d, true
			}
		}
	}
	return Done{}, false
}

// settled is when what was edited by a time is carried out everywhere: some time after the last fault that was in its way.
func (h *history) settled(from time.Duration) time.Duration {
	to := from + edited
	for more := true; more; {
		more = false
		for _, d := range *h {
			if late := d.Ended + strange + edited; verbs[d.Do].slows && d.Began < to && d.Ended+strange > from && late > to {
				to, more = late, true
			}
		}
	}
	return to
}

// takeover is how long the local network may take to have another owner, after a fault that began at a time.
func (h *history) takeover(d Done) time.Duration {
	for _, o := range *h {
		if o.Step != d.Step && verbs[o.Do].slows && o.Began < d.Ended+takeover && o.Ended+strange > d.Began {
			return strange
		}
	}
	return takeover
}

// itself excuses the Service that the step is done to.
func itself(more time.Duration) func(*history, Service, Done) []span {
	return func(h *history, s Service, d Done) []span {
		if d.On != s.Name {
			return nil
		}
		return []span{{d.Began, h.settled(d.Ended) + more}}
	}
}

func everything(h *history, _ Service, d Done) []span {
	return []span{{d.Began, h.settled(d.Ended)}}
}

func unadvertised(h *history, s Service, d Done) []span {
	if s.BGP != (d.Arg == "bgp") {
		return nil
	}
	return everything(h, s, d)
}

// A router that has no routes still gets its share of the flows.
func routerAway(h *history, s Service, d Done) []span {
	if !s.BGP {
		return nil
	}
	return []span{{d.Began, h.settled(d.Ended)}}
}

// Its Service proxy drops what comes to a node for a Service of policy Local as soon as the pod is not ready.
func podAway(h *history, s Service, d Done) []span {
	if !s.Local {
		return nil
	}
	return []span{{d.Began, h.settled(d.Began)}, {d.Ended, h.settled(d.Ended)}}
}

// While a node cannot be reached, a share of a Service's flows goes to its pods, unless the policy is Local: then others serve,
// once the routers or the other speakers have noticed.
func linkAway(h *history, s Service, d Done) []span {
	t := h.takeover(d)
	if s.BGP {
		t += hold
	}
	if !s.Local {
		return []span{{d.Began, d.Ended + t}}
	}
	return []span{{d.Began, d.Began + t}, {d.Ended, d.Ended + t}}
}

// A link that works now and then is nobody's fault.
func linkBad(h *history, s Service, d Done) []span {
	t := h.takeover(d)
	if s.BGP {
		t += hold + again
	}
	return []span{{d.Began, d.Ended + t}}
}

// The link is away for a moment when frames begin and cease to be delayed.
func linkSlow(_ *history, _ Service, d Done) []span {
	return []span{{d.Began, d.Began + time.Second}, {d.Ended - time.Second, d.Ended + takeover}}
}

// Moved says whether an address of a Service may change at a time: something was done to it that says so.
func Moved(done []Done, name string, at time.Duration) bool {
	h := history(done)
	return slices.ContainsFunc(h, func(d Done) bool {
		return d.On == name && slices.Contains([]string{Make, Remake, Move}, d.Do) && at >= d.Began && at <= h.settled(d.Ended)
	})
}
