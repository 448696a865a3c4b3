// Package wake is how any number of goroutines tell one that there is something new for it.
package wake

// Signal is set by anybody and received from by one goroutine. To set it again before it was received changes nothing: who
// receives looks at all that is new.
type Signal chan struct{}

// New returns a Signal that is not set.
func New() Signal { return make(Signal, 1) }

// Set sets the signal. It never waits.
func (s Signal) Set() {
	select {
	case s <- struct{}{}:
	default:
	}
}
