package ipam

import (
	"net/netip"

	"github.com/clarionlb/clarion/internal/pool"
)

// window is how many free addresses of a pool are looked at when one is chosen by Homes.
const window = 64

// Homes says on which node an address would be announced if a Service had it, "" when on none in particular. It is a
// function of its arguments alone: it does no I/O, and asks for no lock that is held while a Table is used.
type Homes func(r *Request, a netip.Addr) string

// SetHomes has addresses chosen from now on by their homes: among the first free ones of a pool the lowest whose home has
// the fewest addresses, with both of a Service on one node where that can be. Nil: the lowest. What is assigned stays, and
// is counted anew.
func (t *Table) SetHomes(h Homes) {
	t.homes = h
	clear(t.load)
	clear(t.home)
	for _, i := range t.ids {
		for _, h := range t.services[i].have {
			if h.addr.IsValid() {
				t.settleHome(h.addr, &t.services[i].req)
			}
		}
	}
}

// settleHome counts a under its home when a Service has got it, and not any more when nobody has it (nil).
func (t *Table) settleHome(a netip.Addr, r *Request) {
	was, counted := t.home[a]
	switch {
	case t.homes == nil || counted == (r != nil):
	case r != nil:
		home := t.homes(r, a)
		t.home[a] = home
		t.load[home]++
	default:
		delete(t.home, a)
		if t.load[was]--; t.load[was] == 0 {
			delete(t.load, was)
		}
	}
}

// window is how many free addresses are worth a look.
func (t *Table) window() int {
	if t.homes == nil {
		return 1
	}
	return window
}

// choose takes an address for each family whose plan has some to choose from.
func (t *Table) choose(r *Request, plans *[2]plan) (out [2]netip.Addr) {
	var homes [2]map[string]netip.Addr // the lowest address of each home
	for f := range plans {
		from := plans[f].from
		if t.homes == nil {
			if len(from) > 0 {
				out[f] = from[0]
			}
			continue
		}
		if a := plans[f].keep.addr; len(from) == 0 && a.IsValid() {
			homes[f] = map[string]netip.Addr{t.home[a]: a}
		}
		for _, a := range from {
			home := t.homes(r, a)
			if homes[f] == nil {
				homes[f] = map[string]netip.Addr{}
			}
			if _, seen := homes[f][home]; !seen {
				homes[f][home] = a
			}
		}
	}
	if t.homes == nil {
		return out
	}
	best := func(f pool.Family, beside map[string]netip.Addr) (a netip.Addr) {
		least := 0
		for home, b := range homes[f] {
			if _, common := beside[home]; beside != nil && !common {
				continue
			}
			if load := t.load[home]; !a.IsValid() || load < least || load == least && b.Less(a) {
				a, least = b, load
			}
		}
		return a
	}
	for f := range plans {
		other := homes[1-f]
		if f == int(pool.IPv6) && out[pool.IPv4].IsValid() {
			other = map[string]netip.Addr{t.homes(r, out[pool.IPv4]): out[pool.IPv4]}
		}
		if len(plans[f].from) == 0 {
			continue
		}
		// One node for both is not worth that it gets a seventh more than the mean.
		if out[f] = best(pool.Family(f), other); !out[f].IsValid() || 7*(t.load[t.homes(r, out[f])]+1)*len(t.load) > 8*len(t.home) {
			out[f] = best(pool.Family(f), nil)
		}
	}
	return out
}
