package replica

// bells tell that something changed, without what; who hears one looks. Each is
// for one listener.
type bells struct{ held, queue chan struct{} }

func newBells() bells { return bells{make(chan struct{}, 1), make(chan struct{}, 1)} }

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// HeldChanged is rung when held deliveries came, changed or went.
func (s *Replica) HeldChanged() <-chan struct{} { return s.bells.held }

// QueueChanged is rung when outbound mail came.
func (s *Replica) QueueChanged() <-chan struct{} { return s.bells.queue }
